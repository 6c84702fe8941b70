"""What a simulator is: parameters, observables, `simulate`, and what it may offer beyond that.

A simulator is any object with the attributes of :class:`Simulator`. No base class is needed. What is
optional (`log_likelihood`, `features`, `pilot`, `candidates`, `model_curve`, `signal`, `observe`, `simulate_with_reasons`,
`read_observation`) is looked up by name; the functions at the end of this file say whether it is there.

The pipeline calls a simulator through these functions alone. Each hands out copies of theta and of
observing conditions, takes NumPy arrays, lists and integers for tensors, and refuses in one
sentence what is of another shape, complex, or no numbers; so does `log_likelihood`. x itself is
handed out uncopied, and a method that changes it in place is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from simulators.declarations import Observable as Observable
from simulators.declarations import Parameter as Parameter
from simulators.errors import InputError
from simulators.failures import Failure
from simulators.one_form import in_one_form
from simulators.returned import data_of, real_tensor, tensor_without_gradient
from simulators.views import ImageView as ImageView
from simulators.views import PredictiveView as PredictiveView

INWARDS = 1e-3
"""Of the way from an end of a prior's range to its median: where a candidate beyond that end is put."""
Data = dict[str, Tensor]
"""x: one array an observable, each of shape (N, *observable.shape)."""


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
    - `canonical(x) -> Data`: the observables of x that hold something which `log_likelihood` does
      not depend on, without it: velocities less their mean where an offset is marginalised, say.
      Checks of x against replicated data look at these.
    - `exchangeable: tuple[str, ...]`: observables whose first axis is that of points without an
      order (a covariance: both axes). The pipeline brings them into rising order of the first one
      that is named, see `simulators.one_form`.
    - `pilot(x) -> tuple[Tensor, Tensor]`: a crude guess of each posterior, location (N, D) and scale
      (N, D) > 0, on the unconstrained space u = biject_to(prior.support).inv(theta): a least-squares fit
      and its errors, say. The flow describes u in units of it, so that a posterior that is narrow against
      its prior costs the network nothing. Any guess is valid: q stays a normalised density. For a periodic
      parameter the location is an angle, 2 pi (theta - low) / (high - low) - pi, and the scale is not used;
      with a prior on the simplex both are (N, D - 1).
    - `candidates(x) -> Tensor`: theta (C, D) from which a search for modes of ONE posterior should start, x of one row, best first:
      every peak of a periodogram that could matter, say, with the other parameters fitted. A guess each; too many cost time alone.
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


def _asked(simulator: Simulator, name: str, x: Mapping[str, Tensor], *arguments: Any) -> Any:
    """What method `name` answers; it may not change x, which others read after it."""
    versions = {k: None if v.is_inference() else v._version for k, v in x.items()}
    answer = getattr(simulator, name)(*arguments)
    for k, version in versions.items():
        if version is not None and x[k]._version != version:
            raise InputError(
                f"simulator {simulator.name!r}: {name} changes {k!r} in place, which others read after it: work on x[{k!r}].clone()"
            )
    return answer


def simulate(
    simulator: Simulator, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
) -> Data:
    """x of theta (N, D): see `simulate_with_reasons`."""
    return simulate_with_reasons(simulator, theta, context, generator=generator)[0]


def simulate_with_reasons(
    simulator: Simulator, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
) -> tuple[Data, dict[int, Failure]]:
    """x of theta (N, D) in one form (`simulators.one_form`), and why some rows failed, where it says so.

    The one way from the pipeline to a simulator: it works on copies of theta and context.

    Args:
        context: observing conditions, (N, ...) each; None draws them from the simulator's own
            design.

    Raises:
        InputError: the simulator returned something else than it declares.
    """
    given = theta.detach().clone(), None if context is None else {k: v.clone() for k, v in context.items()}
    failures: dict[int, Failure] = {}
    if _optional(simulator, "simulate_with_reasons") is None:
        drawn = simulator.simulate(*given, generator=generator)
    else:
        drawn, failures = _optional(simulator, "simulate_with_reasons")(*given, generator=generator)
    x = data_of(simulator, drawn, rows=len(theta), device=theta.device)
    return in_one_form(simulator, x), failures


def has_likelihood(simulator: Simulator) -> bool:
    """Whether log p(x given theta) is tractable."""
    return _optional(simulator, "log_likelihood") is not None


def log_likelihood(simulator: Simulator, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
    """The simulator's log p(x given theta), theta (..., N, D) -> (..., N), at a copy of theta.

    Raises:
        ValueError: it has none.
        InputError: it returned something else, or changes x.
    """
    if not has_likelihood(simulator):
        raise ValueError(f"simulator {simulator.name!r} has no log_likelihood")
    values = _asked(simulator, "log_likelihood", x, theta.clone(), x)
    values = real_tensor(values, f"simulator {simulator.name!r}: log_likelihood").to(theta.device)
    rows = len(next(iter(x.values())))
    expected = torch.broadcast_shapes(theta.shape[:-1], (rows,))
    if values.shape != expected:
        raise InputError(
            f"simulator {simulator.name!r}: log_likelihood gave shape {tuple(values.shape)} for theta {tuple(theta.shape)} "
            f"and {rows} rows of x, expected {tuple(expected)}"
        )
    return values


def likelihood_data(simulator: Simulator, x: Data) -> Data:
    """What `log_likelihood` needs of x: x itself, or less where the simulator says so."""
    reduced = _optional(simulator, "reduced")
    return x if reduced is None else reduced(x)


def likelihood_trust(simulator: Simulator, theta: Tensor, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How far a learned likelihood is to be trusted at draws theta (L, N, D), (N,) each; nothing for the simulator's own."""
    trust = _optional(simulator, "trust")
    return {} if trust is None else trust(theta, x)


def canonical(simulator: Simulator, x: Mapping[str, Tensor]) -> Data:
    """x without what no likelihood sees of it, where the simulator says what that is."""
    x = in_one_form(simulator, x)
    own = _optional(simulator, "canonical")
    return x if own is None else x | dict(_asked(simulator, "canonical", x, x))


def has_signal(simulator: Simulator) -> bool:
    """Whether it simulates in two steps, signal and noise."""
    return _optional(simulator, "signal") is not None and _optional(simulator, "observe") is not None


def signal_of(
    simulator: Simulator, theta: Tensor, context: Mapping[str, Tensor] | None, *, generator: torch.Generator
) -> Data:
    """Noise-free data and observing conditions of theta (N, D), (N, ...) each.

    Raises:
        ValueError: the simulator does not simulate in two steps.
        InputError: it returned something else than it declares.
    """
    if not has_signal(simulator):
        raise ValueError(
            f"simulator {simulator.name!r} has no `signal` and `observe`: its noise cannot be drawn apart; set simulate.signal: false"
        )
    given = theta.detach().clone(), None if context is None else {k: v.clone() for k, v in context.items()}
    signal = _optional(simulator, "signal")(*given, generator=generator)
    x = data_of(simulator, signal, rows=len(theta), device=theta.device, method="signal")
    return in_one_form(simulator, x)


def observe(simulator: Simulator, signal: Data, theta: Tensor, *, generator: torch.Generator) -> Data:
    """x from what `signal_of` gave, which stays as it is: noise drawn anew."""
    given = {k: v.clone() for k, v in signal.items()}, theta.detach().clone()
    x = _optional(simulator, "observe")(*given, generator=generator)
    return in_one_form(simulator, data_of(simulator, x, rows=len(theta), device=theta.device, method="observe"))


def data_observables(simulator: Simulator) -> tuple[Observable, ...]:
    """Observables with role `data`, in order."""
    return tuple(o for o in simulator.observables if o.role == "data")


def context_of(simulator: Simulator, x: Mapping[str, Tensor]) -> Data:
    """The part of x that is observing conditions."""
    return {o.name: x[o.name] for o in simulator.observables if o.role == "context"}


def network_features(simulator: Simulator, x: Mapping[str, Tensor]) -> Tensor:
    """Inputs of the network, (N, F): the simulator's `features`, or the canonical x flattened.

    Raises:
        InputError: features of another shape, complex, or no numbers; or x is changed.
    """
    rows = len(next(iter(x.values())))
    if _optional(simulator, "features") is None:
        plain = canonical(simulator, x)
        return torch.cat([plain[o.name].reshape(rows, -1) for o in simulator.observables], dim=1)
    features = tensor_without_gradient(simulator, "features", _asked(simulator, "features", x, x))
    if features.dim() != 2 or len(features) != rows:
        raise InputError(
            f"simulator {simulator.name!r}: features gave {tuple(features.shape)}, expected (N, F) with N = {rows}"
        )
    return features.to(next(iter(x.values())).device)


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
    if _optional(simulator, "pilot") is None:
        return None
    answer = _asked(simulator, "pilot", x, x)
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise InputError(
            f"simulator {simulator.name!r}: pilot must give location and scale, got {type(answer).__name__}"
        )
    device = next(iter(x.values())).device
    location, scale = (tensor_without_gradient(simulator, "pilot", v).to(device) for v in answer)
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


def candidates_of(simulator: Simulator, x: Mapping[str, Tensor]) -> Tensor | None:
    """Where a search for modes of the posterior of ONE x of one row should start, (C, D), float64; None where it does not say.

    Rows with numbers that are not finite are left out; a component beyond the range of its prior is moved to its nearest end,
    a thousandth of the way to the median. With a joint prior, rows outside its support are left out.

    Raises:
        ValueError: several rows, or the wrong shape.
    """
    candidates = _optional(simulator, "candidates")
    if candidates is None:
        return None
    rows, dimension = len(next(iter(x.values()))), len(simulator.parameters)
    if rows != 1:
        raise ValueError(f"candidates: expected x of one row, got {rows}")
    theta = torch.as_tensor(candidates(x)).detach()
    if theta.dim() != 2 or theta.shape[1] != dimension:
        raise ValueError(
            f"simulator {simulator.name!r}: candidates must give a tensor (C, {dimension}), got {tuple(theta.shape)}"
        )
    theta = theta.double()[theta.isfinite().all(-1)]
    joint = getattr(simulator, "prior", None)
    if joint is not None:
        return theta[torch.as_tensor(joint.support.check(theta), device=theta.device)]
    moved = [_into_support(p.prior, column) for p, column in zip(simulator.parameters, theta.unbind(-1), strict=True)]
    return torch.stack(moved, dim=-1)


def _into_support(prior: Distribution | None, value: Tensor) -> Tensor:
    """Values of one parameter, those outside the open support of its prior moved inside."""
    if prior is None:
        return value
    support: Any = prior.support
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    center = prior.icdf(torch.tensor(0.5, dtype=torch.float64)).to(value)
    for end, beyond in ((low, value.le), (high, value.ge)):
        if end is not None:
            bound = torch.as_tensor(end).to(value)
            value = torch.where(beyond(bound), bound + INWARDS * (center - bound), value)
    return value


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
