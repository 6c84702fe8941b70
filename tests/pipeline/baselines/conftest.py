"""The linear Gaussian oracle as NumPy functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from simulators.linear_gaussian import LinearGaussian

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Oracle:
    """One observation of the linear Gaussian model, with everything known about it."""

    simulator: LinearGaussian
    x: torch.Tensor

    @property
    def log_evidence(self) -> float:
        return float(self.simulator.log_evidence(self.x))

    @property
    def mean(self) -> Array:
        return self.simulator.posterior(self.x).loc[0].numpy()

    @property
    def standard_deviation(self) -> Array:
        return self.simulator.posterior(self.x).stddev[0].numpy()

    def log_likelihood(self, theta: Array) -> Array:
        return self.simulator.log_likelihood(torch.from_numpy(theta)[:, None], {"x": self.x})[:, 0].numpy()

    def log_joint(self, theta: Array) -> Array:
        return self.log_likelihood(theta) + stats.norm.logpdf(theta, scale=self.simulator.prior_scale).sum(1)

    def prior_quantile(self, cube: Array) -> Array:
        return stats.norm.ppf(cube) * self.simulator.prior_scale

    def draws(self, count: int, seed: int) -> Array:
        posterior = self.simulator.posterior(self.x)
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn((count, self.simulator.dimension), generator=generator, dtype=torch.float64)
        return (posterior.loc[0] + z @ posterior.scale_tril.reshape(z.shape[1], -1).T).numpy()


@pytest.fixture
def oracle() -> Oracle:
    simulator = LinearGaussian(dimension=3)
    generator = torch.Generator().manual_seed(7)
    theta = torch.randn((1, 3), generator=generator, dtype=torch.float64)
    return Oracle(simulator, simulator.simulate(theta, generator=generator)["x"])
