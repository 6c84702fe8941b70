"""Priors: specifications in configs, independent products, and reproducible draws.

A specification is a one-key mapping from the name of a distribution to its numbers, as in YAML:
`{normal: [1.6, 10]}`, `{uniform: [0, 1]}`. N(m, s) has standard deviation s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta, Distribution, HalfNormal, LogNormal, Normal, Uniform, constraints
from torch.distributions.transforms import Transform

from simulators.errors import InputError
from simulators.protocol import Simulator

PriorSpec = Mapping[str, Sequence[float] | float]


class BetaWithQuantiles(Beta):
    """Beta distribution with the quantile function that torch's lacks (proposals and nested samplers use it)."""

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile function, by SciPy: not differentiable."""
        from scipy.special import betaincinv

        a, b, q = (v.detach().cpu().double().numpy() for v in (self.concentration1, self.concentration0, value))
        return torch.as_tensor(betaincinv(a, b, q)).to(value)


_FAMILIES: dict[str, tuple[Callable[..., Distribution], str]] = {
    "normal": (Normal, "mean, standard deviation"),
    "uniform": (Uniform, "low, high"),
    "half_normal": (HalfNormal, "scale"),
    "log_normal": (LogNormal, "mean and standard deviation of the logarithm"),
    "beta": (BetaWithQuantiles, "a, b"),
}


def distribution_from_spec(spec: PriorSpec, what: str = "prior") -> Distribution:
    """Build a univariate distribution, in float64.

    >>> distribution_from_spec({"uniform": [0, 2]}).support
    Interval(lower_bound=0.0, upper_bound=2.0)

    Raises:
        ValueError: unknown family, wrong count of numbers, or numbers outside their domain.
    """
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ValueError(f"{what}: expected one of {{{', '.join(_FAMILIES)}: [numbers]}}, got {spec!r}")
    ((family, numbers),) = spec.items()
    if family not in _FAMILIES:
        raise ValueError(f"{what}: unknown distribution {family!r}; known: {', '.join(_FAMILIES)}")
    build, meaning = _FAMILIES[family]
    numbers = list(numbers) if isinstance(numbers, Sequence) else [numbers]
    if len(numbers) != len(meaning.replace(" and ", ", ").split(", ")):
        raise ValueError(f"{what}: {family} takes [{meaning}], got {numbers}")
    try:
        arguments = [torch.tensor(float(v), dtype=torch.float64) for v in numbers]
    except (TypeError, ValueError):
        raise ValueError(f"{what}: {family} takes numbers [{meaning}], got {numbers}") from None
    if not all(bool(v.isfinite()) for v in arguments):
        raise ValueError(f"{what}: {family} takes finite numbers, got {numbers}")
    try:
        build(*arguments, validate_args=True)
    except ValueError as error:
        raise ValueError(f"{what}: {family} {numbers}: {str(error).splitlines()[0]}") from None
    return build(*arguments, validate_args=False)


class IndependentPrior(Distribution):
    r"""Product of univariate distributions.

    $\log p(\theta) = \sum_d \log p_d(\theta_d)$, -inf outside the support.

    Args:
        marginals: D univariate distributions.
    """

    arg_constraints = {}  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, marginals: Sequence[Distribution]) -> None:
        self.marginals = tuple(marginals)
        super().__init__(torch.Size(), torch.Size([len(self.marginals)]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.cat(
            [constraints.independent(m.support, 0) for m in self.marginals], dim=-1, lengths=[1] * len(self.marginals)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(theta), (..., D) -> (...)."""
        total = torch.zeros(value.shape[:-1], dtype=value.dtype, device=value.device)
        for marginal, component in zip(self.marginals, value.unbind(-1), strict=True):
            inside = in_support(marginal, component)
            safe = torch.where(inside, component, _interior_point(marginal).to(component))
            total = total + torch.where(inside, marginal.log_prob(safe), -torch.inf)
        return total

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:
        """Draws, (*sample_shape, D)."""
        return torch.stack([m.sample(torch.Size(sample_shape)) for m in self.marginals], dim=-1)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile function of every component, (..., D) -> (..., D)."""
        return torch.stack([m.icdf(v) for m, v in zip(self.marginals, value.unbind(-1), strict=True)], dim=-1)

    @property
    def mean(self) -> Tensor:
        return torch.stack([m.mean for m in self.marginals])

    @property
    def stddev(self) -> Tensor:
        return torch.stack([m.stddev for m in self.marginals])


def in_support(distribution: Distribution, value: Tensor) -> Tensor:
    """Whether each value lies in the support of a univariate distribution."""
    support: Any = distribution.support
    return support.check(value)


def _interior_point(marginal: Distribution) -> Tensor:
    """A point inside the support, so that log_prob outside it is never evaluated."""
    return marginal.mean


def prior_of(simulator: Simulator) -> Distribution:
    """The simulator's joint prior, or the product of its parameters' priors; in float64.

    `Uniform(2457000.0, 2457001.0)` is float32 in torch: its draws would be four numbers, a quarter of a day apart.

    Raises:
        ValueError: a parameter has no prior and the simulator declares no joint one, or float32 does not hold its numbers.
    """
    joint = getattr(simulator, "prior", None)
    if joint is not None:
        if tuple(joint.event_shape) != (len(simulator.parameters),) or joint.batch_shape:
            raise ValueError(
                f"simulator {simulator.name!r}: prior has batch shape {tuple(joint.batch_shape)} and event shape {tuple(joint.event_shape)}, "
                f"expected () and ({len(simulator.parameters)},): wrap independent components in torch.distributions.Independent"
            )
        return in_float64(joint)
    missing = [p.name for p in simulator.parameters if p.prior is None]
    if missing:
        raise ValueError(f"simulator {simulator.name!r}: no prior for {', '.join(missing)} and no joint `prior`")
    return IndependentPrior([in_float64(p.prior, p.name) for p in simulator.parameters if p.prior is not None])


def in_float64(distribution: Distribution, name: str = "theta") -> Distribution:
    """The distribution with its float32 numbers in float64; itself where it has none.

    Raises:
        ValueError: numbers that float32 has already lost.
    """
    if not _holds_float32(distribution):
        return distribution
    own = [v for v in vars(distribution).values() if isinstance(v, Tensor) and v.dtype == torch.float32]
    if not all(bool(v.isfinite().all()) for v in own):
        raise ValueError(
            f"prior of {name}: {distribution} holds numbers that are not finite; float32 ends at 3e38, "
            "give larger ones as torch.tensor(..., dtype=torch.float64)"
        )
    return _changed(distribution, lambda t: t.double() if t.dtype == torch.float32 else t)


def _holds_float32(value: Any) -> bool:
    """Whether any tensor in a distribution or transform, or in what it is made of, is float32."""
    if isinstance(value, Tensor):
        return value.dtype == torch.float32
    if isinstance(value, (list, tuple)):
        return any(_holds_float32(v) for v in value)
    if not isinstance(value, (Distribution, Transform)):
        return False
    return any(_holds_float32(v) for k, v in vars(value).items() if k != "_inv")


def sample(distribution: Distribution, count: int, generator: torch.Generator) -> Tensor:
    """`count` draws that depend on the generator alone, on its device: see `global_generators_from`."""
    with global_generators_from(generator):
        theta = distribution.sample((count,))
    need_in_support(distribution, theta, "prior")
    return theta.to(generator.device)


def need_in_support(distribution: Distribution, theta: Tensor, what: str) -> None:
    """Refuse draws theta (N, ..., D) that leave the support of a distribution.

    Raises:
        InputError: of another shape, not finite, or outside.
    """
    expected = (*theta.shape[:1], *distribution.batch_shape, *distribution.event_shape)
    if tuple(theta.shape) != expected:
        raise InputError(f"{what}: draws have shape {tuple(theta.shape)}, expected {expected}: mend its `sample`")
    support: Any = distribution.support
    inside = support.check(theta)
    inside = inside.reshape(len(theta), -1).all(1)  # a product checks each number
    inside = inside & theta.isfinite().reshape(len(theta), -1).all(1)
    if not bool(inside.all()):
        first = ", ".join(f"{v:.6g}" for v in theta[~inside][0].flatten().tolist())
        raise InputError(
            f"{what}: {int((~inside).sum())} of {len(theta)} draws lie outside the support of the prior, the first at theta = "
            f"({first}): mend its `sample` or its `support`"
        )


@contextmanager
def global_generators_from(generator: torch.Generator) -> Iterator[None]:
    """Let torch's global generators follow `generator`, for what draws from nothing else; restored on the way out.

    torch.distributions draw from the global generator of the device on which they lie. A generator of a GPU gives
    other numbers than one of the CPU from the same seed.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    gpus = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU too, for good
        for gpu in gpus:
            torch.cuda.default_generators[gpu.index or 0].manual_seed(seed)
        yield


def to_device(distribution: Distribution, device: torch.device | str) -> Distribution:
    """A copy with every tensor on `device`."""
    return _changed(distribution, lambda t: t.to(device))


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A change made to tensors, and to those that distributions and transforms hold; anything else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Tensor, Distribution, Transform)) for v in value):
        return type(value)(_changed(v, change) for v in value)
    if not isinstance(value, (Distribution, Transform)):
        return value
    changed = copy.copy(value)
    for key, member in vars(value).items():
        if key == "_inv" and type(value).__name__ != "_InverseTransform":
            changed.__dict__[key] = (
                None  # a transform's cached link to its inverse, which would lead back to the original
            )
        else:
            changed.__dict__[key] = _changed(member, change)
    return changed
