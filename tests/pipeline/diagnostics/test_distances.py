from __future__ import annotations

import numpy as np
import pytest

from pipeline.diagnostics.distances import marginal_distances
from pipeline.errors import InputError


def test_affine_changes_are_measured_in_reference_widths():
    reference = np.random.default_rng(1).standard_normal((20_000, 2)) * [1e-6, 300.0] + [5.0, -1e4]
    spread = reference.std(0, ddof=1)
    shifted = marginal_distances(reference, reference + 0.5 * spread)
    np.testing.assert_allclose(shifted.mean_shift, 0.5, atol=1e-6)
    np.testing.assert_allclose(shifted.width_ratio, 1.0, atol=1e-6)
    np.testing.assert_allclose(shifted.wasserstein, 0.5, atol=1e-6)
    wide = marginal_distances(reference, reference.mean(0) + 2 * (reference - reference.mean(0)))
    np.testing.assert_allclose(wide.width_ratio, 2.0, rtol=1e-6)
    np.testing.assert_allclose(wide.mean_shift, 0.0, atol=1e-6)
    np.testing.assert_allclose(wide.wasserstein, np.sqrt(2 / np.pi), rtol=0.02)  # <|z|> of a unit Gaussian


def test_two_draws_of_one_distribution_differ_by_monte_carlo_noise():
    rng = np.random.default_rng(1)
    distances = marginal_distances(rng.standard_normal((4000, 3)), rng.standard_normal((1000, 3)))
    assert np.abs(distances.mean_shift).max() < 4 / np.sqrt(800)
    assert distances.wasserstein.max() < 3 / np.sqrt(800)


def test_bad_input_is_explained():
    with pytest.raises(InputError, match="expected .S, D."):
        marginal_distances(np.zeros((60, 2)), np.zeros((60, 1)))
