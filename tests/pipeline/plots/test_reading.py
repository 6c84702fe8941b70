from __future__ import annotations

import typing

from pipeline.plots.reading import READING, SECTION
from pipeline.plots.report_content import FigureKind


def test_every_kind_of_figure_has_words_and_a_section():
    kinds = set(typing.get_args(FigureKind))
    assert set(READING) == set(SECTION) == kinds
    assert set(SECTION.values()) == {
        "catalogue",
        "posterior",
        "certificate",
        "comparison",
        "calibration",
        "training",
    }
