"""Figures and mathematical labels as text inside a page: SVG where it is small, PNG where it is not."""

from __future__ import annotations

import base64
import io

from markupsafe import Markup
from matplotlib import cbook
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser

from pipeline.plots.style import INK, drawable, house_style

LARGEST_SVG_BYTES = 1_500_000
PNG_DPI = 170
LABEL_POINTS = 11.0


def figure_image(figure: Figure, alternative: str) -> Markup:
    """An `img` element that holds the whole figure, as wide as it was drawn and no wider than the page.

    Args:
        figure: matplotlib Figure.
        alternative: text for those who do not see it.
    """
    data, kind = figure_bytes(figure)
    width = round(figure.get_figwidth() * 96)
    return Markup('<img src="{}" alt="{}" width="{}">').format(_uri(data, kind), alternative, width)


def figure_bytes(figure: Figure) -> tuple[bytes, str]:
    """The figure as SVG, or as PNG if that is too large; equal figures give equal bytes."""
    with house_style():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        if len(buffer.getvalue()) <= LARGEST_SVG_BYTES:
            return buffer.getvalue(), "image/svg+xml"
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
        return buffer.getvalue(), "image/png"


def label_image(label: str, name: str) -> Markup:
    r"""A label with LaTeX between dollars as an image that sits on the line of text; plain text stays text.

    Args:
        label: such as `$\dot{\gamma}$`; the name where empty.
        name: identifier, the text for those who do not see the image.
    """
    label = drawable(label, name)
    if not cbook.is_math_text(label):
        return Markup.escape(label)
    with house_style():
        font = FontProperties(size=LABEL_POINTS)
        parsed = MathTextParser("path").parse(label, dpi=72, prop=font)
        width, height, depth = parsed[:3]
        figure = Figure(figsize=((width + 1) / 72, (height + 1) / 72))
        figure.text(0, (depth + 0.5) / (height + 1), label, fontproperties=font, color=INK)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    style = f"height:{(height + 1) / LABEL_POINTS:.3f}em;vertical-align:-{(depth + 0.5) / LABEL_POINTS:.3f}em"
    source = _uri(buffer.getvalue(), "image/svg+xml")
    return Markup('<img class="label" src="{}" alt="{}" style="{}">').format(source, name, style)


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
