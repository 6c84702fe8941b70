"""Importance weights: their spread, and how few of them carry the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from scipy.special import logsumexp

from pipeline.errors import InputError
from pipeline.plots.style import CYCLE, INK, WIDTH_IN, freeze_layout, grid_lines, house_style, new_figure


@dataclass(frozen=True)
class WeightSet:
    """Weights to be shown.

    Attributes:
        label: in the legend.
        log_weight: (K,), nats; -inf for refused draws.
        ess_fraction: effective sample size over K.
        pareto_k: shape of the tail.
        color: matplotlib colour; "" takes the next of the cycle.
    """

    label: str
    log_weight: NDArray[np.float64]
    ess_fraction: float
    pareto_k: float
    color: str = ""


def plot_weights(sets: Sequence[WeightSet]) -> Figure:
    r"""Histogram of log weights over their mean, and the share of the total that the largest weights carry.

    Left: $\log (w_k / \bar w)$, zero for every draw if q is the posterior. Right: Lorenz curve,
    $\sum_{k \leq m} w_{(k)} / \sum_k w_k$ with weights in descending order, against $m / K$; a perfect q gives the
    diagonal.

    Args:
        sets: drawn in their order.

    Raises:
        InputError: no sets, or one without a finite weight.
    """
    if not sets or not all(np.isfinite(s.log_weight).any() for s in sets):
        raise InputError("weights plot: expected at least one set, each with a finite log weight")
    with house_style():
        figure = new_figure(WIDTH_IN, 2.7)
        left, right = figure.subplots(1, 2)
        relative = [_relative(s.log_weight) for s in sets]
        finite = np.concatenate([r[np.isfinite(r)] for r in relative])
        low, high = float(np.quantile(finite, 0.002)), float(finite.max())  # the smallest weights do not matter
        bins = np.linspace(min(low, -0.5), max(high, 0.5), 60)
        for i, (s, r) in enumerate(zip(sets, relative, strict=True)):
            color = s.color or CYCLE[i % len(CYCLE)]
            text = f"{s.label}\nESS {100 * s.ess_fraction:.3g} %, Pareto k {s.pareto_k:.2f}"
            left.hist(
                np.clip(r, bins[0], None), bins=bins.tolist(), histtype="step", color=color, linewidth=1.3, label=text
            )
            weight = np.sort(np.exp(r))[::-1]
            share = np.arange(1, len(weight) + 1) / len(weight)
            thin = np.unique(np.geomspace(1, len(weight), 400).astype(int)) - 1  # of 20,000 points 400 are seen
            right.plot(share[thin], (np.cumsum(weight) / weight.sum())[thin], color=color)
        left.axvline(0, color=INK, linewidth=0.6)
        left.set(xlabel=r"$\log\,(w / \langle w \rangle)$ [nats]", ylabel="draws", yscale="log")
        left.legend(loc="upper left", bbox_to_anchor=(0.0, 1.0))
        left.set_ylim(top=left.get_ylim()[1] * 10 ** (0.7 * len(sets)))  # room for the legend
        right.plot([0, 1], [0, 1], color=INK, linewidth=0.6)
        right.set(
            xlabel="share of draws, largest weights first", ylabel="share of the weight", xlim=(0, 1), ylim=(0, 1)
        )
        right.xaxis.set_major_formatter(PercentFormatter(1.0))
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        grid_lines(right)
        return freeze_layout(figure)


def _relative(log_weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of weight over mean weight; refused draws count as zero."""
    usable = np.where(np.isfinite(log_weight), log_weight, -np.inf).astype(np.float64)
    return usable - (logsumexp(usable) - np.log(len(usable)))
