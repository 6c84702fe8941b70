from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.plots.training import plot_training


def metrics():
    step = np.arange(0, 1000, 10.0)
    sparse = np.where(step % 250 == 0, -100 + step / 100, np.nan)
    return {
        "step": step,
        "phase": (step >= 600).astype(float),
        "loss": np.exp(-step / 100),
        "elbo": np.where(step >= 600, -100.0, np.nan),
        "held_out_elbo": sparse,
        "held_out_ess_fraction": np.full(len(step), np.nan),
    }


def test_one_panel_for_each_quantity_that_was_measured():
    figure = plot_training(metrics(), phase_names=["forward_kl", "elbo"])
    assert [a.get_ylabel() for a in figure.axes] == ["ELBO [nats]", "loss minimised [nats]"]
    first = figure.axes[0]
    assert {t.get_text() for t in first.texts} == {"forward_kl", "elbo"}
    assert [line.get_label() for line in first.get_lines()] == ["training", "held out"]
    assert len(first.get_lines()[1].get_xdata()) == 4  # NaN is not drawn
    assert len(first.patches) == 1  # the second phase is shaded


def test_early_values_do_not_set_the_range():
    table = metrics()
    table["loss"][0] = 1e9
    assert plot_training(table).axes[1].get_ylim()[1] < 10


def test_bad_tables_are_explained():
    with pytest.raises(InputError, match="expected a column 'step'"):
        plot_training({"loss": np.zeros(3)})
    with pytest.raises(InputError, match="columns differ in length"):
        plot_training({"step": np.zeros(3), "loss": np.zeros(4)})
    with pytest.raises(InputError, match="no column holds a finite number"):
        plot_training({"step": np.arange(3.0), "loss": np.full(3, np.nan)})
