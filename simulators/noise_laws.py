r"""Laws of independent standardised residuals: Gaussian, Student-t, or a mixture with outliers.

    r_m  =  s_m eps_m,      eps_m ~ f  independently

f = N(0, 1) for `gaussian`. For the others s_m is the scale of the core, not the standard deviation of all. What a law depends on
is a number or a parameter of theta.

| parameter | default | why |
|---|---|---|
| freedom | 4 | student_t: fixed, since few residuals tell it; may be given a prior |
| outlier_fraction | uniform 0..0.3 | mixture: an outlier is the exception |
| outlier_width | 5 | mixture: of outliers, in units of the core; always fixed |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import StudentT

from simulators.observing_design import check_keys
from simulators.orbit import Quantity, declare
from simulators.priors import PriorSpec, global_generators_from
from simulators.protocol import Parameter

LOG_TWO_PI = math.log(2 * math.pi)
LIKELIHOODS: dict[str, tuple[str, ...]] = {
    "gaussian": (),
    "student_t": ("freedom",),
    "mixture": ("outlier_fraction", "outlier_width"),
}
DEFAULTS: dict[str, float | PriorSpec] = {
    "freedom": 4.0,
    "outlier_fraction": {"uniform": [0, 0.3]},
    "outlier_width": 5.0,
}
LABELS = {"freedom": r"$\nu$", "outlier_fraction": r"$\phi$"}


class NoiseLaw(Protocol):
    """f of independent standardised residuals eps (..., N, M)."""

    def log_density(self, eps: Tensor) -> Tensor:
        """log f, (..., N, M)."""
        ...

    def weight(self, eps: Tensor) -> Tensor:
        """-(d log f / d eps) / eps, what a least-squares fit counts a residual for: 1 of a Gaussian, near 0 of an outlier."""
        ...

    def draw(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """eps of the given shape (N, M)."""
        ...


@dataclass(frozen=True)
class GaussianNoise:
    """f = N(0, 1)."""

    def log_density(self, eps: Tensor) -> Tensor:
        return -0.5 * (eps.square() + LOG_TWO_PI)

    def weight(self, eps: Tensor) -> Tensor:
        return torch.ones_like(eps)

    def draw(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=dtype)


@dataclass(frozen=True)
class StudentNoise:
    r"""$f(\epsilon) \propto (1 + \epsilon^2 / \nu)^{-(\nu + 1)/2}$.

    Attributes:
        freedom: nu, (..., N, 1).
    """

    freedom: Tensor

    def log_density(self, eps: Tensor) -> Tensor:
        nu = self.freedom
        constant = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - 0.5 * torch.log(nu * math.pi)
        return constant - (nu + 1) / 2 * torch.log1p(eps.square() / nu)

    def weight(self, eps: Tensor) -> Tensor:
        return (self.freedom + 1) / (self.freedom + eps.square())

    def draw(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        with global_generators_from(generator):
            return StudentT(self.freedom.to(dtype).expand(tuple(shape))).sample()


@dataclass(frozen=True)
class MixtureNoise:
    r"""$f = (1 - \phi) N(0, 1) + \phi N(0, s)$ (outliers as in Kunz, Bassett and Hlozek 2007, https://arxiv.org/abs/astro-ph/0611004).

    Attributes:
        fraction: phi, (..., N, 1).
        width: s, in units of the core.
    """

    fraction: Tensor
    width: float

    def log_density(self, eps: Tensor) -> Tensor:
        return torch.logaddexp(*self._parts(eps))

    def weight(self, eps: Tensor) -> Tensor:
        core, outlier = self._parts(eps)
        share = torch.sigmoid(core - outlier)  # probability of the core
        return share + (1 - share) / self.width**2

    def draw(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        options = {"generator": generator, "device": generator.device, "dtype": dtype}
        outlier = torch.rand(tuple(shape), **options) < self.fraction
        return torch.randn(tuple(shape), **options) * torch.where(outlier, self.width, 1.0)

    def _parts(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities of core and outliers, weighted."""
        phi = self.fraction.clamp(1e-12, 1 - 1e-7)
        core = torch.log1p(-phi) - 0.5 * (eps.square() + LOG_TWO_PI)
        outlier = phi.log() - math.log(self.width) - 0.5 * ((eps / self.width).square() + LOG_TWO_PI)
        return core, outlier


@dataclass(frozen=True)
class NoiseModel:
    """Which law, and what it depends on.

    Attributes:
        likelihood: gaussian, student_t or mixture.
        quantities: `freedom`, or `outlier_fraction` and `outlier_width`.
    """

    likelihood: str
    quantities: Mapping[str, Quantity]

    @property
    def is_gaussian(self) -> bool:
        return self.likelihood == "gaussian"

    def law(self, theta: Tensor) -> NoiseLaw:
        """The law given theta (..., N, D)."""
        value = {
            name: torch.as_tensor(q.of(theta), dtype=theta.dtype, device=theta.device)
            for name, q in self.quantities.items()
        }
        if self.likelihood == "student_t":
            return StudentNoise(value["freedom"])
        if self.likelihood == "mixture":
            return MixtureNoise(value["outlier_fraction"], float(value["outlier_width"]))
        return GaussianNoise()


def quantities_of(likelihood: str, *, owner: str) -> tuple[str, ...]:
    """Names of what a law depends on.

    Raises:
        ValueError: an unknown law.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"{owner}: likelihood: expected one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
    return LIKELIHOODS[likelihood]


def declare_noise(
    declared: list[Parameter], likelihood: str, values: Mapping[str, float | PriorSpec], *, owner: str
) -> NoiseModel:
    """A noise model whose free parameters are appended to `declared`.

    Args:
        values: numbers or priors in place of `DEFAULTS`.
        owner: the simulator that messages name.

    Raises:
        ValueError: an unknown law or key, or a value outside its domain.
    """
    names = quantities_of(likelihood, owner=owner)
    if values and not names:
        raise ValueError(f"{owner}: likelihood gaussian has no parameters, got {', '.join(values)}")
    check_keys(values, names, f"{owner}: likelihood {likelihood}")
    chosen = DEFAULTS | dict(values)
    quantities = {n: declare(declared, chosen[n], n, label=LABELS.get(n, n), owner=owner) for n in names}
    _check(quantities, declared, owner)
    return NoiseModel(likelihood, quantities)


def _check(quantities: Mapping[str, Quantity], declared: Sequence[Parameter], owner: str) -> None:
    """Parameters, or all of their priors, within their domain; `outlier_width` is a number."""
    width = quantities.get("outlier_width")
    if width is not None and (width.index is not None or width.value <= 1):
        raise ValueError(f"{owner}: outlier_width: expected a number above 1, in units of the core")
    ends = torch.tensor([1e-6, 1 - 1e-6], dtype=torch.float64)
    for name, low, high in (("freedom", 0.0, math.inf), ("outlier_fraction", 0.0, 1.0)):
        value = quantities.get(name)
        if value is None:
            continue
        prior = None if value.index is None else declared[value.index].prior
        values = [value.value] if prior is None else prior.icdf(ends).tolist()
        if not all(low < v < high for v in values):
            raise ValueError(f"{owner}: {name}: expected a value between {low:g} and {high:g}, got {values}")
