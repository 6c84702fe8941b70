from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.baselines.evidence_check import StudentMixture, evidence_from_draws, fit_mixture
from pipeline.errors import InputError


def test_closed_form_evidence_with_a_true_error(oracle):
    draws = oracle.draws(4000, seed=1)
    checks = [evidence_from_draws(draws, oracle.log_joint, seed=seed, count=5000) for seed in range(8)]
    errors = np.array([c.log_evidence_error for c in checks])
    deviations = np.array([c.log_evidence for c in checks]) - oracle.log_evidence
    assert errors.max() < 0.01
    assert np.abs(deviations / errors).max() < 4
    assert 0.3 < (deviations / errors).std() < 1.8
    assert checks[0].ess_fraction > 0.7
    assert checks[0].pareto_k < 0.5
    assert checks[0].likelihood_calls == 5000


def test_two_modes_and_a_bounded_support():
    # half of each mode is outside the support theta_1 > 0; Z = 2 * 0.5 in units of the two Gaussians
    def log_joint(theta):
        left = stats.norm.logpdf(theta[:, 1], -30, 0.1) + np.log(0.25)
        modes = np.logaddexp(left, stats.norm.logpdf(theta[:, 1], 30, 0.5) + np.log(0.75))
        return np.where(theta[:, 0] > 0, modes + stats.norm.logpdf(theta[:, 0]), -np.inf)

    rng = np.random.default_rng(1)
    first = rng.random(6000) < 0.25
    second = np.where(first, -30 + 0.1 * rng.standard_normal(6000), 30 + 0.5 * rng.standard_normal(6000))
    draws = np.stack([np.abs(rng.standard_normal(6000)), second], axis=1)
    check = evidence_from_draws(draws, log_joint, seed=1, count=20_000)
    assert abs(check.log_evidence - np.log(0.5)) < 4 * check.log_evidence_error < 0.1
    assert check.components > 1
    assert check.refused > 0


def test_a_shift_of_the_density_shifts_the_evidence_by_exactly_that(oracle):
    draws = oracle.draws(1000, seed=1)
    plain = evidence_from_draws(draws, oracle.log_joint, seed=1, count=2000)
    shifted = evidence_from_draws(draws, lambda t: oracle.log_joint(t) - 1e4, seed=1, count=2000)
    assert shifted.log_evidence == pytest.approx(plain.log_evidence - 1e4, abs=1e-8)
    assert shifted.log_evidence_error == pytest.approx(plain.log_evidence_error, rel=1e-6)


def test_a_lost_mode_is_not_seen():
    """What the docstring warns of: two equal modes, draws of one, half of the evidence."""

    def log_joint(theta):
        return np.logaddexp(stats.norm.logpdf(theta[:, 0], -40), stats.norm.logpdf(theta[:, 0], 40)) - np.log(2)

    draws = 40 + np.random.default_rng(1).standard_normal((2000, 1))
    check = evidence_from_draws(draws, log_joint, seed=1, count=5000)
    assert check.log_evidence == pytest.approx(np.log(0.5), abs=0.05)


def test_mixture_density_integrates_to_one_and_matches_its_draws():
    rng = np.random.default_rng(1)
    draws = np.concatenate([rng.standard_normal((600, 1)), 8 + 2 * rng.standard_normal((400, 1))])
    mixture = fit_mixture(draws, rng=rng)
    assert isinstance(mixture, StudentMixture)
    assert mixture.weight.sum() == pytest.approx(1)
    grid = np.linspace(-400, 400, 200_001)
    density = np.exp(mixture.log_prob(grid[:, None]))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-4)
    cdf = np.interp(mixture.sample(4000, rng)[:, 0], grid, np.cumsum(density) * (grid[1] - grid[0]))
    assert stats.kstest(cdf, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        (np.zeros((10, 2)), "S at least 200"),
        (np.zeros((500, 2)), "same value in every draw"),
        (np.full((500, 2), np.inf), "not finite"),
    ],
)
def test_bad_draws_are_explained(draws, message):
    with pytest.raises(InputError, match=message):
        evidence_from_draws(draws, lambda t: t.sum(1), seed=1)


def test_density_that_is_zero_everywhere_is_an_error(oracle):
    with pytest.raises(InputError, match="not finite at any of 1000 draws"):
        evidence_from_draws(oracle.draws(500, seed=1), lambda t: np.full(len(t), -np.inf), seed=1, count=1000)
