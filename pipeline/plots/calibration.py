"""Calibration on held-out simulations: ranks of the true parameters, and TARP's coverage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.plots.style import BLUE, GREY, INK, WIDTH_IN, freeze_layout, house_style, new_figure

Array = NDArray[np.float64]
COLUMNS = 4


def plot_rank_ecdf(level: Array, difference: Array, band: Array, labels: Sequence[str]) -> Figure:
    """Distribution function of each parameter's ranks minus the uniform one, with its simultaneous band.

    Args:
        level: normalised rank, (J,).
        difference: (J, D).
        band: lower and upper bound, (2, J).
        labels: of the D parameters; units do not matter here.

    Raises:
        InputError: shapes that do not match.
    """
    _check(difference.shape == (len(level), len(labels)) and band.shape == (2, len(level)), "rank ECDF")
    with house_style():
        figure, panels = _panels(len(labels), height=1.5)
        reach = 1.15 * float(max(np.abs(difference).max(), np.abs(band).max()))
        for d, panel in enumerate(panels):
            panel.fill_between(level, band[0], band[1], color=GREY, alpha=0.3, linewidth=0)
            panel.axhline(0, color=INK, linewidth=0.6)
            panel.step(level, difference[:, d], color=BLUE, where="mid")
            panel.set(title=labels[d], xlim=(0, 1), ylim=(-reach, reach))
        figure.supxlabel("rank of the true value, as a fraction", fontsize=9)
        figure.supylabel("ECDF - uniform", fontsize=9)
        return freeze_layout(figure)


def plot_rank_histogram(count: Array, expected: Array, band: Array, labels: Sequence[str]) -> Figure:
    """Ranks of each parameter in bins, over their expected number, with the pointwise band.

    Args:
        count: (B, D).
        expected: (B,).
        band: lower and upper bound of the count, (2, B).
        labels: of the D parameters.

    Raises:
        InputError: shapes that do not match.
    """
    bins = len(expected)
    _check(count.shape == (bins, len(labels)) and band.shape == (2, bins), "rank histogram")
    edges = np.linspace(0, 1, bins + 1)
    with house_style():
        figure, panels = _panels(len(labels), height=1.5)
        top = 1.1 * float(max((count / expected[:, None]).max(), (band[1] / expected).max()))
        for d, panel in enumerate(panels):
            lower, upper = (np.append(b / expected, (b / expected)[-1]) for b in band)
            panel.fill_between(edges, lower, upper, step="post", color=GREY, alpha=0.3, linewidth=0)
            panel.axhline(1, color=INK, linewidth=0.6)
            panel.stairs(count[:, d] / expected, edges, color=BLUE, linewidth=1.2, baseline=None)
            panel.set(title=labels[d], xlim=(0, 1), ylim=(0, top))
        figure.supxlabel("rank of the true value, as a fraction", fontsize=9)
        figure.supylabel("count / expected", fontsize=9)
        return freeze_layout(figure)


def plot_tarp(alpha: Array, expected_coverage: Array, band: Array) -> Figure:
    """Expected coverage against credibility, with its simultaneous band.

    Args:
        alpha: (J,).
        expected_coverage: (J,).
        band: lower and upper bound of the coverage of an exact posterior, (2, J).

    Raises:
        InputError: shapes that do not match.
    """
    _check(expected_coverage.shape == alpha.shape and band.shape == (2, len(alpha)), "TARP")
    with house_style():
        figure = new_figure(3.4, 3.3)
        axis = figure.subplots()
        axis.fill_between(alpha, band[0], band[1], color=GREY, alpha=0.3, linewidth=0)
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.6)
        axis.plot(alpha, expected_coverage, color=BLUE)
        axis.set(xlabel="credibility", ylabel="expected coverage", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        return freeze_layout(figure)


def _panels(count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, COLUMNS) if count != 5 else 5
    rows = -(-count // columns)
    figure = new_figure(max(WIDTH_IN * columns / 4, 3.4) if columns < 4 else WIDTH_IN, height * rows + 0.45)
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.tick_params(labelbottom=True)
    return figure, axes[:count]


def _check(fits: bool, what: str) -> None:
    if not fits:
        raise InputError(f"{what}: levels, curves, band and labels differ in length")
