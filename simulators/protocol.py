"""What a simulator is: parameters, observables, `simulate`, and what it may offer beyond that.

A simulator is any object with the attributes of :class:`Simulator`. No base class is needed. What is
optional (`log_likelihood`, `features`, `pilot`, `model_curve`, `signal`, `observe`, `simulate_with_reasons`,
`read_observation`) is looked up by name; the functions at the end of this file say whether it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from simulators.failures import Failure
from simulators.units import check_unit

Data = dict[str, Tensor]
"""x: one array an observable, each of shape (N, *observable.shape)."""


@dataclass(frozen=True)
class Parameter:
    """One component of theta.

    Attributes:
        name: identifier used in files and on the command line.
        prior: univariate torch distribution, or None where the simulator declares a joint `prior`.
        unit: astropy unit string; "" is dimensionless.
        label: LaTeX for plots; the name where empty.
        periodic: the ends of the prior's support are one point, as of an angle in [0, 2 pi): q is then
            continuous there. The prior's support must be an interval, which is one period.
    """

    name: str
    prior: Distribution | None = None
    unit: str = ""
    label: str = ""
    periodic: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"parameter name {self.name!r}: expected an identifier such as 'mass_1'")
        check_unit(self.unit, f"parameter {self.name!r}")
        support = None if self.prior is None else self.prior.support
        if self.periodic and not (hasattr(support, "lower_bound") and hasattr(support, "upper_bound")):
            raise ValueError(
                f"parameter {self.name!r}: periodic needs a prior of its own on one period, such as Uniform(0, 2 pi); got {self.prior}"
            )


@dataclass(frozen=True)
class Observable:
    """One named array of x.

    Attributes:
        name: identifier; the dataset is `/x/<name>`.
        shape: shape for one observation, without the leading N.
        unit: astropy unit string; "" is dimensionless.
        role: `data` is random given theta; `context` is known before the observation (times, error
            bars, masks, PSDs) and is never predicted.
        dtype: dtype in files, `float32` or `float64`.
        label: LaTeX for plots; the name where empty.
        against: the context observable that is this one's abscissa in plots, if any.
        error: the context observable that is this one's 1-sigma error, or its covariance, if any.
        present: the context observable that is 1 where this one's numbers are there and 0 where they are absent, if any.
        scale: of an axis in plots.
        discrete: whole numbers, some or all of them: counts have no density, and a learned likelihood treats them
            as such.
        default: the observable of the same shape and unit whose numbers stand in where a foreign file has none, if any.
    """

    name: str
    shape: tuple[int, ...]
    unit: str = ""
    role: Literal["data", "context"] = "data"
    dtype: Literal["float32", "float64"] = "float64"
    label: str = ""
    against: str | None = None
    error: str | None = None
    present: str | None = None
    scale: Literal["linear", "log"] = "linear"
    discrete: bool = False
    default: str | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"observable name {self.name!r}: expected an identifier such as 'velocity'")
        if self.role not in ("data", "context"):
            raise ValueError(f"observable {self.name!r}: role must be 'data' or 'context', got {self.role!r}")
        if self.scale not in ("linear", "log"):
            raise ValueError(f"observable {self.name!r}: scale must be 'linear' or 'log', got {self.scale!r}")
        check_unit(self.unit, f"observable {self.name!r}")


@dataclass(frozen=True)
class PredictiveView:
    """Data against K posterior draws of the noise-free model, as a field draws it: folded at a period, say.

    Attributes:
        name: short, of the figure.
        abscissa_label, data_label: with unit in brackets.
        abscissa, observed, error: (M,) each.
        grid: increasing, (G,).
        curves: (K, G).
        scale: of the abscissa.
        bins: weighted means of the data in so many bins of the abscissa are drawn too; 0: none.
    """

    name: str
    abscissa_label: str
    data_label: str
    abscissa: Tensor
    observed: Tensor
    error: Tensor
    grid: Tensor
    curves: Tensor
    scale: Literal["linear", "log"] = "linear"
    bins: int = 0


@dataclass(frozen=True)
class ImageView:
    """One observed image beside the noise-free images of K posterior draws.

    Attributes:
        name: short, of the figure.
        data_label: with unit in brackets.
        observed, error: of H x W pixels, (H, W); 1-sigma errors.
        models: (K, H, W).
        used: whether a pixel is compared, (H, W).
        side: of a pixel, in `side_unit`.
    """

    name: str
    data_label: str
    observed: Tensor
    error: Tensor
    models: Tensor
    used: Tensor
    side: float
    side_unit: str


@runtime_checkable
class Simulator(Protocol):
    """The contract between a physics model and the pipeline.

    Shapes: N rows (observations), D parameters. theta is (..., N, D): leading dimensions are draws.
    Every method runs on the device and in the dtype of theta.

    Optional members, used where present:

    - `prior`: a joint `Distribution` with event shape (D,), where parameters are not independent.
    - `log_likelihood(theta, x) -> Tensor`: log p(x given theta), every normalisation constant kept;
      theta (..., N, D) against x of N rows gives (..., N); differentiable where physics allows.
    - `features(x) -> Tensor`: (N, F), fixed physics-informed inputs of the network (default: every
      observable, flattened and concatenated).
    - `feature_shape: tuple[int, ...]`: the shape in which embeddings with structure read the F features,
      F its product: (channels, length) for cnn1d, (channels, height, width) for cnn2d, (items, numbers) for
      set and transformer. The last number of each item is then its mask, 1 present and 0 absent: data of
      variable length, and what stands in the other numbers of an absent item never matters.
    - `pilot(x) -> tuple[Tensor, Tensor]`: a crude guess of each posterior, location (N, D) and scale
      (N, D) > 0, on the unconstrained space u = biject_to(prior.support).inv(theta): a least-squares fit
      and its errors, say. The flow describes u in units of it, so that a posterior that is narrow against
      its prior costs the network nothing. Any guess is valid: q stays a normalised density. For a periodic
      parameter the location is an angle, 2 pi (theta - low) / (high - low) - pi, and the scale is not used;
      with a prior on the simplex both are (N, D - 1).
    - `model_curve(theta, x, grid) -> Tensor`: noise-free prediction of the first data observable for
      ONE observation: theta (K, D), x of one row, grid (G,) of its abscissa, gives (K, G).
    - `predictive_views(theta, x) -> list[PredictiveView | ImageView]`: the figures in which data and posterior of ONE observation are
      customarily shown, theta (K, D); the report draws them in place of one figure over the abscissa.
    - `simulate_with_reasons(theta, context, *, generator) -> tuple[Data, dict[int, Failure]]`: `simulate`, and why
      some rows failed, where that is known (`simulators.per_draw`, `simulators.external_program`). A failed
      simulation is a row with NaN, with or without a reason.
    - `batch: int`: simulations that stage `simulate` asks for at once; small for a simulator that takes seconds a draw.
    - `reduced(x) -> Data`: what `log_likelihood` needs of x, computed once where x stays the same for many theta.
    - `trust(theta, x) -> dict[str, Tensor]`: of a learned likelihood: numbers of the certificate that say how far it is
      to be trusted at equally weighted draws theta (L, N, D), (N,) each.
    - `signal(theta, context, *, generator) -> Data` and `observe(signal, theta, *, generator) -> Data`: `simulate` in two
      steps, where the first is expensive and the second is not. `signal` gives the noise-free data with the observing
      conditions that it holds for, under the names of the observables; `observe` adds noise, and may draw anew
      those conditions that the signal does not depend on (error bars, masks). Training can then draw new noise at every
      step (`simulate.signal`, `train.noise`).
    - `read_observation(path) -> tuple[Data, list[str]]`: an observed file of this kind as x of N rows
      and their N identifiers.
    """

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> tuple[Parameter, ...]: ...

    @property
    def observables(self) -> tuple[Observable, ...]: ...

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """Draw x given theta.

        Args:
            theta: (N, D).
            context: the observing conditions, (N, ...) each; None draws them from the simulator's own
                design distribution.
            generator: the only source of random numbers, on the device of theta.

        Returns:
            every observable, context included, (N, ...) each.
        """
        ...


def _optional(simulator: Simulator, name: str) -> Any:
    """A method that the contract does not ask for, or None."""
    member = getattr(simulator, name, None)
    return member if callable(member) else None


def simulate_with_reasons(
    simulator: Simulator, theta: Tensor, *, generator: torch.Generator
) -> tuple[Data, dict[int, Failure]]:
    """x of theta (N, D) under conditions of the simulator's own design, and why some rows failed, where it says so."""
    own = _optional(simulator, "simulate_with_reasons")
    if own is not None:
        return own(theta, None, generator=generator)
    return simulator.simulate(theta, None, generator=generator), {}


def has_likelihood(simulator: Simulator) -> bool:
    """Whether log p(x given theta) is tractable."""
    return _optional(simulator, "log_likelihood") is not None


def log_likelihood(simulator: Simulator, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
    """The simulator's log p(x given theta), theta (..., N, D) -> (..., N).

    Raises:
        ValueError: it has none.
    """
    density = _optional(simulator, "log_likelihood")
    if density is None:
        raise ValueError(f"simulator {simulator.name!r} has no log_likelihood")
    return density(theta, x)


def likelihood_data(simulator: Simulator, x: Data) -> Data:
    """What `log_likelihood` needs of x: x itself, or less where the simulator says so."""
    reduced = _optional(simulator, "reduced")
    return x if reduced is None else reduced(x)


def likelihood_trust(simulator: Simulator, theta: Tensor, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How far a learned likelihood is to be trusted at draws theta (L, N, D), (N,) each; nothing for the simulator's own."""
    trust = _optional(simulator, "trust")
    return {} if trust is None else trust(theta, x)


def has_signal(simulator: Simulator) -> bool:
    """Whether it simulates in two steps, signal and noise."""
    return _optional(simulator, "signal") is not None and _optional(simulator, "observe") is not None


def signal_of(
    simulator: Simulator, theta: Tensor, context: Mapping[str, Tensor] | None, *, generator: torch.Generator
) -> Data:
    """Noise-free data and observing conditions of theta (N, D), (N, ...) each.

    Raises:
        ValueError: the simulator does not simulate in two steps.
    """
    if not has_signal(simulator):
        raise ValueError(
            f"simulator {simulator.name!r} has no `signal` and `observe`: its noise cannot be drawn apart; set simulate.signal: false"
        )
    return _optional(simulator, "signal")(theta, context, generator=generator)


def observe(simulator: Simulator, signal: Data, theta: Tensor, *, generator: torch.Generator) -> Data:
    """x from what `signal_of` gave: noise drawn anew."""
    return _optional(simulator, "observe")(signal, theta, generator=generator)


def data_observables(simulator: Simulator) -> tuple[Observable, ...]:
    """Observables with role `data`, in order."""
    return tuple(o for o in simulator.observables if o.role == "data")


def context_of(simulator: Simulator, x: Mapping[str, Tensor]) -> Data:
    """The part of x that is observing conditions."""
    return {o.name: x[o.name] for o in simulator.observables if o.role == "context"}


def network_features(simulator: Simulator, x: Mapping[str, Tensor]) -> Tensor:
    """Inputs of the network, (N, F): the simulator's `features`, or every observable flattened."""
    features = _optional(simulator, "features")
    if features is not None:
        return features(x)
    return torch.cat([x[o.name].flatten(1) for o in simulator.observables], dim=1)


def feature_shape(simulator: Simulator) -> tuple[int, ...]:
    """The shape of the network's inputs for one observation, where the simulator declares it; () where not."""
    return tuple(getattr(simulator, "feature_shape", ()))


def pilot_of(
    simulator: Simulator, x: Mapping[str, Tensor], *, dimension: int | None = None
) -> tuple[Tensor, Tensor] | None:
    """The simulator's `pilot` of x, if it offers one.

    Args:
        simulator: which may have a `pilot`.
        x: N observations.
        dimension: numbers in the unconstrained theta; default: one a parameter.

    Raises:
        ValueError: the guess has the wrong shape, is not finite, or a scale is not positive.
    """
    pilot = _optional(simulator, "pilot")
    if pilot is None:
        return None
    location, scale = pilot(x)
    expected = (len(next(iter(x.values()))), dimension or len(simulator.parameters))
    if tuple(location.shape) != expected or tuple(scale.shape) != expected:
        raise ValueError(
            f"simulator {simulator.name!r}: pilot must give two tensors {expected}, got {tuple(location.shape)}, {tuple(scale.shape)}"
        )
    if not bool((location.isfinite() & scale.isfinite() & (scale > 0)).all()):
        raise ValueError(
            f"simulator {simulator.name!r}: pilot gave values that are not finite, or a scale that is not positive"
        )
    return location, scale


def read_observation(simulator: Simulator, path: Path) -> tuple[Data, list[str]]:
    """Read a foreign observed file through the simulator.

    Raises:
        ValueError: the simulator reads no foreign files.
    """
    reader = _optional(simulator, "read_observation")
    if reader is None:
        raise ValueError(
            f"{path}: not an Elboscope data file, and simulator {simulator.name!r} has no read_observation for other formats"
        )
    return reader(path)
