"""The end of the chain: baselines agree with the closed form, and the page says what the files say."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.stages.compare import compare
from pipeline.stages.infer import infer
from pipeline.stages.report import report
from pipeline.stages.run import Run
from pipeline.stages.validate import validate
from pipeline.store import read_key


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


def test_the_whole_chain_is_up_to_date(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in (infer, validate, compare, report):
        stage(finished)
    assert capsys.readouterr().err.count("up to date") == 4


def test_a_changed_setting_runs_only_what_depends_on_it(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    case = finished.case.model_copy(update={"title": "another title"})
    changed = Run(case, finished.folder)
    for stage in (infer, validate, compare, report):
        stage(changed)
    said = capsys.readouterr().err
    assert said.count("up to date") == 3
    assert "another title" in changed.output("report").read_text(encoding="utf-8")
