"""two_moons against its reference draws, its normalisation and its edge."""

from __future__ import annotations

import pytest
import torch

from simulators.benchmark.two_moons import TwoMoons


@pytest.mark.parametrize("number", range(5))
def test_reference_draws_follow_the_joint_density(observed, cell_deviation, number: int) -> None:
    _, x, draws = observed("two_moons")[number]
    low, high = draws.min(0).values - 0.01, draws.max(0).values + 0.01
    assert cell_deviation(TwoMoons(), x, draws, low, high, cells=40, fine=25) < 5


def test_without_the_jacobian_the_radii_of_the_draws_would_not_fit(observed) -> None:
    """< r > of the draws, 0.1 where the prior cuts no crescent, against the mean over a grid with 1/r and without."""
    simulator = TwoMoons()
    for _, x, draws in observed("two_moons"):
        midpoints = (torch.arange(800, dtype=torch.float64) + 0.5) / 400 - 1
        theta = torch.cartesian_prod(midpoints, midpoints)
        radius = (x["x"] - simulator.center(theta)).norm(dim=1)
        log_likelihood = simulator.log_likelihood(theta[:, None], x)[:, 0]
        with_jacobian, without = (
            (torch.softmax(w, 0) * radius).sum() for w in (log_likelihood, log_likelihood + radius.log())
        )
        of_draws = (x["x"] - simulator.center(draws)).norm(dim=1)
        error = of_draws.std() / len(draws) ** 0.5
        assert float((of_draws.mean() - with_jacobian).abs() / error) < 5
        assert float((of_draws.mean() - without).abs() / error) > 5


def test_density_integrates_to_one() -> None:
    simulator = TwoMoons()
    theta = torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    axis = torch.arange(-0.2, 0.2, 0.0005, dtype=torch.float64) + 0.00025
    x = torch.cartesian_prod(axis, axis) + simulator.center(theta)
    total = float(simulator.log_likelihood(theta, {"x": x}).exp().sum()) * 0.0005**2
    assert abs(total - 1) < 1e-5


def test_simulations_lie_in_the_support_with_the_stated_scatter(draw) -> None:
    simulator = TwoMoons()
    theta, x = draw(simulator, 20000)
    assert bool(simulator.log_likelihood(theta, x).isfinite().all())
    d = x["x"] - simulator.center(theta)
    radius, angle = d.norm(dim=1), torch.atan2(d[:, 1], d[:, 0])
    assert abs(float(radius.mean()) - 0.1) < 5 * 0.01 / 20000**0.5
    assert abs(float(radius.std()) / 0.01 - 1) < 5 / (2 * 20000) ** 0.5
    assert abs(float(angle.var()) / (torch.pi**2 / 12) - 1) < 5 / 20000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_inside_at_the_edge_and_far_away(dtype: torch.dtype) -> None:
    simulator = TwoMoons()
    center = simulator.center(torch.zeros(1, 2, dtype=dtype))
    offsets = torch.tensor([[0.1, 0.0], [-0.1, 0.0], [0.0, 0.0], [1e-6, 0.0], [1e5, -1e5]], dtype=dtype)
    theta = torch.zeros(5, 2, dtype=dtype, requires_grad=True)
    log_likelihood = simulator.log_likelihood(theta, {"x": center + offsets})
    (gradient,) = torch.autograd.grad(log_likelihood.sum(), theta)
    assert log_likelihood.isfinite().tolist() == [True, False, False, True, True]
    assert float(log_likelihood[4].detach()) < -1e9
    assert bool(gradient.isfinite().all())
    assert bool((gradient[1:3] == 0).all())
