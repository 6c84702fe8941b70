"""Bayes factors of models whose evidence is known: linear Gaussian with one prior scale or another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import QTable

from pipeline.stages.evidence import evidence, most_decisive
from pipeline.stages.infer import infer, infer_observations
from pipeline.stages.run import Run
from pipeline.tables.bayes_factors import bayes_factors
from simulators.linear_gaussian import LinearGaussian


@pytest.fixture(scope="module")
def two_models(trained: Run) -> list[Path]:
    """The trained q for its own prior, and weighted for a prior 0.8 as wide: wrong by its ELBO, right by its weights."""
    narrow = trained.case.model_copy(
        update={
            "simulator": trained.case.simulator.model_copy(update={"options": {"prior_scale": 0.8}}),
            "infer": trained.case.infer.model_copy(
                update={"refine": trained.case.infer.refine.model_copy(update={"when": "never"})}
            ),
        }
    )
    assert trained.case.observation is not None
    output = trained.folder / "narrow.h5"
    infer_observations(
        trained.output("train"),
        trained.case.observation,
        output,
        settings=narrow.infer,
        case=narrow,
        seed=3,
        device=torch.device("cpu"),
    )
    return [infer(trained), output]


def test_log_bayes_factor_of_the_oracle(trained: Run, two_models: list[Path]) -> None:
    x = trained.observation().x["x"]
    exact = (LinearGaussian(prior_scale=0.8).log_evidence(x) - LinearGaussian().log_evidence(x)).numpy()
    table = bayes_factors(two_models)
    value = np.asarray(table["log_bayes_factor_narrow"])
    error = np.asarray(table["log_bayes_factor_error_narrow"])
    assert (np.abs(value - exact) < 5 * error).all()
    assert (error < 0.05).all()
    assert (np.abs(exact) > 5 * error).all()  # so that the sign is tested


def test_what_is_printed_and_written(
    two_models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = evidence(two_models, names=["wide", "narrow"], output=tmp_path / "factors.ecsv")
    printed = capsys.readouterr().out
    assert "log B narrow/wide" in printed
    assert "total log B narrow/wide" in printed
    assert "over 2 observations" in printed
    assert "…" not in printed  # no figure is cut short
    back = QTable.read(tmp_path / "factors.ecsv")
    np.testing.assert_array_equal(back["log_bayes_factor_narrow"], table["log_bayes_factor_narrow"])
    assert set(back.meta["models"]) == {"wide", "narrow"}
    assert back.meta["reference"] == "wide"


def test_the_most_decisive_come_first_and_nan_last() -> None:
    factors = np.array([0.1, -5.0, np.nan, 2.0])
    table = QTable({"id": list("abcd"), "log_bayes_factor_b": factors, "log_bayes_factor_error_b": 9 - factors})
    assert list(most_decisive(table, 3)) == [1, 3, 0]
    assert list(most_decisive(table, 4)) == [0, 1, 2, 3]
