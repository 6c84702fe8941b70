from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from pipeline.diagnostics.population import Catalogue, Family, PopulationLikelihood, distinct_share, family_from
from simulators.priors import distribution_from_spec

FAMILIES = {
    "normal": (["mu", "sigma"], [0.3, 0.7]),
    "uniform": (["low", "high"], [-0.5, 1.5]),
    "half_normal": (["scale"], [0.8]),
    "log_normal": (["mu", "sigma"], [0.1, 0.6]),
    "beta": (["a", "b"], [2.0, 3.0]),
}


def catalogue(theta: torch.Tensor, log_prior: torch.Tensor | None = None) -> Catalogue:
    return Catalogue(
        theta={"t": theta},
        log_prior=torch.zeros_like(theta) if log_prior is None else log_prior,
        log_evidence=torch.zeros(len(theta), dtype=torch.float64),
        distinct=distinct_share(theta),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_priors_is_a_population(name: str) -> None:
    """The estimate with flat prior and evidence 1 is the log of the mean density, as the prior of that name has it."""
    arguments, values = FAMILIES[name]
    theta = torch.linspace(-1, 2, 14, dtype=torch.float64).view(2, 7) + 0.01  # outside the support too
    likelihood = PopulationLikelihood({"t": family_from(name, arguments, arguments)}, catalogue(theta))
    single = distribution_from_spec({name: values})
    support = single.support
    inside = support.check(theta)  # pyright: ignore[reportOptionalMemberAccess]
    density = torch.where(inside, single.log_prob(torch.where(inside, theta, single.mean)).exp(), 0.0)
    exact = float(density.mean(1).log().sum())
    hyper = torch.tensor([values, values], dtype=torch.float64)
    np.testing.assert_allclose(likelihood.log_likelihood(hyper).numpy(), exact, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "values"),
    [("normal", [0.0, -1.0]), ("uniform", [2.0, 1.0]), ("half_normal", [0.0]), ("beta", [-1.0, 1.0])],
)
def test_invalid_hyperparameters_have_no_density(name: str, values: list[float]) -> None:
    arguments, good = FAMILIES[name]
    theta = torch.full((2, 5), 0.5, dtype=torch.float64)
    likelihood = PopulationLikelihood({"t": family_from(name, arguments, arguments)}, catalogue(theta))
    both = likelihood.log_likelihood(torch.tensor([values, good], dtype=torch.float64))
    assert both[0] == -math.inf
    assert both[1].isfinite()


def test_fixed_numbers_and_hyperparameters_mix() -> None:
    family = family_from("normal", ["mu", 2.0], ["other", "mu"])
    assert family.arguments == (1, 2.0)
    distribution, valid = family.at(torch.tensor([[9.0, 0.5]], dtype=torch.float64))
    assert valid.all()
    assert float(distribution.mean) == 0.5
    assert float(distribution.stddev) == 2.0


def test_marginal_likelihood_of_a_gaussian_population() -> None:
    """Exact posterior draws under N(0, 1): the estimate is N(x; mu, s^2 + sigma^2) within its own variance."""
    noise, mu, sigma, count, draws = 0.5, 0.5, 0.6, 40, 4_000
    stream = torch.Generator().manual_seed(1)
    x = mu + math.hypot(noise, sigma) * torch.randn(count, generator=stream, dtype=torch.float64)
    width = 1 / math.sqrt(1 + 1 / noise**2)
    mean = x / noise**2 * width**2
    theta = mean[:, None] + width * torch.randn(count, draws, generator=stream, dtype=torch.float64)
    members = Catalogue(
        theta={"t": theta},
        log_prior=Normal(0.0, 1.0).log_prob(theta),
        log_evidence=Normal(0.0, math.hypot(1, noise)).log_prob(x),
        distinct=distinct_share(theta),
    )
    likelihood = PopulationLikelihood({"t": family_from("normal", ["mu", "sigma"], ["mu", "sigma"])}, members)
    hyper = torch.tensor([[mu, sigma], [0.2, 0.4], [0.0, 1.0]], dtype=torch.float64)
    exact = torch.stack([Normal(m, math.hypot(noise, s)).log_prob(x).sum() for m, s in hyper.tolist()])
    ess = likelihood.ess(hyper)
    variance = likelihood.variance(ess)
    difference = (likelihood.log_likelihood(hyper) - exact).abs()
    assert (difference <= 4 * variance.sqrt() + 1e-9).all()
    assert (variance < 0.05).all()
    # the last population is the prior: equal weights
    torch.testing.assert_close(ess[2], torch.full((count,), float(draws), dtype=torch.float64))
    assert float(variance[2]) == pytest.approx(0.0, abs=1e-9)


def test_variance_is_that_of_repeated_catalogues() -> None:
    """The delta-method variance against the scatter of 400 estimates from fresh draws."""
    stream = torch.Generator().manual_seed(2)
    family: dict[str, Family] = {"t": family_from("normal", ["mu", "sigma"], ["mu", "sigma"])}
    hyper = torch.tensor([[0.3, 0.6]], dtype=torch.float64)
    estimates, stated = [], []
    for _ in range(400):
        theta = torch.randn(5, 300, generator=stream, dtype=torch.float64)
        likelihood = PopulationLikelihood(family, catalogue(theta, Normal(0.0, 1.0).log_prob(theta)))
        estimates.append(float(likelihood.log_likelihood(hyper)))
        stated.append(float(likelihood.variance(likelihood.ess(hyper))))
    # a variance of 400 has a relative error of sqrt(2 / 400) = 0.07
    assert np.var(estimates) == pytest.approx(np.mean(stated), rel=0.25)


def test_repeated_draws_count_once() -> None:
    theta = torch.randn(3, 400, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    twice = torch.cat([theta, theta], dim=1)
    np.testing.assert_allclose(distinct_share(theta).numpy(), 1.0)
    np.testing.assert_allclose(distinct_share(twice).numpy(), 0.5)
    family = {"t": family_from("normal", ["mu", "sigma"], ["mu", "sigma"])}
    hyper = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    once, doubled = (PopulationLikelihood(family, catalogue(t)) for t in (theta, twice))
    torch.testing.assert_close(once.ess(hyper), doubled.ess(hyper))
    torch.testing.assert_close(once.variance(once.ess(hyper)), doubled.variance(doubled.ess(hyper)))


def test_blocks_do_not_change_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    theta = torch.randn(30, 50, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    family = {"t": family_from("normal", ["mu", "sigma"], ["mu", "sigma"])}
    likelihood = PopulationLikelihood(family, catalogue(theta))
    hyper = torch.tensor([[0.5, 0.5], [0.0, 2.0]], dtype=torch.float64)
    whole = likelihood.log_likelihood(hyper), likelihood.ess(hyper)
    monkeypatch.setattr("pipeline.diagnostics.population.BLOCK", 300)
    torch.testing.assert_close((likelihood.log_likelihood(hyper), likelihood.ess(hyper)), whole)


def test_an_observation_without_draws_has_no_likelihood() -> None:
    theta = torch.tensor([[0.1, 0.2], [5.0, 6.0]], dtype=torch.float64)
    likelihood = PopulationLikelihood({"t": family_from("uniform", ["low", "high"], ["low", "high"])}, catalogue(theta))
    hyper = torch.tensor([[0.0, 1.0], [0.0, 10.0]], dtype=torch.float64)
    values = likelihood.log_likelihood(hyper)
    assert values[0] == -math.inf
    assert values[1].isfinite()
    assert float(likelihood.ess(hyper)[0, 1]) == 0.0
    assert likelihood.variance(likelihood.ess(hyper))[0] == math.inf
