"""gaussian_linear: posterior in closed form, and the reference draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from simulators.benchmark.gaussian_linear import GaussianLinear
from simulators.priors import prior_of


def test_bayes_theorem_holds_at_any_theta(draw) -> None:
    """log p(x) = log p(x|theta) + log p(theta) - log N(theta; x/2, sqrt(0.05)), whatever theta."""
    simulator = GaussianLinear()
    theta, x = draw(simulator, 5)
    anywhere = theta + torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None, None]
    log_joint = simulator.log_likelihood(anywhere, x) + prior_of(simulator).log_prob(anywhere)
    posterior = Independent(Normal(x["x"] / 2, math.sqrt(0.05)), 1)
    evidence = Independent(Normal(torch.zeros(10, dtype=torch.float64), math.sqrt(0.2)), 1).log_prob(x["x"])
    torch.testing.assert_close(log_joint - posterior.log_prob(anywhere), evidence.expand(4, -1))


@pytest.mark.parametrize("number", range(5))
def test_reference_draws_follow_the_joint_density(observed, stein, number: int) -> None:
    _, x, draws = observed("gaussian_linear")[number]
    assert float(stein(GaussianLinear(), x, draws).abs().max()) < 5


def test_the_identities_see_a_wrong_width(observed, stein, monkeypatch: pytest.MonkeyPatch) -> None:
    _, x, draws = observed("gaussian_linear")[0]
    monkeypatch.setattr("simulators.benchmark.gaussian_linear.NOISE_SCALE", 1.1 * math.sqrt(0.1))
    assert float(stein(GaussianLinear(), x, draws).abs().max()) > 5


def test_simulations_have_the_entropy_of_the_density(draw) -> None:
    theta, x = draw(GaussianLinear(), 20000)
    log_likelihood = GaussianLinear().log_likelihood(theta, x)
    entropy = 5 * math.log(2 * math.pi * math.e * 0.1)
    assert abs(float(log_likelihood.mean()) + entropy) < 5 * math.sqrt(5 / 20000)
