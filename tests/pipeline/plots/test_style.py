from __future__ import annotations

import matplotlib
import pytest

from pipeline.plots.style import axis_label, drawable, freeze_layout, house_style, new_figure
from simulators.units import unit_text
from tests.simulators.test_units import ODD_UNITS


def test_style_is_left_behind():
    before = matplotlib.rcParams["font.size"]
    with house_style():
        assert matplotlib.rcParams["font.size"] == 9
    assert matplotlib.rcParams["font.size"] == before


def test_style_overrides_the_user_s():
    with matplotlib.rc_context({"axes.grid": True}), house_style():
        assert not matplotlib.rcParams["axes.grid"]


def test_new_figures_are_unknown_to_pyplot():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    with house_style():
        freeze_layout(new_figure(2, 2))
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize(("unit", "text"), [("m / s", "m s⁻¹"), ("", ""), ("solMass", "M☉"), ("mas", "mas")])
def test_units_as_unicode(unit, text):
    assert unit_text(unit, latex=False) == text


def test_axis_label_has_the_unit():
    assert axis_label("mass", "kg") == r"mass [$\mathrm{kg}$]"
    assert axis_label("ratio") == "ratio"


def test_labels_with_every_unit_and_latex_of_any_kind_can_be_drawn():
    labels = [axis_label(r"$\log N$", unit, "n") for unit in ODD_UNITS]
    labels += [axis_label(text, "dex(cm-2)", "column") for text in (r"$\bm{N}$", r"$\nonsense$", "$", "a_b %", "")]
    with house_style():
        figure = new_figure(4, 8)
        for i, label in enumerate(labels):
            figure.text(0.1, i / len(labels), label)
        freeze_layout(figure)  # lays out every text
    assert labels[-5:-3] == [r"column [$\mathrm{dex\left(cm^{-2}\right)}$]"] * 2
    assert labels[-1] == labels[-4]


def test_latex_beyond_mathtext_is_its_name_or_its_source():
    assert drawable(r"$\text{km}$", "speed") in (r"$\text{km}$", "speed")  # newer versions know it
    assert drawable(r"$\nonsense$", "speed") == "speed"
    assert drawable(r"$\nonsense$") == r"\$\nonsense\$"
