"""bernoulli_glm_raw: design, prior, and the reference draws."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch
from torch.distributions import Bernoulli, biject_to

from simulators.benchmark.bernoulli_glm_raw import BernoulliGlmRaw, design_matrix, filter_prior
from simulators.priors import sample, to_device


def test_design_is_the_published_one(reference: Path) -> None:
    with h5py.File(reference / "reference" / "bernoulli_glm.h5") as file:
        published = torch.from_numpy(file["design_matrix"][()]).double()
    assert torch.equal(design_matrix(), published)


@pytest.mark.parametrize("number", range(5))
def test_reference_draws_follow_the_joint_density(observed, stein, number: int) -> None:
    _, x, draws = observed("bernoulli_glm", dataset="x_raw")[number]
    assert float(stein(BernoulliGlmRaw(), x, draws).abs().max()) < 5


def test_log_likelihood_is_that_of_independent_spikes(draw) -> None:
    simulator = BernoulliGlmRaw()
    theta, x = draw(simulator, 50)
    expected = Bernoulli(logits=simulator.drive(theta)).log_prob(x["x"]).sum(-1)
    torch.testing.assert_close(simulator.log_likelihood(theta, x), expected)


def test_score_of_simulations_is_zero_on_average(score_at_truth) -> None:
    theta = torch.linspace(-1, 1, 10, dtype=torch.float64)
    assert float(score_at_truth(BernoulliGlmRaw(), theta).abs().max()) < 5


def test_the_joint_prior_has_the_stated_precision_and_needs_no_transform() -> None:
    prior = filter_prior()
    assert float(prior.variance[0]) == pytest.approx(2)
    step = torch.tensor([0.0, *[1.0] * 9], dtype=torch.float64)  # B^2 of a constant filter is (1, -1, 0, 0, ...)
    rows = torch.arange(9, dtype=torch.float64).div(9).sqrt()
    rows[0] += 1
    rows[1] -= 1
    torch.testing.assert_close(step @ prior.precision_matrix @ step, rows.square().sum())
    draws = sample(to_device(prior, "cpu"), 20000, torch.Generator().manual_seed(0))
    whitened = draws @ torch.linalg.cholesky(prior.precision_matrix)
    torch.testing.assert_close(whitened.T @ whitened / 20000, torch.eye(10, dtype=torch.float64), rtol=0, atol=0.05)
    assert torch.equal(biject_to(prior.support)(draws), draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_away_is_large_negative_and_finite(dtype: torch.dtype) -> None:
    theta = torch.full((1, 10), 1e6, dtype=dtype, requires_grad=True)
    log_likelihood = BernoulliGlmRaw().log_likelihood(theta, {"x": torch.zeros(1, 100, dtype=dtype)})
    assert -1e10 < float(log_likelihood.detach()) < -1e6
    assert bool(torch.autograd.grad(log_likelihood.sum(), theta)[0].isfinite().all())
