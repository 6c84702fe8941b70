"""Benchmark task gaussian_linear: the mean of a Gaussian under a Gaussian prior, in ten dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from simulators.benchmark.numbered_parameters import numbered_parameters
from simulators.priors import distribution_from_spec
from simulators.protocol import Data, Observable

DIMENSION = 10
NOISE_SCALE = math.sqrt(0.1)
PRIOR_SCALE = math.sqrt(0.1)


class GaussianLinear:
    r"""Mean of a Gaussian of known width, Gaussian prior: D = M = 10.

        x = theta + noise,   noise ~ N(0, s),   theta ~ N(0, s) in every component,   s^2 = 0.1

    The benchmark's "scale" 0.1 is the variance. The posterior is N(x/2, s/sqrt(2)).
    Reference: Lueckmann et al. 2021, https://arxiv.org/abs/2101.04653, appendix T.1.
    """

    name = "gaussian_linear"

    def __init__(self) -> None:
        prior = distribution_from_spec({"normal": [0, PRIOR_SCALE]})
        self.parameters = numbered_parameters([prior] * DIMENSION)
        self.observables = (Observable("x", (DIMENSION,)),)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """x = theta + noise, (N, 10) -> (N, 10)."""
        noise = torch.randn(theta.shape, generator=generator, device=theta.device, dtype=theta.dtype)
        return {"x": theta + NOISE_SCALE * noise}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""$\log p(x|\theta) = -\frac{1}{2} |x - \theta|^2 / s^2 - \frac{M}{2} \log 2\pi s^2$, (..., N, 10) -> (..., N)."""
        residual = (x["x"].to(theta) - theta) / NOISE_SCALE
        return -0.5 * residual.square().sum(-1) - 0.5 * DIMENSION * math.log(2 * math.pi * NOISE_SCALE**2)
