from __future__ import annotations

import numpy as np
import pytest

from pipeline.baselines.counted_density import CountedDensity


def test_counts_calls_and_reports_progress():
    seen: list[tuple[int, int | None]] = []
    density = CountedDensity(lambda t: t.sum(1), progress=lambda done, total: seen.append((done, total)), expected=9)
    density(np.ones((4, 2)))
    density(np.ones((5, 2)))
    assert density.calls == 9
    assert seen == [(4, 9), (9, 9)]


def test_nan_and_plus_infinity_become_zero_density_and_are_counted():
    values = np.array([0.0, np.nan, np.inf, -np.inf])
    density = CountedDensity(lambda t: values)
    np.testing.assert_array_equal(density(np.zeros((4, 1))), [0.0, -np.inf, -np.inf, -np.inf])
    assert density.refused == 2  # -inf is a legitimate value
    assert np.isnan(values[1])  # the caller's array is left alone


def test_wrong_shape_is_explained():
    with pytest.raises(ValueError, match=r"expected shape \(4,\).*got \(4, 1\).*one value for each row"):
        CountedDensity(lambda t: t[:, :1])(np.zeros((4, 2)))
