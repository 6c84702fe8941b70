"""Benchmark task bernoulli_glm_raw: spikes of a neuron driven by noise, spike train as data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from simulators.benchmark.numbered_parameters import numbered_parameters
from simulators.protocol import Data, Observable

BINS, FILTER = 100, 9
STIMULUS_SEED = 42


class BernoulliGlmRaw:
    r"""Generalised linear model of a neuron, spike train as data: D = 10, M = 100.

        x_t ~ Bernoulli(sigmoid(psi_t)),   psi = V theta,   t = 1..100
        V = [1, I_t, I_{t-1}, ..., I_{t-8}]

    theta is an offset and a filter of length 9 on the stimulus I, white noise drawn once (numpy's generator,
    seed 42). The prior is jointly normal: see `filter_prior`.
    Reference: Lueckmann et al. 2021, https://arxiv.org/abs/2101.04653, appendix T.6.
    """

    name = "bernoulli_glm_raw"

    def __init__(self) -> None:
        self.design_matrix = design_matrix()
        self.prior = filter_prior()
        self.parameters = numbered_parameters(
            [None] * (1 + FILTER), labels=[r"\beta", *(f"f_{{{k}}}" for k in range(1, FILTER + 1))]
        )
        self.observables = (Observable("x", (BINS,), discrete=True),)

    def drive(self, theta: Tensor) -> Tensor:
        """psi = V theta, the log odds of a spike in each bin, (..., 10) -> (..., 100)."""
        return theta @ self.design_matrix.to(theta).T

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """Spike trains of zeros and ones, (N, 10) -> (N, 100)."""
        psi = self.drive(theta)
        uniform = torch.rand(psi.shape, generator=generator, device=theta.device, dtype=theta.dtype)
        return {"x": (uniform < psi.sigmoid()).to(theta.dtype)}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""$\log p(x|\theta) = \sum_t x_t \psi_t - \log(1 + e^{\psi_t})$, (..., N, 10) -> (..., N)."""
        psi = self.drive(theta)
        return (x["x"].to(theta) * psi - torch.nn.functional.softplus(psi)).sum(-1)


def design_matrix() -> Tensor:
    """V, (100, 10): a column of ones, then the stimulus delayed by 0 to 8 bins (zero before it starts)."""
    rng = np.random.RandomState(STIMULUS_SEED)
    stimulus = torch.from_numpy(rng.randn(BINS).astype(np.float32)).double()
    matrix = torch.ones(BINS, 1 + FILTER, dtype=torch.float64)
    for delay in range(FILTER):
        matrix[:, 1 + delay] = torch.cat([torch.zeros(delay, dtype=torch.float64), stimulus[: BINS - delay]])
    return matrix


def filter_prior() -> MultivariateNormal:
    r"""Prior N(0, P^-1) of offset and filter, event shape (10,).

    $$P = \mathrm{diag}(\tfrac{1}{2}, F^T F),\qquad F = B^2 + \mathrm{diag}\sqrt{k/9},\ k = 0..8,$$

    B the matrix of first differences (ones on the diagonal, minus ones below it): $B^2 f$ are second
    differences, so that smooth filters are likelier. The offset has variance 2.
    """
    identity = torch.eye(FILTER, dtype=torch.float64)
    difference = identity - identity.roll(1, 0).tril()
    smoothness = difference @ difference + torch.diag((torch.arange(FILTER, dtype=torch.float64) / FILTER).sqrt())
    precision = torch.block_diag(torch.tensor([[0.5]], dtype=torch.float64), smoothness.T @ smoothness)
    return MultivariateNormal(
        torch.zeros(1 + FILTER, dtype=torch.float64), precision_matrix=precision, validate_args=False
    )
