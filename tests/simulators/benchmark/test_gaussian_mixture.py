"""gaussian_mixture against its reference draws, and its normalisation."""

from __future__ import annotations

import math

import pytest
import torch

from simulators.benchmark.gaussian_mixture import GaussianMixture


@pytest.mark.parametrize("number", range(5))
def test_reference_draws_follow_the_joint_density(observed, cell_deviation, number: int) -> None:
    """Over the wide Gaussian, and within the narrow one: both components of theta come from the same."""
    _, x, draws = observed("gaussian_mixture")[number]
    for reach in (4.5, 0.4):
        low, high = (x["x"][0] - reach).clamp(min=-10), (x["x"][0] + reach).clamp(max=10)
        inside = ((draws > low) & (draws < high)).all(1)
        assert cell_deviation(GaussianMixture(), x, draws[inside], low, high, fine=40) < 5


def test_shares_of_wide_and_narrow_are_those_of_the_density(observed) -> None:
    for _, x, draws in observed("gaussian_mixture"):
        if float(x["x"].abs().max()) > 6:
            continue  # the edge of the prior cuts the wide Gaussian
        close = float(((draws - x["x"]).square().sum(1) < 0.5**2).double().mean())
        expected = 0.5 * (1 - math.exp(-0.5 * 0.25)) + 0.5 * (1 - math.exp(-0.5 * 25))
        assert abs(close - expected) < 5 * 0.5 / len(draws) ** 0.5


def test_simulations_have_the_radii_of_the_density(draw) -> None:
    theta, x = draw(GaussianMixture(), 20000)
    radius2 = (x["x"] - theta).square().sum(1)
    for limit in (0.005, 0.02, 0.5, 2.0):
        expected = 0.5 * (1 - math.exp(-0.5 * limit)) + 0.5 * (1 - math.exp(-50 * limit))
        assert abs(float((radius2 < limit).double().mean()) - expected) < 5 * 0.5 / 20000**0.5


def test_density_integrates_to_one() -> None:
    axis = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    log_likelihood = GaussianMixture().log_likelihood(torch.tensor([[0.3, -0.2]], dtype=torch.float64), {"x": x})
    assert abs(float(log_likelihood.exp().sum() * 0.01**2) - 1) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_away_is_large_negative_and_finite(dtype: torch.dtype) -> None:
    theta = torch.tensor([[1e6, 0.0]], dtype=dtype, requires_grad=True)
    log_likelihood = GaussianMixture().log_likelihood(theta, {"x": torch.zeros(1, 2, dtype=dtype)})
    assert -1e14 < float(log_likelihood.detach()) < -1e10
    assert bool(torch.autograd.grad(log_likelihood.sum(), theta)[0].isfinite().all())
