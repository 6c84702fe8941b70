"""The joint density at draws of q: values untouched, slopes of unusable and far draws kept from spoiling the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.objectives.joint import FAR, evaluate


def draws(count: int = 9, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, rows, 1, dtype=torch.float64, generator=generator).requires_grad_()


def slope(theta: Tensor, depth: Tensor) -> Tensor:
    """Gradient on each draw of a sum of log weights: log likelihood theta - depth, log q -theta / 2."""
    joint = evaluate(
        theta, -0.5 * theta[..., 0], log_likelihood=lambda t: t[..., 0] - depth, log_prior=lambda t: 0 * t[..., 0]
    )
    torch.testing.assert_close(joint.log_weight, 1.5 * theta[..., 0] - depth)  # values are never changed
    return torch.autograd.grad(joint.log_weight.sum(), theta)[0][..., 0]


def test_near_draws_keep_their_gradient() -> None:
    theta = draws()
    assert bool((slope(theta, torch.zeros(9, 1).double()) == 1.5).all())
    depth = torch.zeros(9, 1).double()
    depth[3] = FAR - 5
    assert bool((slope(theta, depth) == 1.5).all())


def test_a_draw_ten_thousand_nats_down_pulls_a_tenth_and_less_the_further_it_is() -> None:
    """All of its gradient, that of log_q included."""
    depth = torch.zeros(9, 1).double()
    depth[3], depth[5] = 1e4, 1e6
    got = slope(draws(), depth)[:, 0]
    assert float(got[3]) == pytest.approx(1.5 * FAR / 1e4, rel=1e-3)
    assert float(got[5]) == pytest.approx(1.5 * FAR / 1e6, rel=1e-3)
    assert bool((got[[0, 1, 2, 4, 6, 7, 8]] == 1.5).all())


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_constant_in_the_density_of_one_observation_changes_no_gradient(shift: float) -> None:
    """Observations of other exposure or size differ by thousands of nats: depth is measured within each."""
    depth = torch.zeros(9, 3).double()
    depth[:, 1] = shift
    assert bool((slope(draws(rows=3), depth) == 1.5).all())
    assert bool((slope(draws(1, rows=3), depth[:1]) == 1.5).all())


def test_outside_the_support_weight_and_gradient_are_zero_and_counted() -> None:
    theta = draws()
    zero = torch.zeros(theta.shape[:2], dtype=torch.float64)
    joint = evaluate(theta, zero, log_likelihood=lambda t: t[..., 0].log(), log_prior=lambda t: -t[..., 0])
    outside = theta.detach()[..., 0] <= 0
    assert int(joint.refused) == int(outside.sum()) > 0
    assert bool((joint.log_weight[outside] == -torch.inf).all())
    (gradient,) = torch.autograd.grad(joint.log_likelihood.sum() + joint.log_prior.sum(), theta)
    inside = ~outside
    torch.testing.assert_close(gradient[inside][:, 0], 1 / theta.detach()[..., 0][inside] - 1)
    assert bool((gradient[outside] == 0).all())
