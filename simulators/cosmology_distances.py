r"""Luminosity distances in a Friedmann universe of matter, dark energy and curvature, batched and differentiable.

With t = ln(1 + z), and radiation neglected (below 2e-4 mag up to z = 2.5; astropy has the same with Tcmb0 = 0),

    chi(t)  =  int_0^t e^s / E(s) ds                                               comoving distance, units c / H_0
    E^2(t)  =  Om e^(3t) + Ok e^(2t) + Ode exp(3 (1 + w0 + wa) t - 3 wa (1 - e^-t)),   Ok = 1 - Om - Ode
    D       =  (1 + z_hel) chi S(Ok chi^2),    S(y) = sinh(sqrt y) / sqrt y, or sin(sqrt -y) / sqrt -y

(Hogg 1999, https://arxiv.org/abs/astro-ph/9905116; w(a) = w0 + wa (1 - a): Linder 2003, https://arxiv.org/abs/astro-ph/0208512).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

NODES = 32
"""Of the quadrature: 1e-6 mag or better up to z = 2.5 wherever the priors of `supernova_cosmology` reach."""
LEAST_RATE = 1e-8
"""Least E^2 / (1 + z)^2: where it falls below, the universe has bounced instead of beginning, and there is no distance."""
SERIES = 18
"""Terms of S(y): relative error below 1e-15 for |y| up to 30."""


@dataclass(frozen=True)
class Cosmology:
    """Density and equation-of-state parameters at z = 0, each (..., N, 1), or a number.

    Attributes:
        matter: Om.
        dark_energy: Ode.
        w0, wa: w(a) = w0 + wa (1 - a).
    """

    matter: Tensor | float
    dark_energy: Tensor | float
    w0: Tensor | float = -1.0
    wa: Tensor | float = 0.0

    def rate_squared(self, t: Tensor) -> Tensor:
        r"""$E^2 e^{-2t} = \Omega_m e^t + \Omega_k + \Omega_{de} e^{(1 + 3 w_0 + 3 w_a) t - 3 w_a (1 - e^{-t})}$ at t (N, J): (..., N, J)."""
        exponent = (1 + 3 * self.w0 + 3 * self.wa) * t - 3 * self.wa * (-torch.expm1(-t))
        return self.matter * t.exp() + (1 - self.matter - self.dark_energy) + self.dark_energy * torch.exp(exponent)


@dataclass(frozen=True)
class RedshiftGrid:
    """What the redshifts of N surveys of M supernovae need, made once for any number of cosmologies.

    Attributes:
        nodes: t of the quadrature, (N, J).
        weights: of the integral from 0 to each redshift, (N, M, J).
        stretch: log10(1 + z_hel), (N, M).
    """

    nodes: Tensor
    weights: Tensor
    stretch: Tensor

    @classmethod
    def of(cls, redshift: Tensor, heliocentric: Tensor) -> RedshiftGrid:
        r"""Nodes and weights for redshifts (N, M), each survey up to its own largest, in float64.

        The integrand is expanded in Legendre polynomials by Gauss-Legendre quadrature, and the expansion is integrated:
        with $x = 2t/T - 1$,

        $$\chi(t) \simeq \frac{T}{2} \sum_k \frac{2k+1}{2} \Big[\sum_j w_j f(t_j) P_k(x_j)\Big] \int_{-1}^x P_k, \qquad
          \int_{-1}^x P_k = \frac{P_{k+1}(x) - P_{k-1}(x)}{2k+1}$$

        so that one evaluation of f at J nodes serves all M redshifts.
        """
        t = torch.log1p(redshift.double())
        largest = t.amax(-1, keepdim=True)  # (N, 1)
        x, projection = _legendre(NODES)
        x, projection = x.to(t.device), projection.to(t.device)
        weights = (largest / 2)[..., None] * (_integrated_legendre(2 * t / largest - 1, NODES) @ projection)
        stretch = torch.log1p(heliocentric.double()) / math.log(10)
        return cls(largest * (x + 1) / 2, weights, stretch)

    def modulus(self, cosmology: Cosmology) -> tuple[Tensor, Tensor]:
        """5 log10 of the luminosity distance in units of c / H_0 (mag), (..., N, M), and where it exists, (..., N).

        Where it does not (a bounce, or light that has passed the antipode of a closed universe) the numbers are finite and mean nothing.
        """
        rate = cosmology.rate_squared(self.nodes)
        chi = torch.einsum("nmj,...nj->...nm", self.weights, rate.clamp_min(LEAST_RATE).rsqrt())
        y = (1 - cosmology.matter - cosmology.dark_energy) * chi.square()
        transverse = chi * curvature_factor(y)
        exists = (rate > LEAST_RATE).all(-1) & (y > -(math.pi**2)).all(-1)
        return 5 * (transverse.clamp_min(1e-9).log10() + self.stretch), exists


def luminosity_distance(cosmology: Cosmology, redshift: Tensor) -> Tensor:
    """Luminosity distance in units of c / H_0, (..., N, M), for redshifts (N, M); NaN where none exists.

    >>> empty = Cosmology(matter=0.0, dark_energy=0.0)  # Milne: D = z + z^2 / 2
    >>> [round(v, 9) for v in luminosity_distance(empty, torch.tensor([[0.5, 2.0]]).double())[0].tolist()]
    [0.625, 4.0]
    """
    modulus, exists = RedshiftGrid.of(redshift, redshift).modulus(cosmology)
    return torch.where(exists[..., None], 10 ** (modulus / 5), torch.nan)


def curvature_factor(y: Tensor) -> Tensor:
    r"""$S(y) = \sum_k y^k / (2k+1)!$, one entire function of both signs of the curvature, and smooth at zero."""
    y = y.clamp(-30, 30)
    total = torch.ones_like(y)
    for k in range(SERIES, 0, -1):
        total = 1 + total * y / (2 * k * (2 * k + 1))
    return total


@cache
def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre abscissae x (J,), and w_j P_k(x_j) / 2 as (J, J), rows k."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    values = np.polynomial.legendre.legvander(x, nodes - 1)  # (j, k)
    return torch.from_numpy(x), torch.from_numpy((0.5 * w[:, None] * values).T.copy())


def _integrated_legendre(x: Tensor, degree: int) -> Tensor:
    """(2k + 1) times the integral of P_k from -1 to x, k = 0 .. degree - 1, as a last dimension."""
    polynomials = [torch.ones_like(x), x]
    for k in range(1, degree):
        polynomials.append(((2 * k + 1) * x * polynomials[k] - k * polynomials[k - 1]) / (k + 1))
    first = [x + 1]
    return torch.stack(first + [polynomials[k + 1] - polynomials[k - 1] for k in range(1, degree)], dim=-1)
