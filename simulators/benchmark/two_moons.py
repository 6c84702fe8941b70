"""Benchmark task two_moons: a posterior of two crescents."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from simulators.benchmark.numbered_parameters import numbered_parameters
from simulators.priors import distribution_from_spec
from simulators.protocol import Data, Observable

RADIUS, WIDTH = 0.1, 0.01
OFFSET = 0.25


class TwoMoons:
    r"""A crescent whose place tells theta up to a reflection: D = M = 2.

        x = c(theta) + r (cos a, sin a),   a ~ U(-pi/2, pi/2),   r ~ N(0.1, 0.01)
        c(theta) = (0.25 - |theta_1 + theta_2| / sqrt(2),  (theta_2 - theta_1) / sqrt(2))

    and theta ~ U(-1, 1) in both components. Two modes, from the absolute value.
    Reference: Lueckmann et al. 2021, https://arxiv.org/abs/2101.04653, appendix T.8.
    """

    name = "two_moons"

    def __init__(self) -> None:
        self.parameters = numbered_parameters([distribution_from_spec({"uniform": [-1, 1]})] * 2)
        self.observables = (Observable("x", (2,)),)

    def center(self, theta: Tensor) -> Tensor:
        """c(theta), the point that the crescent lies around, (..., 2) -> (..., 2)."""
        first, second = theta.unbind(-1)
        return torch.stack([OFFSET - (first + second).abs() / math.sqrt(2), (second - first) / math.sqrt(2)], dim=-1)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """x = c(theta) + r (cos a, sin a), (N, 2) -> (N, 2)."""
        options = {"generator": generator, "device": theta.device, "dtype": theta.dtype}
        angle = math.pi * (torch.rand(theta.shape[0], **options) - 0.5)
        radius = RADIUS + WIDTH * torch.randn(theta.shape[0], **options)
        return {"x": self.center(theta) + radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""log p(x given theta), theta (..., N, 2) -> (..., N).

        With $d = x - c(\theta)$ and $r = |d|$; 1/r is the Jacobian of polar coordinates and $1/\pi$ the
        density of the angle:

        $$\log p = \log N(r; 0.1, 0.01) - \log r - \log \pi \quad (d_1 > 0),\qquad -\infty \text{ with gradient zero elsewhere}$$

        Negative radii, ten sigma out, are left out: a probability of 1e-23.
        """
        d = x["x"].to(theta) - self.center(theta)
        inside = d[..., 0] > 0
        safe = torch.where(inside[..., None], d, RADIUS)
        r = torch.hypot(safe[..., 0], safe[..., 1]).clamp(min=1e-12)
        normal = -0.5 * ((r - RADIUS) / WIDTH).square() - math.log(WIDTH * math.sqrt(2 * math.pi))
        return torch.where(inside, normal - r.log() - math.log(math.pi), -torch.inf)
