from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.diagnostics.uniformity import pointwise_band, simultaneous_band


@pytest.mark.parametrize("probability", [0.9, 0.99])
def test_band_holds_whole_curves_with_the_stated_probability(probability):
    levels = np.linspace(0.01, 0.99, 60)
    lower, upper = simultaneous_band(levels, 250, probability=probability, seed=1)
    u = np.random.default_rng(2).random((3000, 250))
    ecdf = (u[:, :, None] <= levels).mean(1)
    inside = ((ecdf >= lower) & (ecdf <= upper)).all(1).mean()
    assert inside == pytest.approx(probability, abs=4 * np.sqrt(probability * (1 - probability) / 3000) + 0.01)


def test_band_is_wider_than_pointwise_intervals_and_closed_at_the_ends():
    levels = np.array([0.0, 0.5, 1.0])
    lower, upper = simultaneous_band(levels, 100, seed=1)
    assert (lower[0], upper[0]) == (0.0, 0.0)
    assert (lower[-1], upper[-1]) == (1.0, 1.0)
    wide = simultaneous_band(np.linspace(0.01, 0.99, 50), 100, seed=1)
    assert wide[1][25] > binom.ppf(0.995, 100, 0.51) / 100


def test_pointwise_band_is_the_binomial_interval():
    lower, upper = pointwise_band(np.array([0.05]), 1000, probability=0.95)
    assert (lower[0], upper[0]) == (binom.ppf(0.025, 1000, 0.05), binom.ppf(0.975, 1000, 0.05))
