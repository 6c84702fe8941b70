"""Wake: forward KL to the posterior without simulations; it covers modes where the ELBO leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pipeline.objectives.elbo import elbo
from pipeline.objectives.forward_kl import forward_kl
from pipeline.objectives.wake import wake

MakeGaussian = Callable[..., Any]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_value_is_the_weighted_mean_of_each_row() -> None:
    log_q = torch.tensor([[1.0, 5.0], [2.0, 7.0], [6.0, 9.0]], dtype=torch.float64, requires_grad=True)  # K = 3, N = 2
    weight = torch.tensor([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    loss = wake(log_q, weight.log() + torch.tensor([1e4, -1e4]))  # normalised row by row, in log space
    assert float(loss.detach()) == pytest.approx(-((1 + 2 + 12) / 4 + (5 + 14 + 9) / 4) / 2)
    torch.testing.assert_close(torch.autograd.grad(loss, log_q)[0], -weight / 4 / 2)


def test_unusable_draws_have_no_weight_and_rows_without_draws_are_left_out() -> None:
    log_q, log_weight = normal(6, 3).requires_grad_(), normal(6, 3, seed=1)
    log_weight[2, 0], log_weight[3, 0] = -torch.inf, torch.nan
    log_weight[:, 2] = -torch.inf
    loss = wake(log_q, log_weight)
    keep = torch.tensor([0, 1, 4, 5])
    parts = [wake(log_q[keep, :1], log_weight[keep, :1]), wake(log_q[:, 1:2], log_weight[:, 1:2])]
    assert float(loss.detach()) == pytest.approx(float(sum(p.detach() for p in parts)) / 2)
    (gradient,) = torch.autograd.grad(loss, log_q)
    assert bool((gradient[[2, 3], 0] == 0).all())
    assert bool((gradient[:, 2] == 0).all())
    nothing = wake(log_q, torch.full_like(log_q, -torch.inf))
    assert float(nothing.detach()) == 0
    assert bool((torch.autograd.grad(nothing, log_q)[0] == 0).all())


@pytest.mark.parametrize(("shift", "scale"), [(0.6, 1.1), (0.0, 1.4)])
def test_gradient_is_that_of_the_forward_divergence(make_gaussian: MakeGaussian, shift: float, scale: float) -> None:
    """Against forward_kl at exact draws of the closed-form posterior."""
    case = make_gaussian(dimension=2, rows=2, shift=shift, scale=scale)
    bias = case.affine.network[-1].bias
    posterior = case.simulator.posterior(case.x["x"])
    samples: dict[str, list[Tensor]] = {"wake": [], "exact": []}
    for b in range(40):
        with torch.no_grad():
            stream = torch.Generator().manual_seed(b)
            theta, drawn = case.network.draw(case.condition, 2000, generator=stream, dtype=torch.float64)
            log_weight = case.log_joint(theta) - drawn
        loss = wake(case.network.log_q(theta, case.condition), log_weight)
        samples["wake"].append(torch.autograd.grad(loss, bias)[0])
        exact = posterior.mean + normal(2000, 2, 2, seed=b) @ posterior.scale_tril.mT[0]
        loss = forward_kl(case.network.log_q(exact, case.condition).flatten())
        samples["exact"].append(torch.autograd.grad(loss, bias)[0])
    ours, expected = (torch.stack(samples[k]) for k in ("wake", "exact"))
    error = torch.hypot(ours.std(0), expected.std(0)) / 40**0.5
    assert float(expected.mean(0).abs().max()) > 20 * float(error.min())
    assert float(((ours.mean(0) - expected.mean(0)).abs() / error).max()) < 5


@pytest.mark.parametrize("objective", ["wake", "elbo"])
def test_wake_covers_two_modes_where_the_elbo_keeps_one(objective: str) -> None:
    """A Gaussian q between two narrow modes: forward KL matches mean and spread, reverse KL falls into one."""
    target = MixtureSameFamily(
        Categorical(torch.ones(2, dtype=torch.float64)),
        Normal(torch.tensor([-3.0, 3.0], dtype=torch.float64), torch.tensor([0.6, 0.6], dtype=torch.float64)),
    )
    mean = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    log_scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_scale], lr=0.03)
    for step in range(500):
        q = Normal(mean, log_scale.exp())
        theta = mean + log_scale.exp() * normal(256, seed=step)
        if objective == "wake":
            theta = theta.detach()
            log_q = q.log_prob(theta)
            loss = wake(log_q[:, None], (target.log_prob(theta) - log_q)[:, None])
        else:
            log_q = q.log_prob(theta)
            zero = lambda t: 0 * t[..., 0]  # noqa: E731
            joint = lambda t: target.log_prob(t[..., 0])  # noqa: E731
            loss = -elbo(theta[:, None, None], log_q[:, None], log_likelihood=joint, log_prior=zero).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    spread = float(log_scale.detach().exp())
    if objective == "wake":
        assert abs(float(mean.detach())) < 0.4
        assert spread == pytest.approx((9 + 0.36) ** 0.5, abs=0.3)
    else:
        assert abs(float(mean.detach())) == pytest.approx(3, abs=0.2)
        assert spread == pytest.approx(0.6, abs=0.1)
