"""Benchmark task sir: an epidemic, counted in ten samples of a thousand people."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from simulators.benchmark.numbered_parameters import numbered_parameters
from simulators.benchmark.prey_predator import solve_prey_predator
from simulators.priors import distribution_from_spec
from simulators.protocol import Data, Observable

POPULATION = 1e6
TESTED = 1000
TIMES, INTERVAL = 10, 17.0
"""Samples, and days between them; the first on day 0."""
LOG_MEDIANS, LOG_SCALES = (math.log(0.4), math.log(0.125)), (0.5, 0.2)
STEPS = 8
"""Steps an interval. Against scipy's DOP853 (rtol 1e-11) for 3000 draws of the prior, the largest error of I(t) is
2e-5 of the standard deviation of x in the median, 0.005 in 99 %, 0.04 at most."""
REACH = 5.0
"""Beyond five sigma of its prior theta counts as five sigma: there the steps would be too long."""


class Sir:
    r"""Epidemic model of susceptible, infected and recovered: D = 2, M = 10.

        dS/dt = -beta S I / N,   dI/dt = beta S I / N - gamma I,   dR/dt = gamma I
        x_i ~ Binomial(1000, I(t_i) / N),   t_i = 0, 17, ..., 153 days

    from one infected among N = 1e6, theta = (beta, gamma) per day, beta ~ LogNormal(log 0.4, 0.5),
    gamma ~ LogNormal(log 0.125, 0.2).
    Reference: Lueckmann et al. 2021, https://arxiv.org/abs/2101.04653, appendix T.9.
    """

    name = "sir"

    def __init__(self) -> None:
        priors = [distribution_from_spec({"log_normal": [m, s]}) for m, s in zip(LOG_MEDIANS, LOG_SCALES, strict=True)]
        self.parameters = numbered_parameters(priors, labels=[r"\beta", r"\gamma"])
        self.observables = (Observable("x", (TIMES,), discrete=True),)

    def log_infected(self, theta: Tensor) -> Tensor:
        """log(I / N) at the ten times, at most -1e-6, (..., 2) -> (..., 10)."""
        bounds = [
            [math.exp(m + side * REACH * s) for m, s in zip(LOG_MEDIANS, LOG_SCALES, strict=True)] for side in (-1, 1)
        ]
        low, high = torch.tensor(bounds, dtype=theta.dtype, device=theta.device)
        beta, gamma = theta.reshape(-1, 2).clamp(low, high).unbind(-1)
        log_beta = beta.log()
        _, q = solve_prey_predator(
            torch.zeros_like(gamma),
            gamma,
            log_beta + math.log1p(-1 / POPULATION),
            log_beta - math.log(POPULATION),
            interval=INTERVAL,
            count=TIMES,
            steps=STEPS,
        )
        return (q - log_beta[:, None]).clamp(max=-1e-6).unflatten(0, theta.shape[:-1])

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """Infected among a thousand, (N, 2) -> (N, 10), whole numbers."""
        share = self.log_infected(theta).double().exp()
        counts = torch.binomial(torch.full_like(share, TESTED), share, generator=generator)
        return {"x": counts.to(theta.dtype)}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""log p(x given theta), theta (..., N, 2) -> (..., N).

        $$\log p = \sum_i \log\binom{1000}{x_i} + x_i \log f_i + (1000 - x_i) \log(1 - f_i),\qquad f_i = I(t_i) / N$$
        """
        count = x["x"].double()
        choose = math.lgamma(TESTED + 1) - (count + 1).lgamma() - (TESTED - count + 1).lgamma()
        log_share = self.log_infected(theta)
        positive = x["x"].to(theta)
        odds = positive * log_share + (TESTED - positive) * torch.log(-torch.expm1(log_share))
        return (odds + choose.to(theta)).sum(-1)

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        r"""$2 \sqrt{1000} \arcsin\sqrt{x / 1000}$, (N, 10): the noise of each is 1."""
        return 2 * math.sqrt(TESTED) * (x["x"] / TESTED).sqrt().asin()
