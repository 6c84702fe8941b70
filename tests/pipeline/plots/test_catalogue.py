from __future__ import annotations

import numpy as np
import pytest
from matplotlib.container import BarContainer

from pipeline.errors import InputError
from pipeline.plots.catalogue import BINS, Catalogue, plot_catalogue, verdict_counts


def catalogue(*, typicality: bool = True) -> Catalogue:
    rng = np.random.default_rng(0)
    ess = rng.uniform(0.01, 0.99, 300)
    gap = -np.log(ess)
    gap[:3] = [np.nan, -1e-5, 3.0]
    return Catalogue(
        verdicts=np.where(ess > 0.5, "exact", np.where(ess > 0.1, "refined", "failed")),
        ess_fraction=ess,
        kl_gap=gap,
        typicality=rng.uniform(size=300) if typicality else None,
        atypical=rng.uniform(size=300) < 0.02,
    )


def heights(axes: object) -> float:
    return sum(float(p.get_height()) for c in axes.containers if isinstance(c, BarContainer) for p in c)  # pyright: ignore


def test_every_observation_is_in_every_panel_or_counted_beside_it() -> None:
    counts, ess, gap, typicality = plot_catalogue(catalogue()).axes
    widths = [p.get_width() for c in counts.containers for p in c]  # pyright: ignore
    assert sum(widths) == 300
    assert heights(ess) == 300
    assert heights(gap) == 299
    assert heights(typicality) == 300
    assert gap.get_title(loc="right") == "1 not a number"
    assert gap.get_title(loc="left").startswith("1 up to")
    assert "atypical" in typicality.get_title(loc="left")


def test_without_typicality_there_is_no_empty_panel() -> None:
    assert len(plot_catalogue(catalogue(typicality=False)).axes) == 3


def test_a_catalogue_of_nothing_but_nan_is_drawn() -> None:
    nothing = np.full(2, np.nan)
    figure = plot_catalogue(Catalogue(np.array(["failed", "failed"]), nothing, nothing, nothing))
    assert figure.axes[2].get_title(loc="right") == "2 not a number"
    with pytest.raises(InputError, match="at least one"):
        plot_catalogue(Catalogue(np.array([], dtype=str), np.zeros(0), np.zeros(0)))


def test_verdicts_that_nobody_knows_are_counted_too() -> None:
    assert verdict_counts(np.array(["failed", "odd", "failed"])) == {
        "exact": 0,
        "corrected": 0,
        "refined": 0,
        "sampled": 0,
        "failed": 2,
        "odd": 1,
    }


def test_colours_are_those_of_the_verdict_in_every_panel() -> None:
    figure = plot_catalogue(catalogue())
    bars = {c.get_facecolor() for p in figure.axes[0].containers for c in p}  # pyright: ignore
    drawn = {p.get_facecolor() for c in figure.axes[1].containers for p in c}  # pyright: ignore
    assert drawn <= bars
    assert len(drawn) == 3
    assert sum(len(c) for c in figure.axes[1].containers) == 3 * BINS  # pyright: ignore
