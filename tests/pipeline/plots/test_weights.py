from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.plots.weights import WeightSet, plot_weights


def test_shows_spread_and_concentration():
    log_weight = np.random.default_rng(1).standard_normal(1000) - 1e4
    log_weight[:10] = -np.inf
    log_weight[10] = np.nan
    figure = plot_weights([WeightSet("q", log_weight, 0.4, 0.3), WeightSet("equal", np.zeros(1000), 1.0, -np.inf)])
    left, right = figure.axes
    assert next(t.get_text() for t in left.get_legend().get_texts()) == "q\nESS 40 %, Pareto k 0.30"
    q, equal, _ = (np.asarray(line.get_ydata(), dtype=float) for line in right.get_lines())
    assert q[-1] == pytest.approx(1)
    assert (np.diff(q) >= 0).all()
    np.testing.assert_allclose(equal, right.get_lines()[1].get_xdata())


def test_no_finite_weight_is_an_error():
    with pytest.raises(InputError, match="each with a finite log weight"):
        plot_weights([WeightSet("q", np.full(10, -np.inf), 0.0, np.inf)])
