"""One look for every figure: colours that colour-blind readers tell apart, sizes, units in labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from matplotlib import cbook, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser

from simulators.units import unit_text

# Okabe and Ito 2008, Color Universal Design, https://jfly.uni-koeln.de/color/
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"
GREY, INK, RULE = "#8a8f98", "#1c2530", "#d8dce2"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)

WIDTH_IN = 7.0  # inches: the text width of a page, so that 9 points in a figure are 9 points in print

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 9,
    "mathtext.fontset": "dejavusans",
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "regular",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.use_mathtext": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "elboscope",  # fixed: equal content, equal bytes
    "svg.fonttype": "path",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Figures made or saved inside have the project's look, whatever the user's matplotlibrc says."""
    from matplotlib import rcParamsDefault

    backend = {"backend", "backend_fallback", "interactive"}
    defaults = {k: v for k, v in rcParamsDefault.items() if k not in backend}
    settings: dict[Any, Any] = defaults | RC
    with rc_context(settings):
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """A figure that pyplot does not know of: nothing global is changed, and nothing needs closing."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def freeze_layout(figure: Figure) -> Figure:
    """Lay the figure out once and for all: constrained layout moves a little each time that a figure is drawn."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def grid_lines(axes: Axes) -> None:
    """Faint horizontal rules."""
    axes.grid(axis="y", color=RULE, linewidth=0.6)


@cache
def drawable(label: str, name: str = "") -> str:
    r"""A label that matplotlib can draw: itself; where its LaTeX is beyond mathtext, the name, or its source.

    >>> drawable(r"$\dot{\gamma}$", "gamma"), drawable(r"$\bm{v}$", "v"), drawable(r"$\nonsense$")
    ('$\\dot{\\gamma}$', 'v', '\\$\\nonsense\\$')
    """
    try:
        if cbook.is_math_text(label):
            MathTextParser("path").parse(label, dpi=72)
    except ValueError:
        return name or label.replace("$", r"\$")
    return label or name


def axis_label(label: str, unit: str = "", name: str = "") -> str:
    r"""Label of an axis with its unit in brackets; the name where there is no label that can be drawn.

    >>> axis_label("velocity", "m / s")
    'velocity [$\\mathrm{m\\,s^{-1}}$]'
    """
    text = drawable(label, name)
    return f"{text} [{drawable(unit_text(unit, latex=True), unit)}]" if unit else text
