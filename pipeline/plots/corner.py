"""Corner plot: one- and two-dimensional marginals of several sets of draws, on top of each other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.plots.style import CYCLE, INK, house_style

CONTOURS = (0.68, 0.95)
TAILS = (0.001, 0.999)
BINS = 40
MARGIN_IN = 0.85  # left and below: tick labels, then the label of the axis
LABEL_IN = 0.6


@dataclass(frozen=True)
class DrawSet:
    """Draws to be shown.

    Attributes:
        label: in the legend.
        draws: (S, D).
        weights: (S,), not negative; None where all count the same.
        color: matplotlib colour; "" takes the next of the cycle.
        line: matplotlib line style.
    """

    label: str
    draws: NDArray[np.float64]
    weights: NDArray[np.float64] | None = None
    color: str = ""
    line: Literal["-", "--", ":", "-."] = "-"


def plot_corner(
    sets: Sequence[DrawSet],
    labels: Sequence[str],
    *,
    range_from: int = 0,
    truth: NDArray[np.float64] | None = None,
) -> Figure:
    """Marginals of several sets of draws, contours at 68 and 95 %.

    Args:
        sets: drawn in their order, the first filled in the histograms.
        labels: of the D parameters, with units.
        range_from: index of the set whose 0.1 and 99.9 % quantiles set the ranges of all, so that a thin tail
            does not shrink the rest to a dot.
        truth: true values, (D,), drawn as lines.

    Raises:
        InputError: no sets, or shapes that do not match.
    """
    dimension = len(labels)
    _check(sets, dimension, range_from)
    ranges = shared_ranges(sets[range_from], truth=truth)
    size = float(np.clip(1.3 * dimension + MARGIN_IN, 3.4, 14.0))
    colors = [s.color or CYCLE[i % len(CYCLE)] for i, s in enumerate(sets)]
    with house_style(), warnings.catch_warnings():
        # a set that lies outside the ranges has no contour inside them; its empty panel says so
        warnings.filterwarnings("ignore", "No contour levels were found")
        warnings.filterwarnings("ignore", "Attempting to set identical low and high ylims")
        figure = Figure(figsize=(size, size))
        inside = [_reaches_every_panel(s, ranges) for s in sets]
        for s, color, drawn in zip(sets, colors, inside, strict=True):
            if drawn:
                _overlay(figure, s, labels, ranges, color)
        axes = np.array(figure.axes, dtype=object).reshape(dimension, dimension)
        _tidy(axes, fill=colors[0], panel_in=(size - MARGIN_IN) / dimension)
        handles = [
            Line2D([], [], color=c, linestyle=s.line, label=s.label if drawn else f"{s.label} (outside the ranges)")
            for s, c, drawn in zip(sets, colors, inside, strict=True)
        ]
        if truth is not None:
            _mark_truth(axes, np.asarray(truth, dtype=np.float64))
            handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (1, 1.5)), label="true value"))
        margin = MARGIN_IN / size
        roof = 1.0 - (0.06 if dimension > 2 else 0.2 * len(handles) + 0.1) / size
        figure.subplots_adjust(left=margin, bottom=margin, right=0.985, top=roof, wspace=0.06, hspace=0.06)
        figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.99, 0.995), borderaxespad=0.0)
    return figure


def shared_ranges(reference: DrawSet, *, truth: NDArray[np.float64] | None = None) -> list[tuple[float, float]]:
    """Range of each parameter: 0.1 to 99.9 % quantiles of the reference, the truth included, with 5 % to spare."""
    ranges = []
    for d in range(reference.draws.shape[1]):
        low, high = weighted_quantile(reference.draws[:, d], np.array(TAILS), reference.weights)
        if truth is not None:
            low, high = min(low, truth[d]), max(high, truth[d])
        spare = 0.05 * (high - low) or max(abs(low), 1.0) * 1e-3  # a constant parameter has a range all the same
        ranges.append((float(low - spare), float(high + spare)))
    return ranges


def weighted_quantile(
    values: NDArray[np.float64], quantiles: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Quantiles of weighted values: inverse of the weighted empirical distribution function, interpolated."""
    if weights is None:
        return np.quantile(values, quantiles)
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    position = (cumulative - 0.5 * weights[order]) / cumulative[-1]
    return np.interp(quantiles, position, values[order])


def _reaches_every_panel(drawn: DrawSet, ranges: list[tuple[float, float]]) -> bool:
    """Whether each pair of parameters has draws inside its panel: corner refuses an empty one."""
    low, high = np.array(ranges).T
    inside = ((drawn.draws >= low) & (drawn.draws <= high)).astype(np.float64)
    if drawn.weights is not None:
        inside = inside * (drawn.weights > 0)[:, None]
    return bool((inside.T @ inside > 0).all())


def _overlay(
    figure: Figure, drawn: DrawSet, labels: Sequence[str], ranges: list[tuple[float, float]], color: str
) -> None:
    import corner

    weights = np.ones(len(drawn.draws)) if drawn.weights is None else np.asarray(drawn.weights, dtype=np.float64)
    corner.corner(
        np.asarray(drawn.draws, dtype=np.float64),
        weights=weights / weights.sum(),  # heights are shares of the whole set, so that mass outside is missing
        bins=BINS,
        range=ranges,
        labels=list(labels),
        color=color,
        smooth=1.0,
        levels=CONTOURS,
        max_n_ticks=4,
        plot_datapoints=False,
        plot_density=False,
        no_fill_contours=True,
        hist_kwargs={"linewidth": 1.2, "linestyle": drawn.line, "color": color},
        contour_kwargs={"linewidths": 1.0, "linestyles": drawn.line, "colors": color},
        fig=figure,
    )


def _tidy(axes: NDArray[np.object_], *, fill: str, panel_in: float) -> None:
    """Common heights of the histograms, labels that keep clear of the ticks, short ticks."""
    dimension = len(axes)
    for i in range(dimension):
        for j in range(i + 1):
            axis: Axes = axes[i, j]
            axis.tick_params(direction="in", length=3, labelsize=7)
            axis.spines[["top", "right"]].set_visible(True)
            axis.xaxis.set_label_coords(0.5, -LABEL_IN / panel_in)
            axis.yaxis.set_label_coords(-LABEL_IN / panel_in, 0.5)
            axis.xaxis.label.set_fontsize(8.5)
            axis.yaxis.label.set_fontsize(8.5)
        histograms = [patch for patch in axes[i, i].patches if isinstance(patch, Polygon)]
        axes[i, i].set_ylim(0, 1.12 * max(float(patch.get_xy()[:, 1].max()) for patch in histograms) or 1.0)
        axes[i, i].add_patch(Polygon(histograms[0].get_xy(), closed=True, color=fill, alpha=0.12, linewidth=0))


def _mark_truth(axes: NDArray[np.object_], truth: NDArray[np.float64]) -> None:
    style: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": (0, (1, 1.5))}
    for i in range(len(axes)):
        for j in range(i + 1):
            axes[i, j].axvline(truth[j], **style)
            if j < i:
                axes[i, j].axhline(truth[i], **style)


def _check(sets: Sequence[DrawSet], dimension: int, range_from: int) -> None:
    if not sets or not 0 <= range_from < len(sets):
        raise InputError(f"corner plot: expected at least one set of draws, and range_from among {len(sets)}")
    for s in sets:
        if s.draws.ndim != 2 or s.draws.shape[1] != dimension or len(s.draws) <= dimension:
            raise InputError(f"corner plot: {s.label!r}: expected draws (S, {dimension}), got {s.draws.shape}")
        if s.weights is not None and s.weights.shape != s.draws.shape[:1]:
            raise InputError(f"corner plot: {s.label!r}: {s.weights.shape} weights for {s.draws.shape[0]} draws")
