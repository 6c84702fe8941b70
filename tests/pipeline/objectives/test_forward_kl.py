"""Forward KL: its value, its weights, and whose posterior it learns under a proposal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pipeline.objectives.elbo import elbo
from pipeline.objectives.forward_kl import forward_kl


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_value_is_the_mean_and_with_weights_the_weighted_mean() -> None:
    log_q = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64, requires_grad=True)
    assert float(forward_kl(log_q).detach()) == pytest.approx(-3)
    weight = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
    loss = forward_kl(log_q, weight.log() - 1000)
    assert float(loss.detach()) == pytest.approx(-15 / 4)
    torch.testing.assert_close(torch.autograd.grad(loss, log_q)[0], -weight / 4)
    torch.testing.assert_close(
        torch.autograd.grad(forward_kl(log_q), log_q)[0], torch.full((3,), -1 / 3, dtype=torch.float64)
    )


def test_equal_weights_are_none() -> None:
    log_q = normal(20)
    torch.testing.assert_close(forward_kl(log_q, torch.full((20,), 7.0, dtype=torch.float64)), forward_kl(log_q))


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_log_weights_need_no_normalisation(shift: float) -> None:
    log_q, log_weight = normal(20), normal(20, seed=1)
    torch.testing.assert_close(forward_kl(log_q, log_weight + shift), forward_kl(log_q, log_weight), rtol=1e-9, atol=0)


def test_a_pair_outside_the_prior_has_weight_zero() -> None:
    log_q, log_weight = normal(5), normal(5, seed=1)
    log_weight[2] = -torch.inf
    keep = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(forward_kl(log_q, log_weight), forward_kl(log_q[keep], log_weight[keep]))


def test_least_value_is_the_entropy_of_the_posterior(make_gaussian: Callable[..., Any]) -> None:
    """< -log p(theta|x) > for the exact network; a wrong one is above it by KL(posterior || q)."""
    values = []
    for shift, scale in ((0.0, 1.0), (0.4, 1.0), (0.0, 0.8)):
        case = make_gaussian(dimension=2, rows=1, shift=shift, scale=scale)
        posterior = case.simulator.posterior(case.x["x"])
        theta = posterior.mean + normal(40_000, 1, 2) @ posterior.scale_tril.reshape(2, 2).T
        values.append(float(forward_kl(case.network.log_q(theta, case.condition)[:, 0]).detach()))
        entropy = float(posterior.entropy())
        divergence = 0.5 * 2 * (1 / scale**2 - 1 + 2 * math.log(scale) + shift**2)
        assert values[-1] == pytest.approx(entropy + divergence, abs=5 * (1 + shift + 1 / scale**2) / 40_000**0.5)
    assert values[0] < min(values[1:])


def test_under_a_proposal_only_weights_find_the_priors_posterior() -> None:
    """x = theta + noise: the regression of theta on x has slope s^2 / (s^2 + 1), s of the prior or of the proposal."""
    count, wide = 40_000, 3.0
    theta = wide * normal(count)
    x = theta + normal(count, seed=1)
    log_importance = Normal(0.0, 1.0).log_prob(theta) - Normal(0.0, wide).log_prob(theta)

    def loss(slope: float, spread: float, weighted: bool) -> tuple[float, Tensor]:
        parameters = torch.tensor([slope, math.log(spread)], dtype=torch.float64, requires_grad=True)
        log_q = Normal(parameters[0] * x, parameters[1].exp(), validate_args=False).log_prob(theta)
        value = forward_kl(log_q, log_importance if weighted else None)
        return float(value.detach()), torch.autograd.grad(value, parameters)[0]

    prior, proposal = (0.5, 0.5**0.5), (wide**2 / (wide**2 + 1), (wide**2 / (wide**2 + 1)) ** 0.5)
    assert loss(*prior, True)[0] < loss(*proposal, True)[0] - 0.1
    assert loss(*proposal, False)[0] < loss(*prior, False)[0] - 0.1
    for answer, weighted in ((prior, True), (proposal, False)):  # each is stationary where it should be
        assert float(loss(*answer, weighted)[1].abs().max()) < 0.05
        assert float(loss(*answer, not weighted)[1].abs().max()) > 0.3


def test_elbo_and_forward_kl_prefer_different_gaussians_for_two_modes() -> None:
    """Reverse KL takes one mode, forward KL covers both: neither finds what the other wants."""
    modes = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    target = MixtureSameFamily(
        Categorical(torch.ones(2, dtype=torch.float64)), Normal(modes, torch.full((2,), 0.5, dtype=torch.float64))
    )
    truth = torch.where(normal(20_000, seed=1) > 0, 3.0, -3.0) + 0.5 * normal(20_000, seed=2)
    narrow, broad = (3.0, 0.5), (0.0, (3.0**2 + 0.5**2) ** 0.5)

    def figures(location: float, scale: float) -> tuple[float, float]:
        theta = (location + scale * normal(20_000, 1))[..., None]
        q = Normal(location, scale, validate_args=False)
        bound = elbo(
            theta,
            q.log_prob(theta[..., 0]),
            log_likelihood=lambda t: target.log_prob(t[..., 0]),
            log_prior=lambda t: 0 * t[..., 0],
        )
        return float(bound.value), float(forward_kl(q.log_prob(truth)))

    (elbo_narrow, forward_narrow), (elbo_broad, forward_broad) = figures(*narrow), figures(*broad)
    assert elbo_narrow == pytest.approx(-math.log(2), abs=1e-3)  # half of the evidence is lost, and nothing else
    assert elbo_narrow > elbo_broad + 0.5
    assert forward_broad < forward_narrow - 10
