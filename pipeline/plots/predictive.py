"""Data against what the posterior predicts for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.plots.style import BLUE, INK, VERMILLION, WIDTH_IN, freeze_layout, grid_lines, house_style, new_figure

Array = NDArray[np.float64]
CENTRAL = (0.025, 0.16, 0.5, 0.84, 0.975)
FEW = 60  # data points that are drawn one by one


def plot_predictive(
    abscissa: Array,
    observed: Array,
    *,
    error: Array | None = None,
    replicated: Array | None = None,
    grid: Array | None = None,
    curves: Array | None = None,
    abscissa_label: str = "data point",
    data_label: str = "data",
    logarithmic: bool = False,
    bins: int = 0,
) -> Figure:
    """Observed data, posterior bands at 68 and 95 %, and residuals from the posterior median.

    With `grid` and `curves` the band is that of the noise-free model; with `replicated` alone it is that of data
    simulated anew. In the lower panel `replicated` gives the range in which residuals are expected; without it the band of the model is
    drawn there too.

    Args:
        abscissa: (M,).
        observed: (M,).
        error: 1-sigma errors of the data, (M,).
        replicated: data simulated from K posterior draws, (K, M).
        grid: abscissa of the model curves, increasing, (G,).
        curves: model curves of K posterior draws, (K, G).
        abscissa_label: with unit.
        data_label: with unit.
        logarithmic: whether the abscissa is.
        bins: means of the data, weighted by 1 / error^2, in so many even bins of the abscissa; 0 draws none.

    Raises:
        InputError: nothing predicted, or shapes that do not match.
    """
    _check(abscissa, observed, error, replicated, grid, curves)
    order = np.argsort(abscissa, kind="stable")
    at = abscissa[order]
    bands = None if replicated is None else np.quantile(replicated[:, order], CENTRAL, axis=0)  # (5, M)
    with house_style():
        figure = new_figure(WIDTH_IN, 3.6)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1])
        if grid is not None and curves is not None:
            model = np.quantile(curves, CENTRAL, axis=0)
            median = np.interp(np.log(at), np.log(grid), model[2]) if logarithmic else np.interp(at, grid, model[2])
            _shade(top, grid, model, "model")
            if bands is None:
                _bands(bottom, grid, model - model[2])
        elif bands is not None:
            median = bands[2]
            (_shade if len(at) > FEW else _intervals)(top, at, bands, "replicated data")
        else:
            raise InputError("predictive plot: give `replicated`, or both `grid` and `curves`")
        _points(top, abscissa, observed, error)
        if bins:
            _means(top, abscissa, observed, error, bins)
        top.set_ylabel(data_label)
        top.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)  # above: the points leave no room
        if bands is not None:
            _intervals(bottom, at, bands - median)
        _points(bottom, at, observed[order] - median, None if error is None else error[order])
        if bins:
            _means(bottom, at, observed[order] - median, None if error is None else error[order], bins)
        bottom.axhline(0, color=INK, linewidth=0.6)
        unit = data_label[data_label.rindex(" [") :] if " [" in data_label else ""
        bottom.set(xlabel=abscissa_label, ylabel=f"residual{unit}", xscale="log" if logarithmic else "linear")
        figure.align_ylabels()
        grid_lines(bottom)
        return freeze_layout(figure)


def _points(axis: Axes, x: Array, y: Array, error: Array | None) -> None:
    few = len(x) <= FEW
    look: dict[str, Any] = {"markersize": 3, "elinewidth": 0.8} if few else {"markersize": 2, "elinewidth": 0.4}
    axis.errorbar(x, y, yerr=error, fmt="o", color=INK, alpha=1 if few else 0.5, zorder=3, label="observed", **look)


def _means(axis: Axes, x: Array, y: Array, error: Array | None, bins: int) -> None:
    r"""Weighted means in even bins and their errors $(\sum 1/error^2)^{-1/2}$; bins without points have none."""
    edges = np.linspace(x.min(), x.max(), bins + 1)
    bin_of = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    weight = np.ones_like(x) if error is None else error**-2.0
    total, at, mean = (np.bincount(bin_of, weight * v, minlength=bins) for v in (np.ones_like(x), x, y))
    there = total > 0
    bar = None if error is None else total[there] ** -0.5
    where, height = at[there] / total[there], mean[there] / total[there]
    axis.errorbar(
        where, height, yerr=bar, fmt="s", color=VERMILLION, markersize=4, elinewidth=1.2, zorder=4, label="mean"
    )


def _shade(axis: Axes, x: Array, quantiles: Array, name: str) -> None:
    """Median and the two central intervals, (5, G)."""
    _bands(axis, x, quantiles, name)
    axis.plot(x, quantiles[2], color=BLUE, linewidth=1.0)


def _bands(axis: Axes, x: Array, quantiles: Array, name: str = "") -> None:
    """The two central intervals of (5, G)."""
    wide, narrow = _names(name)
    axis.fill_between(x, quantiles[0], quantiles[4], color=BLUE, alpha=0.15, linewidth=0, label=wide)
    axis.fill_between(x, quantiles[1], quantiles[3], color=BLUE, alpha=0.3, linewidth=0, label=narrow)


def _intervals(axis: Axes, x: Array, quantiles: Array, name: str = "") -> None:
    """Where replicated data fall: a bar for each point, since between the points nothing was simulated."""
    wide, narrow = _names(name)
    axis.vlines(x, quantiles[0], quantiles[4], color=BLUE, alpha=0.2, linewidth=5, label=wide)
    axis.vlines(x, quantiles[1], quantiles[3], color=BLUE, alpha=0.35, linewidth=5, label=narrow)


def _names(name: str) -> tuple[str, str]:
    """Of the two intervals in a legend; "" stays out of it."""
    return (f"{name}, 95 %", f"{name}, 68 %") if name else ("", "")


def _check(
    abscissa: Array,
    observed: Array,
    error: Array | None,
    replicated: Array | None,
    grid: Array | None,
    curves: Array | None,
) -> None:
    size = len(abscissa)
    if abscissa.shape != (size,) or observed.shape != (size,) or (error is not None and error.shape != (size,)):
        raise InputError(f"predictive plot: expected ({size},) data and errors, got {observed.shape}")
    if replicated is not None and replicated.shape[1:] != (size,):
        raise InputError(f"predictive plot: expected replicated (K, {size}), got {replicated.shape}")
    if grid is not None and curves is not None and curves.shape[1:] != grid.shape:
        raise InputError(f"predictive plot: expected curves (K, {len(grid)}), got {curves.shape}")
