"""Many certificates at a glance: verdicts, and how the figures behind them are distributed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.plots.numbers import significant
from pipeline.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    VERMILLION,
    WIDTH_IN,
    freeze_layout,
    grid_lines,
    house_style,
    new_figure,
)
from pipeline.schema import VERDICTS

VERDICT_COLORS = {"exact": BLUE, "corrected": ORANGE, "refined": GREEN, "sampled": PURPLE, "failed": VERMILLION}
BINS = 40
LEAST_GAP = 1e-4
"""Nats: smaller gaps, and those below zero by Monte Carlo error, stand in the first bin."""


@dataclass(frozen=True)
class Catalogue:
    """Figures of N observations; NaN where one has none.

    Attributes:
        verdicts: (N,), of `schema.VERDICTS`.
        ess_fraction: (N,).
        kl_gap: (N,), nats.
        typicality: (N,), or None where it was not measured.
        atypical: (N,), whether each is flagged as unlike the simulations, or None.
    """

    verdicts: NDArray[np.str_]
    ess_fraction: NDArray[np.float64]
    kl_gap: NDArray[np.float64]
    typicality: NDArray[np.float64] | None = None
    atypical: NDArray[np.bool_] | None = None


def plot_catalogue(catalogue: Catalogue) -> Figure:
    """Counts of verdicts, and histograms of ESS fraction, gap and typicality, coloured by verdict.

    Raises:
        InputError: no observations.
    """
    if len(catalogue.verdicts) == 0:
        raise InputError("catalogue figure: expected at least one observation")
    typicality = catalogue.typicality is not None and bool(np.isfinite(catalogue.typicality).any())
    with house_style():
        figure = new_figure(WIDTH_IN, 4.6 if typicality else 2.5)
        panels = list(figure.subplots(*((2, 2) if typicality else (1, 3))).flat)
        _verdict_counts(panels[0], catalogue.verdicts)
        # all of [0, 1], so that a catalogue whose worst observation has 0.9 is seen to be good
        _stacked(panels[1], catalogue.ess_fraction, catalogue.verdicts, np.linspace(0, 1, BINS + 1))
        panels[1].set(xlabel="ESS fraction of the weights", xlim=(0, 1))
        _gaps(panels[2], catalogue)
        if typicality:
            _typicality(panels[3], catalogue)
        return freeze_layout(figure)


def _verdict_counts(axes: Axes, verdicts: NDArray[np.str_]) -> None:
    counts = verdict_counts(verdicts)
    names = list(counts)
    axes.barh(names, list(counts.values()), color=[_color(n) for n in names], height=0.7)
    axes.invert_yaxis()
    for place, (name, count) in enumerate(counts.items()):
        axes.annotate(
            f"{count:,}  ({significant(100 * count / len(verdicts), 2)} %)" if count else "0",
            (counts[name], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set(xlabel=f"observations ({len(verdicts):,} in all)", xlim=(0, 1.75 * max(counts.values())))
    axes.set_xticks([])  # every bar has its number
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def verdict_counts(verdicts: NDArray[np.str_]) -> dict[str, int]:
    """How often each verdict was given: those of `schema.VERDICTS` in their order, then others."""
    names, counts = np.unique(verdicts, return_counts=True)
    found: Mapping[str, int] = dict(zip(names.tolist(), counts.tolist(), strict=True))
    return {n: found.get(n, 0) for n in VERDICTS} | {n: c for n, c in found.items() if n not in VERDICTS}


def _stacked(axes: Axes, values: NDArray[np.float64], verdicts: NDArray[np.str_], edges: NDArray[np.float64]) -> None:
    """Histogram with one colour a verdict; the number of values that are not numbers stands beside it."""
    names = [n for n, c in verdict_counts(verdicts).items() if c]
    finite = np.isfinite(values)
    axes.hist(
        [values[finite & (verdicts == n)] for n in names],
        bins=edges.tolist(),
        stacked=True,
        color=[_color(n) for n in names],
        label=names,
    )
    grid_lines(axes)
    axes.set_ylabel("observations")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    lacking = int((~finite).sum())
    if lacking:
        axes.set_title(f"{lacking:,} not a number", loc="right", fontsize=8, color=VERMILLION)


def _gaps(axes: Axes, catalogue: Catalogue) -> None:
    largest = np.nanmax(catalogue.kl_gap, initial=10 * LEAST_GAP, where=np.isfinite(catalogue.kl_gap))
    edges = np.geomspace(LEAST_GAP, 10.0 ** np.ceil(np.log10(largest)), BINS + 1)
    _stacked(axes, np.maximum(catalogue.kl_gap, edges[0]), catalogue.verdicts, edges)
    axes.set(xlabel="gap to the evidence [nats]", xscale="log", xlim=(edges[0], edges[-1]))
    below = int((catalogue.kl_gap < LEAST_GAP).sum())
    if below:
        axes.set_title(rf"{below:,} up to $10^{{{np.log10(LEAST_GAP):.0f}}}$, in the first bar", loc="left", fontsize=8)


def _typicality(axes: Axes, catalogue: Catalogue) -> None:
    values = catalogue.typicality
    assert values is not None
    edges = np.linspace(0, 1, BINS // 2 + 1)
    _stacked(axes, values, catalogue.verdicts, edges)
    expected = np.isfinite(values).sum() / (len(edges) - 1)
    axes.axhline(expected, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), label="_expected")
    axes.set(xlabel="typicality; dashed: simulated data", xlim=(0, 1))
    if catalogue.atypical is not None and catalogue.atypical.any():
        text = f"{int(catalogue.atypical.sum()):,} atypical"
        axes.set_title(text, loc="left", fontsize=8, color=VERMILLION)


def _color(verdict: str) -> str:
    return VERDICT_COLORS.get(verdict, GREY)
