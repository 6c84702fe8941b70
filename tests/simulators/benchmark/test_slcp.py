"""slcp against its reference draws and torch's multivariate normal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from simulators.benchmark.slcp import Slcp


def exact(theta: Tensor) -> MultivariateNormal:
    """The distribution of one point, theta (N, 5)."""
    s1, s2, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, theta[:, 4].tanh()
    covariance = torch.stack([s1**2 + 1e-6, rho * s1 * s2, rho * s1 * s2, s2**2 + 1e-6], dim=-1).reshape(-1, 2, 2)
    return MultivariateNormal(theta[:, :2], covariance)


def test_log_likelihood_is_that_of_four_points(draw) -> None:
    theta, x = draw(Slcp(), 200)
    expected = exact(theta).log_prob(x["x"].reshape(-1, 4, 2).transpose(0, 1)).sum(0)
    torch.testing.assert_close(Slcp().log_likelihood(theta, x), expected)
    single = {"x": x["x"].float()}
    torch.testing.assert_close(Slcp().log_likelihood(theta.float(), single).double(), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("number", range(5))
def test_reference_draws_follow_the_joint_density(observed, stein, number: int) -> None:
    _, x, draws = observed("slcp")[number]
    assert float(stein(Slcp(), x, draws, bound=3).abs().max()) < 5


def test_simulations_have_the_entropy_of_the_density(draw) -> None:
    theta, x = draw(Slcp(), 20000)
    excess = Slcp().log_likelihood(theta, x) + 4 * exact(theta).entropy()  # minus half of chi2_8, plus 4
    assert abs(float(excess.mean())) < 5 * 2 / 20000**0.5
    assert abs(float(excess.var()) / 4 - 1) < 0.1


def test_score_of_simulations_is_zero_on_average(score_at_truth) -> None:
    theta = torch.tensor([0.7, -2.9, -1.0, -0.9, 0.6], dtype=torch.float64)
    assert float(score_at_truth(Slcp(), theta).abs().max()) < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_of_zero_and_far_away_are_finite(dtype: torch.dtype) -> None:
    theta = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1e-4, 3, 3], [1e4, 0, 0.5, 0.5, -3]], dtype=dtype, requires_grad=True)
    log_likelihood = Slcp().log_likelihood(theta, {"x": torch.full((3, 8), 5.0, dtype=dtype)})
    (gradient,) = torch.autograd.grad(log_likelihood.sum(), theta)
    assert bool(log_likelihood.isfinite().all())
    assert bool((log_likelihood < -1e6).all())
    assert bool(gradient.isfinite().all())
