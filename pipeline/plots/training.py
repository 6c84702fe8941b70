"""Training curves: the ELBO, its two terms, and what held-out simulations say, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.plots.style import BLUE, VERMILLION, WIDTH_IN, freeze_layout, grid_lines, house_style, new_figure

PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("ELBO [nats]", (("elbo", "training"), ("held_out_elbo", "held out"))),
    ("reconstruction [nats]", (("reconstruction", "training"), ("held_out_reconstruction", "held out"))),
    ("regularization [nats]", (("regularization", "training"), ("held_out_regularization", "held out"))),
    ("gap to the evidence [nats]", (("kl_gap", "training"), ("held_out_kl_gap", "held out"))),
    (r"$\log q(\theta_{\mathrm{true}}|x)$ [nats]", (("held_out_forward_log_q", "held out"),)),
    ("ESS fraction", (("held_out_ess_fraction", "held out"),)),
    ("loss minimised [nats]", (("loss", "training"),)),
)
"""Axis label, then the columns of the metrics table that it shows, with their name in the legend."""
COLORS = {"training": BLUE, "held out": VERMILLION}


def plot_training(metrics: Mapping[str, NDArray[np.float64]], *, phase_names: Sequence[str] = ()) -> Figure:
    """Curves of whatever the metrics table holds, one panel a quantity; phases are shaded in turn.

    Args:
        metrics: columns of equal length: `step`, `phase`, and any of those in PANELS; NaN where a quantity was
            not evaluated. A quantity that is absent or all NaN has no panel.
        phase_names: names of the phases, in order of appearance.

    Raises:
        InputError: no `step`, columns of unequal length, or nothing to show.
    """
    if "step" not in metrics:
        raise InputError(f"training curves: expected a column 'step', got {', '.join(metrics) or 'nothing'}")
    step = np.asarray(metrics["step"], dtype=np.float64)
    lengths = {k: len(v) for k, v in metrics.items()}
    if set(lengths.values()) != {len(step)}:
        raise InputError(f"training curves: columns differ in length: {lengths}")
    shown = [(label, [c for c in columns if _finite(metrics, c[0]).any()]) for label, columns in PANELS]
    shown = [(label, columns) for label, columns in shown if columns]
    if not shown:
        raise InputError("training curves: no column holds a finite number")
    rows = (len(shown) + 1) // 2
    with house_style():
        figure = new_figure(WIDTH_IN, 1.65 * rows + 0.45)
        grid = figure.subplots(rows, 2, sharex=True, squeeze=False)
        panels = list(grid.flat)
        for panel in panels[len(shown) :]:
            panel.remove()
        for i, (label, columns) in enumerate(shown):
            _draw(panels[i], metrics, step, label, columns)
            _shade_phases(panels[i], step, metrics.get("phase"), phase_names if i < 2 else ())
            if i >= len(shown) - 2:
                panels[i].set_xlabel("step")
                panels[i].tick_params(labelbottom=True)
        widest = max((panels[i] for i in range(len(shown))), key=lambda a: len(a.get_lines()))
        widest.legend(loc="best")
        return freeze_layout(figure)


def _finite(metrics: Mapping[str, NDArray[np.float64]], column: str) -> NDArray[np.bool_]:
    return np.isfinite(np.asarray(metrics[column], dtype=np.float64)) if column in metrics else np.zeros(1, dtype=bool)


def _draw(
    axis: Axes,
    metrics: Mapping[str, NDArray[np.float64]],
    step: NDArray[np.float64],
    label: str,
    columns: Sequence[tuple[str, str]],
) -> None:
    """One panel, its range set by the last three quarters: the first steps are off by orders of magnitude."""
    limits = []
    for column, name in columns:
        values = np.asarray(metrics[column], dtype=np.float64)
        keep = np.isfinite(values)
        sparse = keep.sum() <= 60
        axis.plot(
            step[keep], values[keep], color=COLORS[name], label=name, marker="o" if sparse else "", markersize=2.5
        )
        late = values[keep & (step >= 0.25 * step.max())]
        limits.extend(np.quantile(late if len(late) else values[keep], [0.005, 0.995]))
    low, high = min(limits), max(limits)
    spare = 0.08 * (high - low) or 0.5
    axis.set_ylim(low - spare, high + spare)
    if label == "ESS fraction":
        axis.set_ylim(0, 1)
    axis.set_ylabel(label)
    grid_lines(axis)


def _shade_phases(
    axis: Axes, step: NDArray[np.float64], phase: NDArray[np.float64] | None, names: Sequence[str]
) -> None:
    """Every second phase is grey; the name stands at the top of its stretch."""
    if phase is None or len(step) == 0:
        return
    phase = np.asarray(phase)
    starts = [0, *(np.flatnonzero(phase[1:] != phase[:-1]) + 1).tolist(), len(step) - 1]
    for i, (first, last) in enumerate(pairwise(starts)):
        if i % 2 == 1:
            axis.axvspan(step[first], step[last], color="#000000", alpha=0.05, linewidth=0)
        if i < len(names):
            middle = 0.5 * (step[first] + step[last])
            transform = axis.get_xaxis_transform()
            axis.text(middle, 1.02, names[i], transform=transform, ha="center", va="bottom", fontsize=7.5)
