"""Benchmark task gaussian_mixture: the common mean of two Gaussians, one wide and one narrow."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from simulators.benchmark.numbered_parameters import numbered_parameters
from simulators.priors import distribution_from_spec
from simulators.protocol import Data, Observable

WIDE, NARROW = 1.0, 0.1


class GaussianMixture:
    r"""Common mean of a wide and a narrow Gaussian: D = M = 2.

        x ~ 1/2 N(theta, 1) + 1/2 N(theta, 0.1),   theta ~ U(-10, 10) in both components

    Both components of one x come from the same Gaussian. Versions of sbibm before 1.1 chose one Gaussian for
    a whole batch of x; the density and the reference posteriors were those above all the time.
    Reference: Lueckmann et al. 2021, https://arxiv.org/abs/2101.04653, appendix T.7.
    """

    name = "gaussian_mixture"

    def __init__(self) -> None:
        self.parameters = numbered_parameters([distribution_from_spec({"uniform": [-10, 10]})] * 2)
        self.observables = (Observable("x", (2,)),)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """x = theta + scale noise, scale 1 or 0.1 for each row, (N, 2) -> (N, 2)."""
        options = {"generator": generator, "device": theta.device, "dtype": theta.dtype}
        wide = torch.rand((theta.shape[0], 1), **options) < 0.5
        return {"x": theta + torch.where(wide, WIDE, NARROW) * torch.randn(theta.shape, **options)}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""$\log \sum_s \frac{1}{2} \frac{1}{2\pi s^2} e^{-|x - \theta|^2 / 2 s^2}$, s = 1 and 0.1, (..., N, 2) -> (..., N)."""
        distance2 = (x["x"].to(theta) - theta).square().sum(-1)
        wide, narrow = (-0.5 * distance2 / s**2 - math.log(2 * math.pi * s**2) for s in (WIDE, NARROW))
        return torch.logaddexp(wide, narrow) - math.log(2)
