"""Proposals weigh as their densities say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.estimators.importance import log_evidence, summarize
from pipeline.estimators.proposal import Amortized, Mixture, weigh

MakeGaussian = Callable[..., Any]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def components(make_gaussian: MakeGaussian, *, rows: int = 3) -> tuple[Any, Amortized, Amortized]:
    """The exact posterior of a case, and one displaced by two widths."""
    exact, displaced = (
        make_gaussian(dimension=2, rows=rows),
        make_gaussian(dimension=2, rows=rows, shift=2.0, scale=0.8),
    )
    return exact, Amortized(exact.network, exact.condition), Amortized(displaced.network, displaced.condition)


def test_amortized_is_the_networks_q(make_gaussian: MakeGaussian) -> None:
    case, q, _ = components(make_gaussian)
    theta, log_q, _ = q.draw(20, stream())
    assert theta.shape == (20, 3, 2)
    assert theta.dtype == log_q.dtype == torch.float64
    torch.testing.assert_close(log_q, case.simulator.posterior(case.x["x"]).log_prob(theta))
    torch.testing.assert_close(q.log_q(theta), log_q)
    assert torch.equal(q.draw(20, stream())[0], theta)


def test_widened_q_is_the_posterior_with_wider_tails(make_gaussian: MakeGaussian) -> None:
    case, q, _ = components(make_gaussian)
    wide = Amortized(q.network, q.condition, base_scale=1.5)
    theta, log_q, _ = wide.draw(20, stream())
    posterior = case.simulator.posterior(case.x["x"])
    expected = torch.distributions.MultivariateNormal(posterior.mean, 1.5**2 * posterior.covariance_matrix)
    torch.testing.assert_close(log_q, expected.log_prob(theta))
    torch.testing.assert_close(wide.log_q(theta), log_q)
    torch.testing.assert_close(theta - posterior.mean, 1.5 * (q.draw(20, stream())[0] - posterior.mean))


def test_density_of_a_mixture_is_the_weighted_sum(make_gaussian: MakeGaussian) -> None:
    _, one, other = components(make_gaussian)
    mixture = Mixture([one, other], [0.3, 0.7])
    theta, log_q, _ = mixture.draw(500, stream())
    assert theta.shape == (500, 3, 2)
    expected = 0.3 * one.log_q(theta).exp() + 0.7 * other.log_q(theta).exp()
    torch.testing.assert_close(log_q.exp(), expected)
    torch.testing.assert_close(mixture.log_q(theta), log_q)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_draws_of_a_mixture_have_its_shares(make_gaussian: MakeGaussian, share: float) -> None:
    """The mean of D = sum of whitened components is 0 for one and 2 sqrt(2) sqrt(D) for the other: their shares show."""
    case, one, other = components(make_gaussian)
    theta = Mixture([one, other], [1 - share, share]).draw(20_000, stream())[0].detach()
    posterior = case.simulator.posterior(case.x["x"])
    z = torch.linalg.solve_triangular(posterior.scale_tril, (theta - posterior.mean)[..., None], upper=False)[..., 0]
    mean = z.mean(0)
    variance = 1 + 4 * share * (1 - share)
    assert float((mean - 2 * share).abs().max()) < 5 * (variance / 20_000) ** 0.5
    first, second = z[:10_000].mean(0), z[10_000:].mean(0)  # shuffled: not all of one and then all of the other
    assert float((first - second).abs().max()) < 5 * (2 * variance / 10_000) ** 0.5


def test_mixture_integrates_to_one(make_gaussian: MakeGaussian) -> None:
    """<q_mixture / q_1> over q_1 is the integral over the plane: q_1, the wide one, covers it."""
    case, one, _ = components(make_gaussian)
    wide = make_gaussian(dimension=2, rows=3, shift=1.0, scale=2.0)
    displaced = make_gaussian(dimension=2, rows=3, shift=2.0, scale=0.8)
    mixture = Mixture([one, Amortized(displaced.network, displaced.condition)], [0.4, 0.6])
    theta, log_q, _ = Amortized(wide.network, wide.condition).draw(20_000, stream())
    ratio = (mixture.log_q(theta) - log_q).exp().detach()
    assert float(((ratio.mean(0) - 1) / (ratio.std(0) / 20_000**0.5)).abs().max()) < 5
    assert case.kl == 0


def test_a_share_of_zero_is_never_drawn_and_weighs_nothing(make_gaussian: MakeGaussian) -> None:
    _, one, other = components(make_gaussian)
    theta, log_q, _ = Mixture([one, other], [1.0, 0.0]).draw(200, stream())
    torch.testing.assert_close(log_q, one.log_q(theta))


def test_the_exact_posterior_weighs_every_draw_alike(make_gaussian: MakeGaussian) -> None:
    case, q, _ = components(make_gaussian)
    draws = weigh(q, case.simulator, case.prior, case.x, draws=50, generator=stream())
    torch.testing.assert_close(draws.log_weight, case.log_evidence.expand(50, -1), rtol=0, atol=1e-8)
    torch.testing.assert_close(draws.log_joint, case.log_joint(draws.theta))
    torch.testing.assert_close(draws.log_prior, case.prior.log_prob(draws.theta))
    assert all(v.dtype == torch.float64 for v in (draws.theta, draws.log_q, draws.log_likelihood, draws.log_prior))


def test_a_mixture_with_a_forgetful_component_finds_the_evidence(make_gaussian: MakeGaussian) -> None:
    case, one, other = components(make_gaussian)
    draws = weigh(
        Mixture([other, one], [0.9, 0.1]), case.simulator, case.prior, case.x, draws=20_000, generator=stream()
    )
    figures = summarize(draws)
    assert float(((figures.log_evidence - case.log_evidence) / figures.log_evidence_error).abs().max()) < 5
    assert float(figures.log_evidence_error.max()) < 0.05


def test_weights_are_taken_in_blocks(make_gaussian: MakeGaussian) -> None:
    """At most `batch` points at once; every draw is made, and progress adds up."""
    case, q, _ = components(make_gaussian)
    sizes, told = [], []

    class Counted:
        name = "counted"

        def log_likelihood(self, theta: torch.Tensor, x: Any) -> torch.Tensor:
            sizes.append(theta.shape[0] * theta.shape[1])
            return case.simulator.log_likelihood(theta, x)

    draws = weigh(q, Counted(), case.prior, case.x, draws=25, generator=stream(), batch=30, advance=told.append)  # pyright: ignore[reportArgumentType]
    assert draws.theta.shape == (25, 3, 2)
    assert told == [10, 10, 5]
    assert sizes == [30, 30, 15]
    torch.testing.assert_close(log_evidence(draws.log_weight), case.log_evidence)
    assert not draws.theta.requires_grad
