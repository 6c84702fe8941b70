r"""Distributions of the noise that a flow transforms, with widened forms of them.

    normal     N(0, b^2 I)
    student    multivariate Student-t with fixed degrees of freedom, scale b

b = 1 is the base itself; b > 1 gives the same flow heavier tails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.settings import FlowSettings


class Base(Protocol):
    """Noise (M, D) and its density."""

    def noise(self, count: int, *, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Draws with b = 1, (count, D), that depend on the generator alone."""
        ...

    def widen(self, noise: Tensor, scale: float) -> Tensor:
        """Draws with b = `scale` from draws with b = 1."""
        ...

    def log_prob(self, noise: Tensor, scale: float) -> Tensor:
        """Log density with b = `scale`, (M, D) -> (M,)."""
        ...


@dataclass(frozen=True)
class NormalBase:
    r"""$\log N(z; 0, b^2 I) = -\frac{1}{2} |z/b|^2 - D (\frac{1}{2} \log 2\pi + \log b)$.

    Attributes:
        dimension: D.
    """

    dimension: int

    def noise(self, count: int, *, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.randn(count, self.dimension, generator=generator, device=device, dtype=dtype)

    def widen(self, noise: Tensor, scale: float) -> Tensor:
        return scale * noise

    def log_prob(self, noise: Tensor, scale: float) -> Tensor:
        constant = self.dimension * (0.5 * math.log(2 * math.pi) + math.log(scale))
        return -0.5 * (noise / scale).square().sum(-1) - constant


@dataclass(frozen=True)
class StudentBase:
    r"""Multivariate Student-t with $\nu$ degrees of freedom, $z = b\, n / \sqrt{\chi^2_\nu / \nu}$, n standard normal.

    $$ \log t(z) = \log \Gamma(\tfrac{\nu+D}{2}) - \log \Gamma(\tfrac{\nu}{2}) - \tfrac{D}{2} \log(\nu\pi) - D \log b
       - \tfrac{\nu+D}{2} \log(1 + \tfrac{|z/b|^2}{\nu}) $$

    Attributes:
        dimension: D.
        freedom: degrees of freedom, an integer: chi^2 is then a sum of that many squared normal numbers.
    """

    dimension: int
    freedom: int

    def noise(self, count: int, *, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
        z = torch.randn(count, self.dimension + self.freedom, generator=generator, device=device, dtype=dtype)
        normal, others = z.split([self.dimension, self.freedom], dim=1)
        return normal / others.square().mean(1, keepdim=True).sqrt()

    def widen(self, noise: Tensor, scale: float) -> Tensor:
        return scale * noise

    def log_prob(self, noise: Tensor, scale: float) -> Tensor:
        d, freedom = self.dimension, self.freedom
        constant = math.lgamma((freedom + d) / 2) - math.lgamma(freedom / 2) - d / 2 * math.log(freedom * math.pi)
        spread = torch.log1p((noise / scale).square().sum(-1) / freedom)
        return constant - d * math.log(scale) - (freedom + d) / 2 * spread


def base_distribution(dimension: int, settings: FlowSettings) -> NormalBase | StudentBase:
    """The base that the settings name."""
    if settings.base == "student":
        return StudentBase(dimension, settings.base_freedom)
    return NormalBase(dimension)
