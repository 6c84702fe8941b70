r"""Point-spread function of the LAT: a core and a tail, each a King function of the angle r.

    f(r) = f_core K(r / s_p; sigma_core, gamma_core) + (1 - f_core) K(r / s_p; sigma_tail, gamma_tail)
    K(x; sigma, gamma) = 1 / (2 pi sigma^2) (1 - 1 / gamma) (1 + x^2 / (2 gamma sigma^2))^-gamma

with integral of 2 pi x K dx = 1 (Fermi-LAT performance pages of Pass 8; small angles: solid angle 2 pi r dr).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class King:
    """One King function. Attributes: sigma and gamma > 1, dimensionless."""

    sigma: float
    gamma: float

    def density(self, x: Tensor) -> Tensor:
        r"""K(x), per unit area of x."""
        s, g = self.sigma, self.gamma
        return (1 - 1 / g) / (2 * math.pi * s**2) * (1 + x.square() / (2 * g * s**2)) ** -g

    def containment(self, x: Tensor) -> Tensor:
        r"""$\int_0^x 2 \pi t K(t) dt = 1 - (1 + x^2 / 2 \gamma \sigma^2)^{1 - \gamma}$."""
        return 1 - (1 + x.square() / (2 * self.gamma * self.sigma**2)) ** (1 - self.gamma)

    def quantile(self, outside: Tensor) -> Tensor:
        r"""The x outside which a share `outside` lies: $x^2 = 2 \gamma \sigma^2 (u^{1 / (1 - \gamma)} - 1)$."""
        grown = torch.expm1(outside.log() / (1 - self.gamma))
        return (2 * self.gamma * self.sigma**2 * grown).sqrt()


@dataclass(frozen=True)
class KingPsf:
    """Core and tail.

    Attributes:
        core, tail: the two King functions.
        core_share: share of the photons in the core.
        scale_rad: s_p, radians a unit of x.
    """

    core: King
    tail: King
    core_share: float
    scale_rad: float

    def density(self, r: Tensor) -> Tensor:
        """f(r) per steradian, r in rad."""
        x = r / self.scale_rad
        mixed = self.core_share * self.core.density(x) + (1 - self.core_share) * self.tail.density(x)
        return mixed / self.scale_rad**2

    def containment(self, r: Tensor) -> Tensor:
        """Share of the photons within r (rad)."""
        x = r / self.scale_rad
        return self.core_share * self.core.containment(x) + (1 - self.core_share) * self.tail.containment(x)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` angles (rad), on the device of the generator, float32."""
        u = torch.rand(2, count, generator=generator, device=generator.device)
        outside = 1 - u[1]  # never zero
        x = torch.where(u[0] < self.core_share, self.core.quantile(outside), self.tail.quantile(outside))
        return self.scale_rad * x


def displace(phi: Tensor, z: Tensor, r: Tensor, azimuth: Tensor) -> tuple[Tensor, Tensor]:
    r"""Longitude (rad, in -pi..pi) and z at angle r (rad) from (phi, z), in direction `azimuth` (rad, from north).

    $z' = z \cos r + \sqrt{1 - z^2} \sin r \cos\psi$,
    $\tan(\phi' - \phi) = \sin r \sin\psi / (\sqrt{1 - z^2} \cos r - z \sin r \cos\psi)$.
    """
    horizontal = (1 - z.square()).sqrt()
    sine, cosine = r.sin(), r.cos()
    north = sine * azimuth.cos()
    turn = torch.atan2(sine * azimuth.sin(), horizontal * cosine - z * north)
    return phi + turn, z * cosine + horizontal * north
