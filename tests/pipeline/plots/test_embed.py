from __future__ import annotations

import base64
import re

import pytest

from pipeline.plots import embed
from pipeline.plots.style import freeze_layout, house_style, new_figure


def figure():
    with house_style():
        made = new_figure(3, 2)
        made.subplots().plot([0, 1], [0, 1])
        return freeze_layout(made)


def test_equal_figures_give_equal_bytes():
    data, kind = embed.figure_bytes(figure())
    assert kind == "image/svg+xml"
    assert data == embed.figure_bytes(figure())[0]
    assert b"<dc:date>" not in data


def test_large_figures_become_png(monkeypatch):
    monkeypatch.setattr(embed, "LARGEST_SVG_BYTES", 100)
    data, kind = embed.figure_bytes(figure())
    assert kind == "image/png"
    assert data.startswith(b"\x89PNG")


def test_image_is_escaped_and_self_contained():
    text = str(embed.figure_image(figure(), 'a "<b>"'))
    assert "&lt;b&gt;" in text
    assert 'src="data:image/svg+xml;base64,' in text
    assert 'width="288"' in text


@pytest.mark.parametrize(("label", "text"), [("", "logk1"), ("mass", "mass"), ("a < b", "a &lt; b")])
def test_plain_labels_stay_text(label, text):
    assert str(embed.label_image(label, "logk1")) == text


def test_latex_labels_become_images_on_the_line_of_text():
    image = str(embed.label_image(r"$\dot{\gamma}_p$", "dvdt"))
    assert 'alt="dvdt"' in image
    assert "vertical-align:-" in image
    svg = base64.b64decode(re.search(r"base64,([^\"]+)", image)[1])  # pyright: ignore[reportOptionalSubscript]
    assert b"<svg" in svg
