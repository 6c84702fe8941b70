from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.plots.predictive import plot_predictive

RNG = np.random.default_rng(1)
TIME = RNG.random(20)
OBSERVED = 3 * TIME
GRID = np.linspace(0, 1, 50)
CURVES = (3 + 0.1 * RNG.standard_normal((200, 1))) * GRID
REPLICATED = 3 * TIME + RNG.standard_normal((200, 20))


def test_residuals_are_taken_from_the_model_s_median():
    figure = plot_predictive(
        TIME,
        OBSERVED,
        error=np.full(20, 0.1),
        replicated=REPLICATED,
        grid=GRID,
        curves=CURVES,
        abscissa_label="time [d]",
        data_label="velocity [m/s]",
    )
    top, bottom = figure.axes
    assert (top.get_ylabel(), bottom.get_xlabel(), bottom.get_ylabel()) == (
        "velocity [m/s]",
        "time [d]",
        "residual [m/s]",
    )
    residual = np.asarray(bottom.get_lines()[0].get_ydata(), dtype=float)
    assert len(residual) == 20
    assert np.abs(residual).max() < 0.05
    assert [t.get_text() for t in top.get_legend().get_texts()] == ["model, 95 %", "model, 68 %", "observed"]


def test_a_logarithmic_abscissa():
    redshift, grid = np.geomspace(0.01, 1, 20), np.geomspace(0.01, 1, 50)
    curves = 5 * np.log10(grid) + 0.1 * RNG.standard_normal((200, 1))
    figure = plot_predictive(redshift, 5 * np.log10(redshift), grid=grid, curves=curves, logarithmic=True)
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}
    residual = np.asarray(figure.axes[1].get_lines()[0].get_ydata(), dtype=float)
    assert np.abs(residual).max() < 0.05  # 0.1 / sqrt(200) times five


def test_without_replicated_data_the_band_of_the_model_is_among_the_residuals():
    figure = plot_predictive(TIME, OBSERVED, grid=GRID, curves=CURVES)
    wide = figure.axes[1].collections[0].get_datalim(figure.axes[1].transData)
    assert wide.ymin == pytest.approx(np.quantile(CURVES[:, -1], 0.025) - np.median(CURVES[:, -1]))
    other = plot_predictive(TIME, OBSERVED, grid=GRID, curves=CURVES, replicated=REPLICATED)
    assert len(other.axes[1].collections) == len(figure.axes[1].collections)  # bars of what is simulated anew instead


def test_means_in_bins_are_weighted():
    x, y, error = np.array([0.0, 0.1, 1.0]), np.array([1.0, 4.0, 7.0]), np.array([1.0, 2.0, 1.0])
    figure = plot_predictive(x, y, error=error, grid=GRID, curves=CURVES, bins=2)
    means = figure.axes[0].get_lines()[2]  # after the median and the data
    np.testing.assert_allclose(means.get_xdata(), [0.02, 1.0])
    np.testing.assert_allclose(means.get_ydata(), [1.6, 7.0])
    assert "mean" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("size", [20, 100])
def test_replicated_data_alone_are_enough(size):
    time = np.linspace(0, 1, size)
    figure = plot_predictive(time, time, replicated=time + RNG.standard_normal((100, size)))
    assert figure.axes[1].get_xlabel() == "data point"


def test_bad_input_is_explained():
    with pytest.raises(InputError, match="give `replicated`, or both `grid` and `curves`"):
        plot_predictive(TIME, OBSERVED, grid=GRID)
    with pytest.raises(InputError, match=r"expected replicated \(K, 20\)"):
        plot_predictive(TIME, OBSERVED, replicated=REPLICATED[:, :3])
    with pytest.raises(InputError, match=r"expected curves \(K, 50\)"):
        plot_predictive(TIME, OBSERVED, grid=GRID, curves=CURVES[:, :3])
    with pytest.raises(InputError, match="data and errors"):
        plot_predictive(TIME, OBSERVED[:3], replicated=REPLICATED)
