"""lotka_volterra against scipy's solution, torch's LogNormal, and the reference draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.distributions import LogNormal

from simulators.benchmark.lotka_volterra import LotkaVolterra
from simulators.priors import prior_of


def numbers_by_scipy(theta: torch.Tensor) -> torch.Tensor:
    """Prey and predators at ten times, (N, 4) -> (N, 20); relative tolerances even where they nearly die out."""
    rows = []
    for alpha, beta, gamma, delta in theta.tolist():
        solution = solve_ivp(
            lambda _, y, p=(alpha, beta, gamma, delta): [
                p[0] * y[0] - p[1] * y[0] * y[1], -p[2] * y[1] + p[3] * y[0] * y[1],
            ],
            (0, 19), (30, 1), method="DOP853", t_eval=np.arange(10) * 2.1, rtol=1e-10, atol=1e-20,
        )  # fmt: skip
        rows.append(solution.y.reshape(-1))
    return torch.from_numpy(np.array(rows))


def test_numbers_are_those_of_scipy(draw) -> None:
    theta, _ = draw(LotkaVolterra(), 40)
    expected = numbers_by_scipy(theta).log().clamp(math.log(1e-10), math.log(1e4))
    error = (LotkaVolterra().log_numbers(theta) - expected).abs()
    assert float(error.max()) < 0.01  # a tenth of the noise
    assert float(error.median()) < 1e-4


def test_log_likelihood_is_log_normal(draw) -> None:
    simulator = LotkaVolterra()
    theta, x = draw(simulator, 20)
    expected = LogNormal(simulator.log_numbers(theta), 0.1).log_prob(x["x"]).sum(-1)
    torch.testing.assert_close(simulator.log_likelihood(theta, x), expected)


def test_prior_is_the_published_one(draw) -> None:
    """The data outweigh it: the reference draws would not see a prior that is a tenth too wide."""
    theta, _ = draw(LotkaVolterra(), 10)
    median = torch.tensor([-0.125, -3.0, -0.125, -3.0], dtype=torch.float64)
    torch.testing.assert_close(
        prior_of(LotkaVolterra()).log_prob(theta), LogNormal(median, 0.5).log_prob(theta).sum(-1)
    )


@pytest.mark.parametrize("number", range(5))
def test_reference_draws_follow_the_joint_density(observed, stein, number: int) -> None:
    _, x, draws = observed("lotka_volterra")[number]
    assert float(stein(LotkaVolterra(), x, draws, positive=True).abs().max()) < 5


def test_the_identities_see_a_wrong_noise(observed, stein, monkeypatch: pytest.MonkeyPatch) -> None:
    _, x, draws = observed("lotka_volterra")[0]
    monkeypatch.setattr("simulators.benchmark.lotka_volterra.NOISE_SCALE", 0.11)
    assert float(stein(LotkaVolterra(), x, draws, positive=True).abs().max()) > 5


def test_simulations_have_the_entropy_of_the_density() -> None:
    simulator = LotkaVolterra()
    theta = torch.tensor([[0.9, 0.05, 0.8, 0.04]], dtype=torch.float64).expand(4000, -1)
    x = simulator.simulate(theta, generator=torch.Generator().manual_seed(0))
    excess = simulator.log_likelihood(theta, x) + x["x"].log().sum(1) + 10 * math.log(2 * math.pi * math.e * 0.01)
    assert abs(float(excess.mean())) < 5 * math.sqrt(10 / 4000)


def test_score_of_simulations_is_zero_on_average(score_at_truth) -> None:
    theta = torch.tensor([0.9, 0.05, 0.8, 0.04], dtype=torch.float64)
    assert float(score_at_truth(LotkaVolterra(), theta, count=4000).abs().max()) < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_absurd_theta_gives_finite_numbers_and_gradients(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.exp(30 * torch.randn(3000, 4, generator=generator))
    theta[1000:] = torch.exp(
        torch.tensor([-0.125, -3, -0.125, -3]) + 2.5 * (2 * torch.rand(2000, 4, generator=generator) - 1)
    )
    theta = theta.to(dtype).requires_grad_()
    x = LotkaVolterra().simulate(theta.detach(), generator=generator)
    assert bool(x["x"].isfinite().all())
    assert bool(LotkaVolterra().features(x).isfinite().all())
    log_likelihood = LotkaVolterra().log_likelihood(theta, {"x": x["x"].flip(0)})
    assert bool(log_likelihood.isfinite().all())
    assert bool(torch.autograd.grad(log_likelihood.sum(), theta)[0].isfinite().all())
