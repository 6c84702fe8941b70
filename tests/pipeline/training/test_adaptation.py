"""Adaptation: from a q that is far off to the posterior of one observation, every mode kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.estimators.importance import ess_fraction
from pipeline.estimators.proposal import Amortized, weigh
from pipeline.settings import AdaptSettings
from pipeline.training.adaptation import adapt, largest_power

MakeGaussian = Callable[..., Any]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_power_is_the_largest_that_leaves_enough_draws(share: float) -> None:
    log_weight = 20 * torch.randn(4000, 1, generator=stream(), dtype=torch.float64)
    power = largest_power(log_weight, share)
    assert 0 < power < 0.2
    assert float(ess_fraction(power * log_weight)) == pytest.approx(share, rel=1e-3)
    assert float(ess_fraction(1.01 * power * log_weight)) < share
    assert largest_power(log_weight - 1e4, share) == pytest.approx(power, rel=1e-6)
    assert largest_power(0.01 * log_weight, share) == 1


def test_draws_of_weight_zero_stay_so_at_any_power() -> None:
    log_weight = torch.zeros(100, 1, dtype=torch.float64)
    log_weight[10:] = -torch.inf
    assert math.isfinite(largest_power(log_weight, 0.05))
    assert largest_power(log_weight, 0.05) == 1


@pytest.mark.parametrize(("shift", "scale"), [(5.0, 1.0), (0.0, 0.3), (3.0, 0.5)])
def test_a_q_far_off_reaches_the_posterior(make_gaussian: MakeGaussian, shift: float, scale: float) -> None:
    case = make_gaussian(dimension=2, rows=1, shift=shift, scale=scale)
    start = weigh(
        Amortized(case.network, case.condition), case.simulator, case.prior, case.x, draws=4000, generator=stream()
    )
    before = float(ess_fraction(start.log_weight))
    assert before < 0.3
    told: list[int] = []
    adapted, calls = adapt(
        case.network,
        case.condition,
        simulator=case.simulator,
        prior=case.prior,
        x=case.x,
        first=start,
        settings=AdaptSettings(draws=2000, steps=50, learning_rate=5e-3),
        generator=stream(1),
        advance=lambda n, note=None: told.append(n),
    )
    assert sum(told) == AdaptSettings().rounds
    assert calls % 2000 == 0
    posterior = case.simulator.posterior(case.x["x"])
    exact = posterior.mean + torch.randn(2000, 1, 2, generator=stream(2), dtype=torch.float64) @ posterior.scale_tril.mT
    divergence = {
        network: float((posterior.log_prob(exact) - network.log_q(exact, case.condition).detach()).mean())
        for network in (case.network, adapted)
    }
    assert divergence[case.network] > 0.8
    assert divergence[adapted] < 0.1  # KL(posterior || q)
    assert not any(p.requires_grad for p in adapted.parameters())
    again = weigh(
        Amortized(case.network, case.condition), case.simulator, case.prior, case.x, draws=4000, generator=stream()
    )
    assert torch.equal(again.theta, start.theta)  # the network itself is untouched
