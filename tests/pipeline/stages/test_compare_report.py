"""The end of the chain: baselines agree with the closed form, and the page says what the files say."""

from __future__ import annotations

import html
import io
import re
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.plots.report_content import ReportFigure
from pipeline.plots.style import new_figure
from pipeline.stages.compare import compare
from pipeline.stages.costs import baseline_costs, cost_in_words, inference_cost
from pipeline.stages.infer import infer
from pipeline.stages.report import _save_figures, report
from pipeline.stages.run import Run
from pipeline.stages.validate import validate
from pipeline.store import open_hdf5, read_cost, read_key


@pytest.fixture(scope="module")
def finished(trained: Run) -> Run:
    for stage in (infer, validate, compare, report):
        stage(trained)
    return trained


def test_baselines_agree_with_the_closed_form(finished: Run) -> None:
    exact = float(finished.simulator.log_evidence(finished.observation().x["x"])[0])  # pyright: ignore
    with h5py.File(finished.output("compare")) as file:
        group: Any = file["first"]
        assert set(group) == {"emcee", "nautilus"}
        for name in group:
            a = group[name].attrs
            assert a["checked_log_evidence"] == pytest.approx(exact, abs=5 * a["checked_log_evidence_error"])
            # two sets of 2,000: a coin has standard deviation 0.008, correlated draws of a chain a little more
            assert a["c2st"] < (0.56 if name == "emcee" else 0.54)
            assert np.abs(group[name]["mean_shift"][:]).max() < 0.15
            assert a["likelihood_calls"] > 1_000
        assert group["nautilus"].attrs["log_evidence"] == pytest.approx(exact, abs=0.15)


def test_report_holds_the_figures_of_the_files(finished: Run) -> None:
    page = finished.output("report").read_text(encoding="utf-8")
    assert read_key(finished.output("report")) is not None
    with h5py.File(finished.output("infer")) as file:
        certificate: Any = file["certificate"]
        evidence = float(certificate["log_evidence"][0])
    assert f"{abs(evidence):.2f}" in page
    for word in ("exact", "emcee", "nautilus", "No weight can see a mode", "theta_1", "held-out", "first", "second"):
        assert word in page, word
    assert "http://" not in page.replace("http://www.w3.org", "")  # self-contained: nothing is loaded
    assert "<script" not in page


def test_both_sides_of_the_comparison_are_measured_alike(finished: Run) -> None:
    """Ours is the mean over two observations, that of the baselines the first alone."""
    ours, count = inference_cost(finished.output("infer"))
    whole, theirs_whole = (read_cost(finished.output(s)) for s in ("infer", "compare"))
    assert whole is not None
    assert theirs_whole is not None
    assert count == 2
    assert (ours.wall_time_s, ours.cpu_time_s) == (whole.wall_time_s / 2, whole.cpu_time_s / 2)
    with open_hdf5(finished.output("infer")) as file:
        assert ours.likelihood_calls == file["certificate/likelihood_calls"][:].mean()  # pyright: ignore
    theirs = baseline_costs(finished.output("compare"))
    assert set(theirs) == {"emcee", "nautilus"}
    assert sum(c.cpu_time_s for c in theirs.values()) < theirs_whole.cpu_time_s
    for side in theirs.values():
        assert min(side.wall_time_s, side.cpu_time_s, side.likelihood_calls) > 0
    words = cost_in_words(finished, finished.output("infer"))
    assert words.startswith("infer took ")
    assert "shared by all observations of this network: simulate " in words
    assert "for 2 observations; shown is the mean of one." in words
    page = finished.output("report").read_text(encoding="utf-8")
    for title in ("Wall time, per observation", "CPU time, per observation", "Likelihood calls, per observation"):
        row = page[page.index(title) : page.index(title) + 400].split("</tr>")[0]
        assert row.count("<td") == 3, row  # elboscope, emcee, nautilus
        assert "–" not in row
    assert html.escape(words) in page


def test_the_whole_chain_is_up_to_date(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in (infer, validate, compare, report):
        stage(finished)
    assert capsys.readouterr().err.count("up to date") == 4


@pytest.fixture(scope="module")
def changed(finished: Run) -> tuple[str, str]:
    """Page and terminal of a run with another title, whose simulator has odd units and cannot draw its views."""
    run = Run(finished.case.model_copy(update={"title": "another title"}), finished.folder)
    first, *others = run.simulator.parameters
    run.simulator.parameters = (replace(first, unit="dex(cm-2)", label=r"$\nonsense$"), *others)  # pyright: ignore

    def views(theta: object, x: object) -> object:
        raise ZeroDivisionError("no star is there")

    run.simulator.predictive_views = views  # pyright: ignore[reportAttributeAccessIssue]
    said = io.StringIO()
    with redirect_stderr(said):
        for stage in (infer, validate, compare, report):
            stage(run)
    return run.output("report").read_text(encoding="utf-8"), said.getvalue()


def test_a_changed_setting_runs_only_what_depends_on_it(changed: tuple[str, str]) -> None:
    page, said = changed
    assert said.count("up to date") == 3
    assert "another title" in page


def test_a_figure_that_fails_is_a_sentence_and_the_page_is_there(changed: tuple[str, str]) -> None:
    page, said = changed
    sentence = "This figure could not be drawn: ZeroDivisionError: no star is there"
    assert page.count(sentence) == 2  # of both observations
    assert re.search(r"report: 2 of \d+ figures could not be drawn:", said)
    assert said.count(sentence) == 2
    assert page.count("<img src=") >= 6  # and the others are there
    assert "dex(cm⁻²)" in page


def test_a_figure_that_fails_when_it_is_laid_out_is_a_sentence_too(tmp_path: Path, finished: Run) -> None:
    bad = new_figure(2, 2)
    bad.text(0, 0, r"$\nonsense$")
    good = new_figure(2, 2)
    figures = [ReportFigure("other", "good", good), ReportFigure.of("other", "bad", lambda: bad)]
    kept, failed = _save_figures(Run(finished.case, tmp_path), figures)
    assert kept.figure is good
    assert failed.figure is None
    assert failed.failure.startswith("This figure could not be drawn: ValueError")
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["good.png"]
