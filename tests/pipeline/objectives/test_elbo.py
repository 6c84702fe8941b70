"""The ELBO and its gradients against the linear Gaussian model, where everything is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pipeline.objectives.elbo import Bound, elbo

MakeGaussian = Callable[..., Any]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bound_of(case: Any, *, draws: int, seed: int = 0, path_gradient: bool = False) -> Bound:
    theta, log_q = case.network.draw(
        case.condition, draws, generator=stream(seed), path_gradient=path_gradient, dtype=torch.float64
    )
    return elbo(theta, log_q, log_likelihood=case.log_likelihood, log_prior=case.prior.log_prob)


# ------------------------------------------------------------ value


def test_value_is_reconstruction_minus_regularization() -> None:
    theta = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [9.0]]])  # K = 3, N = 2
    log_q = torch.tensor([[0.0, 1.0], [2.0, 3.0], [1.0, 5.0]])
    bound = elbo(theta, log_q, log_likelihood=lambda t: 2 * t[..., 0], log_prior=lambda t: -t[..., 0])
    assert float(bound.reconstruction) == pytest.approx(2 * 24 / 6)
    assert float(bound.regularization) == pytest.approx((12 + 24) / 6)  # log q - log prior
    assert float(bound.value) == pytest.approx(8 - 6)
    assert int(bound.refused) == 0


def test_elbo_of_the_posterior_is_the_evidence_for_every_draw(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(rows=1)
    for seed in range(20):
        assert float(bound_of(case, draws=1, seed=seed).value.detach()) == pytest.approx(
            float(case.log_evidence), abs=1e-6
        )


@pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.0), (0.0, 0.6), (0.0, 1.5), (-0.3, 1.2)])
def test_elbo_is_below_the_evidence_by_the_divergence(make_gaussian: MakeGaussian, shift: float, scale: float) -> None:
    case = make_gaussian(shift=shift, scale=scale)
    with torch.no_grad():
        theta, log_q = case.network.draw(case.condition, 10_000, generator=stream(), dtype=torch.float64)
        bound = elbo(theta, log_q, log_likelihood=case.log_likelihood, log_prior=case.prior.log_prob)
        error = float((case.log_joint(theta) - log_q).std()) / theta.shape[:2].numel() ** 0.5
    gap = float(case.log_evidence.mean() - bound.value)
    assert case.kl > 30 * error  # the test can tell it from zero
    assert gap == pytest.approx(case.kl, abs=5 * error)
    torch.testing.assert_close(bound.value, bound.reconstruction - bound.regularization)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
@pytest.mark.parametrize("moved", ["log_likelihood", "log_prior"])
def test_a_shift_of_the_joint_shifts_the_bound_and_no_gradient(
    make_gaussian: MakeGaussian, moved: str, shift: float
) -> None:
    case = make_gaussian(shift=0.4)
    densities = {"log_likelihood": case.log_likelihood, "log_prior": case.prior.log_prob}
    shifted = densities | {moved: lambda theta: densities[moved](theta) + shift}
    results = []
    for functions in (densities, shifted):
        theta, log_q = case.network.draw(case.condition, 16, generator=stream(), dtype=torch.float64)
        bound = elbo(theta, log_q, **functions)
        results.append((bound.value.detach(), torch.autograd.grad(bound.value, list(case.network.flow.parameters()))))
    (before, gradient), (after, gradient_after) = results
    assert float(after - before) == pytest.approx(shift, abs=1e-8)
    for one, other in zip(gradient, gradient_after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


# ------------------------------------------------------------ unusable draws


def unusable_likelihoods() -> dict[str, Callable[[Tensor], Tensor]]:
    """Densities that are no number for negative theta, each with its own kind of gradient there."""
    return {
        "minus infinity": lambda t: torch.where(t[..., 0] > 0, -t[..., 0], -torch.inf),
        "nan with a nan gradient": lambda t: t[..., 0].sqrt(),
        "log of zero": lambda t: torch.relu(t[..., 0]).log(),
        "plus infinity": lambda t: torch.where(t[..., 0] > 0, 0.0, torch.inf) - t[..., 0],
    }


@pytest.mark.parametrize("name", unusable_likelihoods())
@pytest.mark.parametrize("where", ["log_likelihood", "log_prior"])
def test_unusable_draws_are_counted_and_have_no_gradient(name: str, where: str) -> None:
    bad = unusable_likelihoods()[name]
    location = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(50, 4, 1, dtype=torch.float64, generator=stream())
    theta = location + noise
    log_q = -0.5 * noise[..., 0].square()
    good = {"log_likelihood": lambda t: -t[..., 0], "log_prior": lambda t: -t[..., 0].square()}
    bound = elbo(theta, log_q, **(good | {where: bad}))
    usable = theta.detach()[..., 0] > 0
    assert int(bound.refused) == int((~usable).sum()) > 20
    (gradient,) = torch.autograd.grad(bound.value, location)

    kept = (location + noise)[usable]  # what remains, on its own
    terms = {name: function(kept) for name, function in (good | {where: bad}).items()}
    expected = (terms["log_likelihood"] + terms["log_prior"] - log_q[usable]).mean()
    assert float(bound.value.detach()) == pytest.approx(float(expected.detach()))
    assert float(gradient) == pytest.approx(float(torch.autograd.grad(expected, location)[0]))


def test_no_usable_draw_is_zero_with_zero_gradient_and_all_refused() -> None:
    location = torch.tensor(-50.0, requires_grad=True)
    theta = location + torch.rand(10, 2, 1, generator=stream())
    bound = elbo(theta, torch.zeros(10, 2), log_likelihood=lambda t: t[..., 0].sqrt(), log_prior=lambda t: -t[..., 0])
    assert int(bound.refused) == 20
    assert float(bound.value.detach()) == 0
    assert float(torch.autograd.grad(bound.value, location)[0]) == 0


# ------------------------------------------------------------ gradients


def bias_of(case: Any) -> torch.nn.Parameter:
    """The bias of the affine map's last layer: mean, logarithms of the diagonal, and what is below it."""
    return case.affine.network[-1].bias


def gradient_samples(case: Any, *, path_gradient: bool, batches: int = 60, draws: int = 200) -> Tensor:
    """Monte Carlo gradients of the ELBO, (batches, parameters)."""
    return torch.stack(
        [
            torch.autograd.grad(bound_of(case, draws=draws, seed=b, path_gradient=path_gradient).value, bias_of(case))[
                0
            ]
            for b in range(batches)
        ]
    )


def exact_gradient(case: Any) -> Tensor:
    """Of -KL( N(mu + w m, w L L^T w) || posterior ), with m and L as the affine map makes them of its bias."""
    posterior = case.simulator.posterior(case.x["x"])
    mean, _, lower = case.affine._coefficients(case.condition.context)
    width = posterior.stddev.reshape(-1, lower.shape[-1])[:1]
    q = MultivariateNormal(posterior.mean + width * mean, scale_tril=width[..., None] * lower, validate_args=False)
    return torch.autograd.grad(-kl_divergence(q, posterior).mean(), bias_of(case))[0]


@pytest.mark.parametrize("path_gradient", [True, False], ids=["sticking_the_landing", "reparameterized"])
@pytest.mark.parametrize(("shift", "scale"), [(0.6, 1.0), (0.0, 0.7), (-0.3, 1.4)])
def test_gradient_is_that_of_the_divergence(
    make_gaussian: MakeGaussian, path_gradient: bool, shift: float, scale: float
) -> None:
    case = make_gaussian(dimension=2, rows=2, shift=shift, scale=scale)
    samples = gradient_samples(case, path_gradient=path_gradient)
    expected = exact_gradient(case)
    error = samples.std(0) / len(samples) ** 0.5
    assert float(expected.abs().max()) > 20 * float(error.min())  # not a comparison of noise with noise
    assert float(((samples.mean(0) - expected).abs() / (error + 1e-12)).max()) < 5


def test_sticking_the_landing_is_still_at_the_optimum_and_the_other_is_not(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2, rows=2)
    landing, plain = (gradient_samples(case, path_gradient=p, batches=20, draws=20).std(0) for p in (True, False))
    assert float(exact_gradient(case).abs().max()) < 1e-10
    assert float(landing.max()) < 1e-8
    assert float(plain.min()) > 1e-2
    far = make_gaussian(dimension=2, rows=2, shift=3.0)  # away from it both are noisy
    assert float(gradient_samples(far, path_gradient=True, batches=20, draws=20).std(0).max()) > 1e-2
