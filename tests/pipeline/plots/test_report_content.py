from __future__ import annotations

import dataclasses

import pytest

from pipeline.plots.report_content import ReportContent


def test_content_is_frozen_and_small_by_default():
    content = ReportContent(title="t", case="c", content_key="k")
    assert content.observations == ()
    assert content.calibration is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        content.title = "u"  # pyright: ignore[reportAttributeAccessIssue]
