from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.diagnostics.calibration import Calibration, calibrate, expected_coverage, sbc_ranks, tarp
from pipeline.errors import InputError
from simulators.linear_gaussian import LinearGaussian

COUNT, DRAWS, DIMENSION = 400, 200, 3


def truth_and_draws(scale=1.0, shift=0.0, seed=5):
    """Truths and draws of the exact posterior, made narrower by `scale` and moved by `shift` widths."""
    simulator = LinearGaussian(dimension=DIMENSION)
    g = torch.Generator().manual_seed(seed)
    theta = torch.randn((COUNT, DIMENSION), generator=g, dtype=torch.float64)
    posterior = simulator.posterior(simulator.simulate(theta, generator=g)["x"])
    z = torch.randn((DRAWS, COUNT, DIMENSION), generator=g, dtype=torch.float64)
    factor = posterior.scale_tril.reshape(-1, DIMENSION, DIMENSION)[0]
    return theta, posterior.loc + scale * z @ factor.T + shift * posterior.stddev


def inside_band(calibration: Calibration):
    """Where the distribution functions of the ranks are inside their band, (J, D)."""
    lower, upper = calibration.ecdf_band[:, :, None]
    return (calibration.ecdf_difference >= lower) & (calibration.ecdf_difference <= upper)


@pytest.fixture(scope="module")
def exact() -> Calibration:
    return calibrate(*truth_and_draws(), seed=1)


def test_exact_posterior_passes(exact):
    assert exact.passed
    assert exact.least_p_value > 0.01
    assert exact.ranks.shape == (COUNT, DIMENSION)
    assert exact.ranks.min() >= 0
    assert exact.ranks.max() <= DRAWS
    assert inside_band(exact).all()
    t = exact.tarp
    assert ((t.expected_coverage >= t.band[0] - 1e-6) & (t.expected_coverage <= t.band[1] + 1e-6)).mean() > 0.99
    assert abs(exact.coverage - exact.coverage_level[:, None]).max() < 0.1
    assert exact.histogram_count.sum(0).tolist() == [COUNT] * DIMENSION
    assert exact.histogram_expected.sum() == pytest.approx(COUNT)


@pytest.mark.parametrize(
    ("scale", "shift"), [(0.5, 0.0), (2.0, 0.0), (1.0, 0.5)], ids=["overconfident", "underconfident", "biased"]
)
def test_wrong_posteriors_fail(scale, shift):
    wrong = calibrate(*truth_and_draws(scale, shift), seed=1)
    assert not wrong.passed
    assert wrong.ks_p_value.max() < 1e-3
    assert wrong.tarp.p_value < (1e-3 if shift == 0 else 0.05)  # TARP is nearly blind to a common shift
    assert (~inside_band(wrong)).any(axis=0).all()


def test_a_lacking_tail_fails_where_the_other_tests_are_blind():
    """Draws that end 2.3 standard deviations above their mean: one true value in a hundred lies above all of them."""
    g = torch.Generator().manual_seed(8)
    theta = torch.randn((2_000, 1), generator=g, dtype=torch.float64)
    draws = torch.randn((300, 2_000, 1), generator=g, dtype=torch.float64)
    assert calibrate(theta, draws, seed=1).passed
    cut = calibrate(theta, draws.clamp_max(2.3) - 1e-9 * draws.abs(), seed=1)
    assert cut.ks_p_value.min() > 0.01
    assert cut.tarp.p_value > 0.01
    assert cut.outside_p_value.max() < 1e-4
    assert not cut.passed


def test_direction_of_the_error_shows():
    narrow, wide = (calibrate(*truth_and_draws(s), seed=1) for s in (0.5, 2.0))
    assert narrow.tarp.area_to_curve < 0 < wide.tarp.area_to_curve
    middle = narrow.coverage_level.searchsorted(0.5)
    assert (narrow.coverage[middle] < 0.4).all()
    assert (wide.coverage[middle] > 0.6).all()
    low, high = narrow.histogram_count[[0, -1]].min(), wide.histogram_count[[0, -1]].max()
    assert low > narrow.histogram_band[1].max()
    assert high < wide.histogram_band[0].min() + 1


def test_a_posterior_that_returns_the_prior_passes():
    """The blind spot that the docstrings name."""
    g = torch.Generator().manual_seed(3)
    theta = torch.randn((COUNT, DIMENSION), generator=g, dtype=torch.float64)
    assert calibrate(theta, torch.randn((DRAWS, COUNT, DIMENSION), generator=g, dtype=torch.float64), seed=1).passed


def test_is_seeded_and_leaves_torch_s_global_state_alone(exact):
    before = torch.get_rng_state()
    again = calibrate(*truth_and_draws(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(again.tarp.expected_coverage, exact.tarp.expected_coverage)
    np.testing.assert_array_equal(again.ecdf_band, exact.ecdf_band)
    assert not np.array_equal(tarp(*truth_and_draws(), seed=2).expected_coverage, exact.tarp.expected_coverage)


def test_ranks_and_coverage_by_hand():
    theta = torch.arange(20.0)[:, None]  # truth n has n of the draws 0.5, 1.5 ... below it
    draws = (torch.arange(20.0) - 0.5)[:, None, None].expand(20, 20, 1)
    np.testing.assert_array_equal(sbc_ranks(theta, draws)[:, 0], np.arange(1, 21))
    alpha, coverage = expected_coverage(np.array([[0], [10], [20]]), 20, levels=2)
    np.testing.assert_allclose(alpha, [0, 0.5, 1])
    np.testing.assert_allclose(coverage[:, 0], [1 / 3, 1 / 3, 1])


@pytest.mark.parametrize(
    ("true_shape", "draws_shape", "message"),
    [
        ((50, 2), (50, 2), "expected theta_true"),
        ((50, 2), (30, 50, 3), "expected theta_true"),
        ((50, 2), (5, 50, 2), "at least 20"),
    ],
)
def test_bad_shapes_are_explained(true_shape, draws_shape, message):
    with pytest.raises(InputError, match=message):
        calibrate(torch.zeros(true_shape), torch.zeros(draws_shape), seed=1)


def test_not_finite_is_refused():
    theta, draws = truth_and_draws()
    draws[3, 4, 1] = float("nan")
    with pytest.raises(InputError, match="1 values of theta are not finite"):
        sbc_ranks(theta, draws)
