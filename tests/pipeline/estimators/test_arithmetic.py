"""Noise of the log weights is measured, whatever it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.estimators.arithmetic import weight_noise
from pipeline.estimators.importance import replace_rounding, summarize
from pipeline.estimators.proposal import Amortized, weigh
from pipeline.settings import InferSettings
from pipeline.stages.verdicts import verdict_of, why_unsound


class Noisy:
    """A simulator whose likelihood has noise of a known size, the same at the same theta."""

    def __init__(self, simulator: Any, size: float) -> None:
        self.simulator, self.size = simulator, size
        self.name, self.parameters, self.observables = simulator.name, simulator.parameters, simulator.observables

    def log_likelihood(self, theta: Tensor, x: Any) -> Tensor:
        hashed = torch.frac((theta * 1e9).sum(-1).sin() * 43758.5453).abs()
        normal = math.sqrt(2) * torch.erfinv((2 * hashed - 1).clamp(-0.9999, 0.9999))
        return self.simulator.log_likelihood(theta, x) + self.size * normal


@pytest.mark.parametrize("size", [0.0, 1e-4, 0.1])
def test_noise_of_a_likelihood_is_measured(make_gaussian: Callable[..., Any], size: float) -> None:
    case = make_gaussian(dimension=3, rows=4)
    simulator = Noisy(case.simulator, size)
    q, stream = Amortized(case.network, case.condition), torch.Generator().manual_seed(1)
    draws = weigh(q, simulator, case.prior, case.x, draws=2_000, generator=stream)  # pyright: ignore[reportArgumentType]
    noise = weight_noise(draws, q, simulator, case.prior, case.x, generator=stream)  # pyright: ignore[reportArgumentType]
    assert noise.shape == (4,)
    if size == 0:
        assert float(noise.max()) < 1e-4
    else:  # the median of 32 differences scatters by a fifth
        assert bool(((noise > 0.4 * size) & (noise < 2.0 * size)).all())
    figures = replace_rounding(summarize(draws), noise).rows(slice(0, 1))
    assert bool(why_unsound(figures, 2_000)) is (size > 0.01)
    assert (verdict_of(figures, InferSettings(), 2_000) == "failed") is (size > 0.01)


def test_a_float32_likelihood_of_large_numbers_is_noise(make_gaussian: Callable[..., Any]) -> None:
    """A constant of 1e6 nats in float32 leaves steps of 0.06 nats."""
    case = make_gaussian(dimension=2, rows=1)

    class Single(Noisy):
        def log_likelihood(self, theta: Tensor, x: Any) -> Tensor:
            return (self.simulator.log_likelihood(theta, x).float() - 1e6).double()

    simulator, stream = Single(case.simulator, 0.0), torch.Generator().manual_seed(1)
    q = Amortized(case.network, case.condition)
    draws = weigh(q, simulator, case.prior, case.x, draws=2_000, generator=stream)  # pyright: ignore[reportArgumentType]
    noise = weight_noise(draws, q, simulator, case.prior, case.x, generator=stream)  # pyright: ignore[reportArgumentType]
    assert "rounding" in why_unsound(replace_rounding(summarize(draws), noise), 2_000)


def test_draws_that_coincide_are_no_posterior(make_gaussian: Callable[..., Any]) -> None:
    """Their weights are equal: an ESS fraction of 1 and a Pareto k of -inf once earned `exact`."""
    case = make_gaussian(dimension=2, rows=1)
    q, stream = Amortized(case.network, case.condition), torch.Generator().manual_seed(1)
    draws = weigh(q, case.simulator, case.prior, case.x, draws=2_000, generator=stream)
    assert verdict_of(summarize(draws), InferSettings(), 2_000) == "exact"
    draws.theta[..., 1] = 4.7e14
    assert verdict_of(summarize(draws), InferSettings(), 2_000) == "failed"
    assert "different values" in why_unsound(summarize(draws), 2_000)


def test_a_likelihood_that_answers_differently_twice_is_noise(make_gaussian: Callable[..., Any]) -> None:
    """One nat of noise where theta is large, a sixth of the posterior: a median over draws saw nothing of it."""
    case = make_gaussian(dimension=2, rows=1)

    class Patchy(Noisy):
        def log_likelihood(self, theta: Tensor, x: Any) -> Tensor:
            exact = self.simulator.log_likelihood(theta, x)
            edge = self.simulator.posterior(x["x"]).mean[0, 0] + self.simulator.posterior(x["x"]).stddev[0, 0]
            return exact + torch.where(theta[..., 0] > edge, torch.randn(exact.shape, dtype=exact.dtype), 0.0)

    simulator, stream = Patchy(case.simulator, 0.0), torch.Generator().manual_seed(1)
    q = Amortized(case.network, case.condition)
    with torch.random.fork_rng():
        draws = weigh(q, simulator, case.prior, case.x, draws=2_000, generator=stream)  # pyright: ignore[reportArgumentType]
        noise = weight_noise(draws, q, simulator, case.prior, case.x, generator=stream)  # pyright: ignore[reportArgumentType]
    assert "noise of the likelihood" in why_unsound(replace_rounding(summarize(draws), noise), 2_000)
