"""The importance-weighted bound: between ELBO and evidence, with the gradient of its own value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.objectives.elbo import Bound, elbo
from pipeline.objectives.iwelbo import iwelbo

MakeGaussian = Callable[..., Any]


def bound_of(case: Any, *, draws: int, seed: int = 0, objective: Any = iwelbo) -> Bound:
    stream = torch.Generator().manual_seed(seed)
    theta, log_q = case.network.draw(case.condition, draws, generator=stream, path_gradient=True, dtype=torch.float64)
    return objective(theta, log_q, log_likelihood=case.log_likelihood, log_prior=case.prior.log_prob)


def bias_of(case: Any) -> torch.nn.Parameter:
    return case.affine.network[-1].bias


def gradients(case: Any, *, draws: int, batches: int, objective: Any = iwelbo) -> Tensor:
    """Monte Carlo gradients of the bound, (batches, parameters)."""
    values = (bound_of(case, draws=draws, seed=b, objective=objective).value for b in range(batches))
    return torch.stack([torch.autograd.grad(v, bias_of(case))[0] for v in values])


@pytest.mark.parametrize("draws", [1, 7])
def test_it_is_the_evidence_where_q_is_the_posterior(make_gaussian: MakeGaussian, draws: int) -> None:
    case = make_gaussian(rows=3)
    bound = bound_of(case, draws=draws)
    assert float(bound.value.detach()) == pytest.approx(float(case.log_evidence.mean()), abs=1e-6)
    assert float(torch.autograd.grad(bound.value, bias_of(case))[0].abs().max()) < 1e-6


def test_with_one_draw_it_is_the_elbo_and_its_path_gradient(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(shift=0.4, scale=1.3)
    one, other = (bound_of(case, draws=1, objective=o) for o in (iwelbo, elbo))
    torch.testing.assert_close(one.value, other.value)
    torch.testing.assert_close(one.reconstruction, other.reconstruction)
    torch.testing.assert_close(one.regularization, other.regularization)
    for a, b in zip(*(torch.autograd.grad(v.value, bias_of(case)) for v in (one, other)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.6), (0.8, 1.0)])
def test_it_rises_with_k_from_the_elbo_towards_the_evidence(
    make_gaussian: MakeGaussian, shift: float, scale: float
) -> None:
    case = make_gaussian(dimension=2, rows=2000, shift=shift, scale=scale)
    with torch.no_grad():
        values = [float(bound_of(case, draws=k, seed=k).value) for k in (1, 4, 32)]
    evidence = float(case.log_evidence.mean())
    assert values[0] == pytest.approx(evidence - case.kl, abs=0.1)
    assert values[0] + 0.1 < values[1] < values[2] - 0.01
    assert values[2] < evidence
    assert evidence - values[2] < 0.15 * case.kl


def plain_gradient(case: Any, *, draws: int, seed: int) -> Tensor:
    """Autograd of log mean w with log_q in full: the same expectation, by another estimator."""
    stream = torch.Generator().manual_seed(seed)
    theta, log_q = case.network.draw(case.condition, draws, generator=stream, dtype=torch.float64)
    value = torch.logsumexp(case.log_joint(theta) - log_q, 0).mean()
    return torch.autograd.grad(value, bias_of(case))[0]


@pytest.mark.parametrize(("shift", "scale"), [(0.7, 1.0), (0.0, 1.5), (0.3, 0.7)])
def test_gradient_is_that_of_the_bound(make_gaussian: MakeGaussian, shift: float, scale: float) -> None:
    case = make_gaussian(dimension=2, rows=80, shift=shift, scale=scale)
    ours = gradients(case, draws=4, batches=150)
    plain = torch.stack([plain_gradient(case, draws=4, seed=1000 + b) for b in range(150)])
    error = torch.hypot(ours.std(0), plain.std(0)) / 150**0.5
    assert float(plain.mean(0).abs().max()) > 20 * float(error.min())  # not a comparison of noise with noise
    assert float(((ours.mean(0) - plain.mean(0)).abs() / error).max()) < 5


def test_more_draws_make_it_less_noisy_where_the_plain_one_grows_noisier(make_gaussian: MakeGaussian) -> None:
    """Signal to noise of the gradient (Rainforth et al. 2018): doubly reparameterised it grows with K."""
    case = make_gaussian(dimension=2, rows=4, shift=0.3)
    noise = {}
    for draws in (2, 64):
        ours = gradients(case, draws=draws, batches=80)
        plain = torch.stack([plain_gradient(case, draws=draws, seed=b) for b in range(80)])
        noise[draws] = [float((g.std(0) / g.mean(0).abs().clamp_min(1e-12))[:2].mean()) for g in (ours, plain)]
    assert noise[64][0] < 0.5 * noise[2][0]
    assert noise[64][1] > 2 * noise[64][0]


def test_it_and_the_elbo_pull_differently_where_q_is_too_wide(make_gaussian: MakeGaussian) -> None:
    """The bound forgives a wide q: with K draws enough of them fall into the posterior."""
    case = make_gaussian(dimension=2, rows=200, scale=1.6)
    with torch.no_grad():
        assert float(bound_of(case, draws=16).value - bound_of(case, draws=16, objective=elbo).value) > 0.3
    pull = {o: float(gradients(case, draws=16, batches=20, objective=o).mean(0)[2:4].mean()) for o in (elbo, iwelbo)}
    assert pull[elbo] < 5 * pull[iwelbo] < 0  # both narrow it, the ELBO much harder


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_shift_of_the_joint_shifts_the_bound_and_no_gradient(make_gaussian: MakeGaussian, shift: float) -> None:
    case = make_gaussian(shift=0.4)
    results = []
    for offset in (0.0, shift):
        theta, log_q = case.network.draw(
            case.condition, 8, generator=torch.Generator().manual_seed(0), path_gradient=True, dtype=torch.float64
        )
        likelihood = lambda t, offset=offset: case.log_likelihood(t) + offset  # noqa: E731
        bound = iwelbo(theta, log_q, log_likelihood=likelihood, log_prior=case.prior.log_prob)
        results.append((bound.value.detach(), torch.autograd.grad(bound.value, bias_of(case))[0]))
    assert float(results[1][0] - results[0][0]) == pytest.approx(shift, abs=1e-8)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-9)


def test_draws_outside_the_support_have_weight_zero_and_rows_without_draws_are_left_out() -> None:
    location = torch.zeros((), dtype=torch.float64, requires_grad=True)
    noise = torch.randn(50, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta = location + noise + torch.tensor([0.0, 0.5, -100.0]).double()[None, :, None]
    log_q = torch.zeros(50, 3, dtype=torch.float64)
    bound = iwelbo(theta, log_q, log_likelihood=lambda t: t[..., 0].log(), log_prior=lambda t: -t[..., 0])
    outside = theta.detach()[..., 0] <= 0
    assert int(bound.refused) == int(outside.sum()) >= 50
    w = torch.where(outside, 0.0, theta.detach()[..., 0] * torch.exp(-theta.detach()[..., 0]))[:, :2]
    assert float(bound.value.detach()) == pytest.approx(float(w.mean(0).log().mean()))
    (gradient,) = torch.autograd.grad(bound.value, location)
    share = w / w.sum(0)
    t = theta.detach()[:, :2, 0]
    expected = torch.where(outside[:, :2], 0.0, share.square() * (1 / t - 1)).sum(0).mean()
    assert float(gradient) == pytest.approx(float(expected))
