from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.baselines.nautilus_sampler import run_nautilus
from pipeline.errors import InputError


def test_recovers_the_closed_form_posterior_and_evidence(oracle):
    calls: list[int] = []
    result = run_nautilus(
        oracle.log_likelihood,
        oracle.prior_quantile,
        3,
        live_points=300,
        effective_draws=3000,
        seed=1,
        progress=lambda done, total: calls.append(done),
    )
    assert result.converged
    assert result.log_evidence is not None
    assert result.log_evidence_error is not None
    assert result.log_evidence_error < 0.02
    assert abs(result.log_evidence - oracle.log_evidence) < 4 * result.log_evidence_error
    assert result.draws.shape == (3000, 3)
    shift = np.abs(result.draws.mean(0) - oracle.mean)
    np.testing.assert_array_less(shift, 5 * oracle.standard_deviation / np.sqrt(3000))
    np.testing.assert_allclose(result.draws.std(0), oracle.standard_deviation, rtol=0.07)
    assert result.likelihood_calls == calls[-1]
    assert result.checks["bounds"] > 1


def test_zero_likelihood_and_one_parameter():
    # half of the prior has likelihood zero, some of it NaN: Z = <N(theta; 0.3, 0.1)>, theta uniform on (0.3, 1)
    def log_likelihood(theta):
        values = np.where(theta[:, 0] > 0.3, stats.norm.logpdf(theta[:, 0], 0.3, 0.1), -np.inf)
        return np.where(theta[:, 0] < 0.05, np.nan, values)

    result = run_nautilus(log_likelihood, lambda cube: cube, 1, live_points=200, effective_draws=2000, seed=2)
    assert result.log_evidence == pytest.approx(np.log(0.5), abs=4 * 0.025)
    assert (result.draws > 0.3).all()
    assert result.draws.shape == (2000, 1)
    assert result.checks["refused"] > 0


def test_same_seed_same_result():
    def run(seed):
        def log_likelihood(theta):
            return -0.5 * (theta**2).sum(1)

        def prior_quantile(cube):
            return 2 * cube - 1

        return run_nautilus(
            log_likelihood, prior_quantile, 2, live_points=60, effective_draws=300, seed=seed, max_calls=500
        )

    first, again, other = run(5), run(5), run(6)
    np.testing.assert_array_equal(first.draws, again.draws)
    assert first.log_evidence == again.log_evidence != other.log_evidence


def test_too_few_calls_is_not_converged(oracle):
    result = run_nautilus(
        oracle.log_likelihood, oracle.prior_quantile, 3, live_points=100, effective_draws=3000, seed=1, max_calls=500
    )
    assert not result.converged


def test_bad_arguments_are_explained(oracle):
    with pytest.raises(InputError, match="live_points >= 50"):
        run_nautilus(oracle.log_likelihood, oracle.prior_quantile, 3, live_points=1, effective_draws=3000, seed=1)


@pytest.mark.parametrize(
    ("max_calls", "message"), [(None, "zero at the first 5000 points"), (500, "zero at all 500 points")]
)
def test_likelihood_that_is_zero_everywhere_ends_with_an_error(max_calls, message):
    def zero(theta):
        return np.full(len(theta), -np.inf)

    with pytest.raises(InputError, match=message):
        run_nautilus(zero, lambda c: c, 2, live_points=50, effective_draws=100, seed=1, max_calls=max_calls)
