"""Benchmark task slcp: simple likelihood, complex posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from simulators.benchmark.numbered_parameters import numbered_parameters
from simulators.priors import distribution_from_spec
from simulators.protocol import Data, Observable

POINTS = 4
FLOOR = 1e-6
"""Added to both variances, as in the benchmark."""


class Slcp:
    r"""Four points from a Gaussian in the plane, parametrised so that the posterior has four modes: D = 5, M = 8.

        x_i ~ N(m, S), i = 1..4,   m = (theta_1, theta_2),   s_1 = theta_3^2,   s_2 = theta_4^2,   rho = tanh(theta_5)
        S = [[s_1^2 + 1e-6, rho s_1 s_2], [rho s_1 s_2, s_2^2 + 1e-6]]

    and theta ~ U(-3, 3) in every component. x is (x_1, x_2, x_3, x_4), one point after the other.
    Reference: Papamakarios et al. 2019, https://arxiv.org/abs/1805.07226; Lueckmann et al. 2021,
    https://arxiv.org/abs/2101.04653, appendix T.3.
    """

    name = "slcp"

    def __init__(self) -> None:
        self.parameters = numbered_parameters([distribution_from_spec({"uniform": [-3, 3]})] * 5)
        self.observables = (Observable("x", (2 * POINTS,)),)

    def scales(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Cholesky factor of S: $L = [[l_{11}, 0], [l_{21}, l_{22}]]$, (..., 5) -> (...) each.

        $\det S = s_1^2 s_2^2 (1 - \rho^2) + 10^{-6} (s_1^2 + s_2^2) + 10^{-12}$ with
        $1 - \tanh^2 t = 4 \sigma(2t) \sigma(-2t)$, so that no digits cancel in float32.
        """
        s1, s2, t = theta[..., 2].square(), theta[..., 3].square(), theta[..., 4]
        one_minus_rho2 = 4 * torch.sigmoid(2 * t) * torch.sigmoid(-2 * t)
        s11 = s1.square() + FLOOR
        determinant = (s1 * s2).square() * one_minus_rho2 + FLOOR * (s1.square() + s2.square()) + FLOOR**2
        return s11.sqrt(), t.tanh() * s1 * s2 / s11.sqrt(), (determinant / s11).sqrt()

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """x_i = m + L n_i, (N, 5) -> (N, 8)."""
        shape = (theta.shape[0], POINTS, 2)
        n1, n2 = torch.randn(shape, generator=generator, device=theta.device, dtype=theta.dtype).unbind(-1)
        l11, l21, l22 = (scale[:, None] for scale in self.scales(theta))
        points = theta[:, None, :2] + torch.stack([l11 * n1, l21 * n1 + l22 * n2], dim=-1)
        return {"x": points.flatten(1)}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""log p(x given theta), theta (..., N, 5) -> (..., N).

        $$\log p = \sum_i -\frac{1}{2} |L^{-1} (x_i - m)|^2 - \log l_{11} - \log l_{22} - \log 2\pi$$
        """
        points = x["x"].to(theta).unflatten(-1, (POINTS, 2))
        d1, d2 = (points - theta[..., None, :2]).unbind(-1)
        l11, l21, l22 = self.scales(theta)
        n1 = d1 / l11[..., None]
        n2 = (d2 - l21[..., None] * n1) / l22[..., None]
        distance2 = (n1.square() + n2.square()).sum(-1)
        return -0.5 * distance2 - POINTS * (l11.log() + l22.log() + math.log(2 * math.pi))
