r"""Noise of supernova magnitudes with a full covariance C: Gaussian, Student-t, or a mixture with outliers.

    r  =  C^(1/2) eps,      eps_i ~ f  independently,      log p(r) = sum_i log f(eps_i) - 1/2 log |C|

f = N(0, 1) for `gaussian`, whatever root of C is taken. For the others C^(1/2) is the symmetric root, the whitening that
stays nearest to the supernovae themselves (Kessy, Lewin and Strimmer 2018, https://arxiv.org/abs/1512.00809): an outlier is one
supernova as far as C is diagonal, and C is the covariance of the core, not of all. Supernovae that are absent have no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import StudentT

from simulators.priors import global_generators_from

LOG_TWO_PI = math.log(2 * math.pi)


class NoiseLaw(Protocol):
    """f of independent standardised residuals eps (..., N, M)."""

    symmetric: bool

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

    symmetric = False

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
    symmetric = True

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
    symmetric = True

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


def present_covariance(covariance: Tensor, present: Tensor) -> Tensor:
    """C with rows and columns of absent supernovae replaced by those of the unit matrix, (N, M, M)."""
    both = (present[:, :, None] > 0.5) & (present[:, None, :] > 0.5)
    unit = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.where(both, covariance, unit)


def coloring(covariance: Tensor, *, symmetric: bool) -> Tensor:
    """C^(1/2), (N, M, M): the symmetric root, or the lower Cholesky factor."""
    if not symmetric:
        return torch.linalg.cholesky_ex(covariance)[0]
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.sqrt()[:, None, :]) @ vectors.mT


def whitening(covariance: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """C^(-1/2), (N, M, M), and log |C|, (N,)."""
    if symmetric:
        values, vectors = torch.linalg.eigh(covariance)
        return (vectors * values.rsqrt()[:, None, :]) @ vectors.mT, values.log().sum(-1)
    factor = torch.linalg.cholesky_ex(covariance)[0]
    unit = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, unit, upper=False)
    return inverse, 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
