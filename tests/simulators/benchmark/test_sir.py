"""sir against scipy's solution and Binomial distribution, and the reference draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import binom

from simulators.benchmark.sir import Sir


def share_by_scipy(theta: torch.Tensor) -> torch.Tensor:
    """I / N at the ten times, in plain numbers of people, (N, 2) -> (N, 10)."""
    rows = []
    for beta, gamma in theta.tolist():
        solution = solve_ivp(
            lambda _, y, b=beta, g=gamma: [-b * y[0] * y[1] / 1e6, b * y[0] * y[1] / 1e6 - g * y[1]],
            (0, 153), (1e6 - 1, 1), method="DOP853", t_eval=np.arange(10) * 17.0, rtol=1e-10, atol=1e-12,
        )  # fmt: skip
        rows.append(solution.y[1] / 1e6)
    return torch.from_numpy(np.array(rows))


def test_infected_are_those_of_scipy(draw) -> None:
    theta, _ = draw(Sir(), 40)
    expected = share_by_scipy(theta)
    share = Sir().log_infected(theta).exp()
    noise = (expected * (1 - expected) / 1000).sqrt()
    assert bool(((share - expected).abs() < 0.02 * noise + 1e-9).all())


def test_log_likelihood_is_binomial(draw) -> None:
    theta, x = draw(Sir(), 20)
    share = Sir().log_infected(theta).exp().numpy()
    expected = torch.from_numpy(binom.logpmf(x["x"].numpy(), 1000, share).sum(1))
    torch.testing.assert_close(Sir().log_likelihood(theta, x), expected, rtol=1e-7, atol=1e-7)
    single = Sir().log_likelihood(theta.float(), {"x": x["x"].float()}).double()
    torch.testing.assert_close(single, expected, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("number", range(5))
def test_reference_draws_follow_the_joint_density(observed, stein, cell_deviation, number: int) -> None:
    _, x, draws = observed("sir")[number]
    assert float(stein(Sir(), x, draws, positive=True).abs().max()) < 5
    low, high = draws.mean(0) - 5 * draws.std(0), draws.mean(0) + 5 * draws.std(0)
    assert cell_deviation(Sir(), x, draws, low, high, cells=20, fine=8) < 5


def test_simulations_have_the_mean_and_variance_of_the_density() -> None:
    theta = torch.tensor([[0.35, 0.12]], dtype=torch.float64).expand(20000, -1)
    x = Sir().simulate(theta, generator=torch.Generator().manual_seed(0))["x"]
    share = Sir().log_infected(theta[:1]).exp()[0]
    variance = 1000 * share * (1 - share)
    assert bool(((x.mean(0) - 1000 * share).abs() < 5 * (variance / 20000).sqrt() + 1e-3).all())
    many = variance > 5
    assert bool(((x.var(0) / variance - 1).abs() < 0.06)[many].all())
    assert torch.equal(x, x.round())


def test_score_of_simulations_is_zero_on_average(score_at_truth) -> None:
    assert float(score_at_truth(Sir(), torch.tensor([0.35, 0.12], dtype=torch.float64)).abs().max()) < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_absurd_theta_gives_finite_numbers_and_gradients(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.exp(30 * torch.randn(4000, 2, generator=generator)).to(dtype).requires_grad_()
    x = Sir().simulate(theta.detach(), generator=generator)
    assert bool(x["x"].isfinite().all())
    assert bool(Sir().features(x).isfinite().all())
    log_likelihood = Sir().log_likelihood(theta, {"x": x["x"].flip(0)})
    assert bool(log_likelihood.isfinite().all())
    assert bool(torch.autograd.grad(log_likelihood.sum(), theta)[0].isfinite().all())
