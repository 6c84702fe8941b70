from __future__ import annotations

import numpy as np
import pytest

from pipeline.baselines.emcee_sampler import ensemble_checks, run_emcee
from pipeline.errors import InputError


def test_recovers_the_closed_form_posterior_and_says_so(oracle):
    seen: list[tuple[int, int | None]] = []
    result = run_emcee(
        oracle.log_joint,
        oracle.draws(32, seed=1),
        steps=1500,
        burn_in=50,
        seed=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert result.converged, result.checks
    assert result.log_evidence is None
    assert result.log_evidence_error is None
    assert len(result.draws) >= 10_000
    error = oracle.standard_deviation / np.sqrt(result.checks["ess_bulk"])
    np.testing.assert_array_less(np.abs(result.draws.mean(0) - oracle.mean), 5 * error)
    np.testing.assert_allclose(result.draws.std(0), oracle.standard_deviation, rtol=0.06)
    assert result.likelihood_calls == 32 * (1500 + 50 + 1) == seen[-1][0]
    assert result.wall_time_s > 0


def test_same_seed_same_draws_whatever_numpy_s_global_state(oracle):
    start = oracle.draws(16, seed=1)

    def run(seed):
        np.random.rand()  # noqa: NPY002 (moves the global state, which emcee reads if it is let)
        return run_emcee(oracle.log_joint, start, steps=40, burn_in=5, seed=seed).draws

    first, again, other = run(3), run(3), run(4)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_repeated_and_outside_walkers_are_moved_inside(oracle):
    def positive(theta):
        return np.where((theta > 0).all(1), oracle.log_joint(theta), -np.inf)

    start = np.abs(oracle.draws(16, seed=1)) + 1e-6
    start[5:9] = start[4]
    start[9:12] = -1.0
    result = run_emcee(positive, start, steps=60, burn_in=0, seed=3)
    assert (result.draws > 0).all()
    assert len(np.unique(result.draws[-16:], axis=0)) == 16


def test_walkers_stuck_in_two_modes_fail_r_hat_though_not_the_autocorrelation_time():
    rng = np.random.default_rng(1)
    chain = rng.choice([-50.0, 50.0], size=(1, 32, 2)) + rng.standard_normal((400, 32, 2))
    checks = ensemble_checks(chain)
    assert checks["autocorrelation_time"] < 2
    assert checks["r_hat"] > 1.3


def test_a_short_run_is_not_converged(oracle):
    assert not run_emcee(oracle.log_joint, oracle.draws(16, seed=1), steps=60, burn_in=0, seed=3).converged


def test_a_chain_that_never_moves_is_not_converged():
    start = np.arange(8.0)[:, None]

    def only_at_the_start(theta):
        return np.where(np.isin(theta[:, 0], start), 0.0, -np.inf)

    result = run_emcee(only_at_the_start, start, steps=60, burn_in=0, seed=3)
    assert not result.converged
    assert result.checks["acceptance_fraction"] == 0


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (np.zeros(4), {}, r"expected shape \(W, D\)"),
        (np.zeros((5, 3)), {}, "at least 6 walkers, got 5"),
        (np.zeros((8, 3)), {"steps": 0}, "expected steps >= 10"),
        (np.full((8, 3), np.nan), {}, "not finite"),
        (np.full((8, 3), 1e9), {}, "inside the prior's support"),
    ],
)
def test_bad_arguments_are_explained(start, options, message):
    def density(theta):
        return np.where((np.abs(theta) < 1).all(1), 0.0, -np.inf)

    with pytest.raises(InputError, match=message):
        run_emcee(density, start, **({"steps": 20, "burn_in": 0, "seed": 1} | options))
