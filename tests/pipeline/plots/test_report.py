from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from pipeline.errors import InputError
from pipeline.plots.certificate_meaning import BLIND_SPOT, SURROGATE
from pipeline.plots.report import render_report
from pipeline.plots.report_content import (
    CalibrationReport,
    CalibrationRow,
    ComparisonRow,
    ObservationReport,
    ParameterRow,
    PhaseRow,
    ReportContent,
    ReportFigure,
)
from pipeline.plots.style import freeze_layout, house_style, new_figure
from pipeline.schema import VERDICTS
from pipeline.store import read_key
from simulators.units import unit_text
from tests.simulators.test_units import ODD_UNITS

PARAMETERS = (
    ParameterRow("logk1", r"$\ln K_b$", "", 1.504, 0.172, 1.336, 1.512, 1.671),
    ParameterRow("dvdt", "", "m / (s d)", -0.0299, 0.0216, -0.0512, -0.0298, -0.0085),
)


def small_figure():
    with house_style():
        figure = new_figure(2, 2)
        figure.subplots().plot([0, 1], [0, 1])
        return freeze_layout(figure)


@pytest.fixture
def content(good) -> ReportContent:
    return ReportContent(
        title="K2-24 <two planets>",
        case="k2_24",
        content_key="ab12" * 16,
        summary=("One sentence.", "Another one."),
        observations=(ObservationReport("K2-24", "refined", good, PARAMETERS),),
        comparison=(
            ComparisonRow("Elboscope", -103.34911, 0.00112, wall_time_s=181.0, note="with training"),
            ComparisonRow(
                "nautilus", -103.3389, 0.00996, 0.0102, -103.3487, 0.0026, 0.507, 0.03, 0.04, 50.0, 54100, True
            ),
        ),
        calibration=CalibrationReport(
            500, 400, (CalibrationRow("logk1", "", 0.67, 4, 0.31, 0.49, 0.91),), 0.45, -0.01, True, True, "calibrated"
        ),
        phases=(
            PhaseRow("forward_kl", 6000, 2e-3, -4.98, -104.2, 0.61, True),
            PhaseRow("elbo", 9, 1e-4, kept=False),
        ),
        figures=(
            ReportFigure("corner", "Corner", small_figure(), "All draws."),
            ReportFigure("tarp", "TARP", small_figure()),
        ),
        settings_yaml="name: k2_24\nnote: <&>\n",
        provenance={"host": "here"},
        versions={"torch": "2.13.0"},
        warnings=("Mind & this.",),
    )


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects text and what a page loads."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def words(html: str) -> str:
    return re.sub(r"\s+", " ", " ".join(read(html).text))


def test_key_is_where_the_store_looks_for_it(content, tmp_path):
    html = render_report(content)
    assert html.startswith(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="content_key" content="ab12'
    )
    path = tmp_path / "report.html"
    path.write_text(html, encoding="utf-8")
    assert read_key(path) == "ab12" * 16


def test_equal_content_equal_bytes(content):
    assert render_report(content) == render_report(content)


def test_nothing_is_loaded_from_anywhere(content):
    html = render_report(content)
    assert all(link.startswith(("data:image/", "#")) for link in read(html).loaded)
    assert "http" not in re.sub(r'base64,[^"]*', "", html)
    assert "<script" not in html


def test_links_have_targets(content):
    html = render_report(content)
    for target in re.findall(r'href="#([a-z]+)"', html):
        assert f'id="{target}"' in html


def test_figures_of_the_certificate_add_up_and_come_first(content):
    text = words(render_report(content))
    first_screen = text[: text.index("How to read this")]
    for expected in (
        "refined",
        VERDICTS["refined"],
        "−103.3491 ± 0.0011",
        "−103.3921",
        "0.0430",
        "−88.5133",
        "14.8788",
        "1.50 ± 0.17",
        "−0.030 ± 0.022",
        "m d⁻¹ s⁻¹",
    ):
        assert expected in first_screen


def test_says_what_a_referee_has_to_know(content):
    text = words(render_report(content))
    assert BLIND_SPOT in text
    assert SURROGATE not in text
    assert SURROGATE in words(render_report(dataclasses.replace(content, surrogate_likelihood=True)))
    for expected in ("+0.010", "−103.3487 ± 0.0026", "54,100", "3 min 1 s", "with training"):
        assert expected in text
    for expected in ("✓ Calibrated", "500 simulations", "0.67", "rolled back", "kept", "torch 2.13.0", "Mind & this."):
        assert expected in text


def test_under_a_learned_likelihood_nothing_is_green_and_every_baseline_says_of_what(content):
    html = render_report(dataclasses.replace(content, surrogate_likelihood=True))
    text = words(html)
    assert '<span class="badge amber">refined · learned likelihood</span>' in html
    assert 'class="badge good"' not in html
    assert 'class="badge good">refined</span>' in render_report(content)
    assert "Not checked: the learned likelihood was not compared" in text[: text.index("Certificate Verdict")]
    for expected in (
        "Comparison on the same learned likelihood and prior",
        "Every column is of the learned likelihood",
        "Log evidence of the learned likelihood, own",
        "log evidence of the learned likelihood",
        "All of these, MCMC and nested sampling too, are posteriors of the learned likelihood",
    ):
        assert expected in text, expected
        assert expected not in words(render_report(content))


def test_a_failed_check_of_the_run_is_a_banner_before_all_else(content):
    html = render_report(dataclasses.replace(content, banners=("NOT calibrated (p 0.001).",)))
    assert '<p class="banner" role="alert">NOT calibrated (p 0.001).</p>' in html
    assert html.index("NOT calibrated") < html.index("Mind &amp; this.") < html.index("One sentence.")
    assert 'class="banner"' not in render_report(content)


def test_the_note_of_an_observation_is_shown(content):
    noted = dataclasses.replace(content.observations[0], note="the learned likelihood differs")
    text = words(render_report(dataclasses.replace(content, observations=(noted,))))
    assert "Note. the learned likelihood differs." in text


def test_user_text_is_escaped(content):
    html = render_report(content)
    assert "K2-24 &lt;two planets&gt;" in html
    assert "note: &lt;&amp;&gt;" in html


def test_several_observations_have_an_overview_and_each_its_certificate(content, good):
    failed = ObservationReport("HD 1", "failed", good | {"pareto_k": 1.2}, PARAMETERS)
    text = words(render_report(dataclasses.replace(content, observations=(*content.observations, failed))))
    assert "1 refined" in text
    assert "1 failed" in text
    assert VERDICTS["failed"] in text.lower() or VERDICTS["failed"].capitalize() in text
    assert "above 0.7" in text


@pytest.mark.parametrize("verdict", list(VERDICTS))
def test_every_verdict_renders(content, verdict, good):
    observation = ObservationReport("x", verdict, good, PARAMETERS)
    assert VERDICTS[verdict] in words(render_report(dataclasses.replace(content, observations=(observation,))))


def test_an_empty_report_renders():
    assert "Provenance" in words(render_report(ReportContent(title="", case="c", content_key="k")))


def test_a_certificate_with_holes_renders(content):
    observation = ObservationReport("x", "failed", {"log_evidence": float("nan"), "elbo": float("-inf")}, ())
    assert "not a number" in words(render_report(dataclasses.replace(content, observations=(observation,))))


def test_bad_content_is_explained(content, good):
    with pytest.raises(InputError, match="content key of letters and digits"):
        render_report(dataclasses.replace(content, content_key='"><script>'))
    observation = ObservationReport("x", "fine", good, PARAMETERS)
    with pytest.raises(InputError, match="verdict 'fine' is none of exact"):
        render_report(dataclasses.replace(content, observations=(observation,)))


def test_the_page_names_every_unit(good):
    rows = tuple(ParameterRow(f"p{i}", "", unit, 1.5, 0.2, 1.3, 1.5, 1.7) for i, unit in enumerate(ODD_UNITS))
    page = render_report(ReportContent("t", "c", "ab12", observations=(ObservationReport("o", "exact", good, rows),)))
    for unit in ODD_UNITS:
        assert f">{unit_text(unit, latex=False)}</td>" in page, unit


def test_a_figure_that_is_not_there_is_a_sentence(content):
    missing = ReportFigure("corner", "Corner", None).failed(ValueError("<no> star\nmore"))
    page = render_report(dataclasses.replace(content, figures=(missing,)))
    assert "This figure could not be drawn: ValueError: &lt;no&gt; star<" in page
