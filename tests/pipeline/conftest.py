"""Networks whose q is known in closed form: Gaussian, at a known distance from the linear Gaussian posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.affine import ConditionalAffine
from pipeline.estimators.coupling import Conditioner
from pipeline.estimators.network import Condition, PosteriorNetwork, network_input
from pipeline.settings import EmbeddingSettings, FlowSettings
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of
from simulators.protocol import Data


class PilotedGaussian(LinearGaussian):
    """The linear Gaussian model whose pilot is its exact posterior mean and width."""

    def pilot(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        posterior = self.posterior(x["x"])
        return posterior.mean, posterior.stddev.expand_as(posterior.mean)


@dataclass(frozen=True)
class GaussianCase:
    r"""q = N(mu + L d, s^2 Sigma) where the posterior is N(mu, Sigma = L L^T), for N observations, in float64.

    Attributes:
        kl: KL(q || posterior) = [D s^2 - D - D log s^2 + |d|^2] / 2, the same for every observation.
    """

    simulator: LinearGaussian
    prior: Distribution
    x: Data
    network: PosteriorNetwork
    condition: Condition
    kl: float

    @property
    def log_evidence(self) -> Tensor:
        return self.simulator.log_evidence(self.x["x"])

    @property
    def affine(self) -> ConditionalAffine:
        return next(m for m in self.network.modules() if isinstance(m, ConditionalAffine))

    def log_likelihood(self, theta: Tensor) -> Tensor:
        return self.simulator.log_likelihood(theta, self.x)

    def log_joint(self, theta: Tensor) -> Tensor:
        return self.log_likelihood(theta) + self.prior.log_prob(theta)


def gaussian_case(*, dimension: int = 3, rows: int = 4, shift: float = 0.0, scale: float = 1.0) -> GaussianCase:
    """q displaced by d = (shift, shift, ...) posterior widths and `scale` times as wide as the posterior."""
    simulator = PilotedGaussian(dimension=dimension, size=max(5, dimension))
    generator = torch.Generator().manual_seed(11)
    theta = torch.randn(rows, dimension, dtype=torch.float64, generator=generator)
    x = simulator.simulate(theta, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PosteriorNetwork(
            prior_of(simulator),
            simulator.size,
            flow=FlowSettings(transforms=2, hidden=8, blocks=1, bins=4),
            embedding=EmbeddingSettings(kind="none"),
        ).double()
    covariance = simulator.posterior(x["x"]).covariance_matrix.reshape(-1, dimension, dimension)[0]
    width = covariance.diagonal().sqrt()
    factor = torch.linalg.cholesky(covariance / width / width[:, None])
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Conditioner):  # splines that are the identity
                module.last.weight.zero_()
                module.last.bias.zero_()
            if isinstance(module, ConditionalAffine):
                below = torch.tril_indices(dimension, dimension, -1)
                mean = factor @ torch.full((dimension,), shift, dtype=torch.float64)
                log_diagonal = 8 * torch.atanh((scale * factor.diagonal()).log() / 8)  # limited to e^8 by tanh
                module.network[-1].bias.copy_(torch.cat([mean, log_diagonal, scale * factor[below[0], below[1]]]))
    condition = network.condition(network_input(simulator, x))
    kl = 0.5 * dimension * (scale**2 - 1 - 2 * math.log(scale) + shift**2)
    return GaussianCase(simulator, prior_of(simulator), x, network, condition, kl)


@pytest.fixture
def make_gaussian() -> Callable[..., GaussianCase]:
    """`gaussian_case`, for tests in other files."""
    return gaussian_case
