from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.plots.calibration import plot_rank_ecdf, plot_rank_histogram, plot_tarp

LEVEL = np.linspace(0.01, 0.99, 30)
BAND = np.stack([np.full(30, -0.05), np.full(30, 0.05)])


@pytest.mark.parametrize("parameters", [1, 5, 6])
def test_one_panel_for_each_parameter(parameters):
    labels = [f"p{i}" for i in range(parameters)]
    figure = plot_rank_ecdf(LEVEL, np.zeros((30, parameters)), BAND, labels)
    assert [a.get_title() for a in figure.axes] == labels
    reach = figure.axes[0].get_ylim()[1]
    assert reach >= 0.05
    histogram = plot_rank_histogram(np.full((20, parameters), 9.0), np.full(20, 10.0), np.full((2, 20), 10.0), labels)
    assert [a.get_title() for a in histogram.axes] == labels


def test_curves_outside_the_band_stay_on_the_panel():
    figure = plot_rank_ecdf(LEVEL, np.full((30, 1), 0.4), BAND, ["p"])
    assert figure.axes[0].get_ylim()[1] > 0.4


def test_tarp_shows_the_diagonal_and_the_curve():
    axis = plot_tarp(LEVEL, LEVEL**2, BAND + LEVEL).axes[0]
    assert len(axis.get_lines()) == 2
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("credibility", "expected coverage")


def test_bad_shapes_are_explained():
    with pytest.raises(InputError, match="rank ECDF: .*differ in length"):
        plot_rank_ecdf(LEVEL, np.zeros((30, 2)), BAND, ["p"])
    with pytest.raises(InputError, match="TARP: .*differ in length"):
        plot_tarp(LEVEL, LEVEL[:3], BAND)
