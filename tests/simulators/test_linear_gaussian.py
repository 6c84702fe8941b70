"""The closed-form oracle, itself checked by brute force."""

from __future__ import annotations

import pytest
import torch

from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of, sample


def simulated(simulator: LinearGaussian, count: int, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    theta = sample(prior_of(simulator), count, generator)
    return theta, simulator.simulate(theta, generator=generator)


def test_bayes_theorem_holds_at_any_theta() -> None:
    """log p(x) = log p(x|theta) + log p(theta) - log p(theta|x), whatever theta."""
    simulator = LinearGaussian(dimension=4, size=6, prior_scale=1.7, noise_scale=0.4)
    _, x = simulated(simulator, 7)
    theta = 3 * torch.randn(5, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    log_joint = simulator.log_likelihood(theta, x) + prior_of(simulator).log_prob(theta)
    log_evidence = log_joint - simulator.posterior(x["x"]).log_prob(theta)
    expected = simulator.log_evidence(x["x"]).expand(5, -1)
    torch.testing.assert_close(log_evidence, expected, rtol=1e-10, atol=1e-8)


def test_evidence_and_posterior_mean_are_those_of_a_grid() -> None:
    simulator = LinearGaussian(dimension=2, size=3, prior_scale=1.0, noise_scale=0.7)
    _, x = simulated(simulator, 1)
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    theta = torch.cartesian_prod(axis, axis)[:, None, :]
    log_joint = (simulator.log_likelihood(theta, x) + prior_of(simulator).log_prob(theta))[:, 0]
    cell = float(axis[1] - axis[0]) ** 2
    log_evidence = torch.logsumexp(log_joint, 0) + torch.tensor(cell).log()
    torch.testing.assert_close(log_evidence.double(), simulator.log_evidence(x["x"])[0], rtol=0, atol=1e-6)
    mean = (torch.softmax(log_joint, 0)[:, None] * theta[:, 0]).sum(0)
    torch.testing.assert_close(mean, simulator.posterior(x["x"]).mean[0], rtol=0, atol=1e-6)


def test_simulated_residuals_have_the_stated_scatter() -> None:
    simulator = LinearGaussian(dimension=2, size=50, noise_scale=0.5)
    theta, x = simulated(simulator, 400)
    residual = (x["x"] - simulator.mean(theta)) / 0.5
    assert abs(float(residual.mean())) < 5 / (400 * 50) ** 0.5
    assert abs(float(residual.std()) - 1) < 5 / (2 * 400 * 50) ** 0.5


def test_true_theta_is_a_draw_of_the_posterior() -> None:
    """Mahalanobis distances of the true theta from its posterior are chi-squared with D degrees."""
    simulator = LinearGaussian(dimension=3, size=5)
    theta, x = simulated(simulator, 4000)
    posterior = simulator.posterior(x["x"])
    deviation = theta - posterior.mean
    distance = (deviation @ posterior.precision_matrix * deviation).sum(-1)
    assert abs(float(distance.mean()) - 3) < 5 * (2 * 3 / 4000) ** 0.5


def test_numbers_outside_their_domain_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 1"):
        LinearGaussian(dimension=0)
    with pytest.raises(ValueError, match=r"must be positive"):
        LinearGaussian(noise_scale=0.0)
