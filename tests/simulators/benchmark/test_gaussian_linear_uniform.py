"""gaussian_linear_uniform against its reference draws."""

from __future__ import annotations

import pytest
import torch

from simulators.benchmark.gaussian_linear_uniform import GaussianLinearUniform
from simulators.priors import prior_of


@pytest.mark.parametrize("number", range(5))
def test_reference_draws_follow_the_joint_density(observed, stein, number: int) -> None:
    _, x, draws = observed("gaussian_linear_uniform")[number]
    assert float(draws.abs().max()) <= 1
    assert float(stein(GaussianLinearUniform(), x, draws, bound=1).abs().max()) < 5


def test_the_prior_is_the_cube() -> None:
    prior = prior_of(GaussianLinearUniform())
    theta = torch.zeros(2, 10, dtype=torch.float64)
    theta[1, 3] = 1.01
    expected = torch.tensor([-10 * torch.log(torch.tensor(2.0)), -torch.inf], dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(theta), expected)


def test_score_of_simulations_is_zero_on_average(score_at_truth) -> None:
    theta = torch.linspace(-0.9, 0.9, 10, dtype=torch.float64)
    assert float(score_at_truth(GaussianLinearUniform(), theta).abs().max()) < 5
