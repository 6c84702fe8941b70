from __future__ import annotations

import matplotlib
import pytest

from pipeline.plots.style import axis_label, freeze_layout, house_style, new_figure, unit_text


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
