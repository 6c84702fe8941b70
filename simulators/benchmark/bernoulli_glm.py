"""Benchmark task bernoulli_glm: spikes of a neuron driven by noise, sufficient statistics as data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from simulators.benchmark.bernoulli_glm_raw import BernoulliGlmRaw
from simulators.protocol import Data, Observable


class BernoulliGlm:
    r"""Generalised linear model of a neuron, sufficient statistics as data: D = M = 10.

        x = V^T y,   y_t ~ Bernoulli(sigmoid(psi_t)),   psi = V theta,   t = 1..100

    V, theta and the prior as in `bernoulli_glm_raw`: x is the number of spikes, then the sum of the stimulus
    before them at nine delays. The posterior is that of the whole spike train y.
    Reference: Lueckmann et al. 2021, https://arxiv.org/abs/2101.04653, appendix T.5.
    """

    name = "bernoulli_glm"

    def __init__(self) -> None:
        self.neuron = BernoulliGlmRaw()
        self.prior = self.neuron.prior
        self.parameters = self.neuron.parameters
        self.observables = (Observable("x", (len(self.parameters),), discrete=True),)

    def statistics(self, spikes: Tensor) -> Tensor:
        """x = V^T y, (N, 100) -> (N, 10)."""
        return spikes @ self.neuron.design_matrix.to(spikes)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """Statistics of simulated spike trains, (N, 10) -> (N, 10)."""
        return {"x": self.statistics(self.neuron.simulate(theta, generator=generator)["x"])}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""log p(y given theta) for any one spike train y with the statistics x, (..., N, 10) -> (..., N).

        $$\log p(y|\theta) = x \cdot \theta - \sum_t \log(1 + e^{\psi_t})$$

        p(x given theta) is this times the number of spike trains with statistics x, which does not depend on
        theta and cannot be counted (2^100 trains): posterior and kl_gap are exact, the evidence is p(y).
        """
        psi = self.neuron.drive(theta)
        return (x["x"].to(theta) * theta).sum(-1) - torch.nn.functional.softplus(psi).sum(-1)
