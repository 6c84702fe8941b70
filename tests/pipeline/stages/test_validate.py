from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.estimators.posterior import Posterior
from pipeline.stages import validate as stage
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from tests.pipeline.stages.conftest import write_case


def calibration(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        group: Any = file["calibration"]
        return {name: group[name][:] for name in group} | dict(group.attrs)


def test_the_oracle_is_calibrated(trained: Run) -> None:
    c = calibration(stage.validate(trained))
    assert c["passed"]
    assert c["tested"].mean() > 0.9
    assert ((c["calibration_pareto_k"] <= 0.7) == c["tested"]).all()  # none lacks effective draws
    assert c["tested_posterior"] == "prior"
    assert c["theta_true"].shape == (400, 3)
    assert c["theta_draws"].shape == (100, 400, 3)
    assert np.median(c["ess_fraction"]) > 0.9


def test_an_overconfident_posterior_fails(trained: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the weights, a q whose widths are halved is caught; with them it is repaired."""
    run = Run(trained.case, tmp_path)
    for name in ("simulate", "train"):
        run.output(name).symlink_to(trained.output(name))
    (tmp_path / "simulations").symlink_to(trained.folder / "simulations")
    load = stage.load_posterior

    def overconfident(path: Path, **options: Any) -> Posterior:
        posterior = load(path, **options)
        posterior.network.width *= 0.5
        return posterior

    monkeypatch.setattr(stage, "load_posterior", overconfident)
    monkeypatch.setattr(stage, "has_likelihood", lambda simulator: False)
    assert not calibration(stage.validate(run))["passed"]


def changed(run: Run, folder: Path, **changes: Any) -> Run:
    """The trained run with other settings of validate, in a folder of its own."""
    case = run.case.model_copy(update={"validation": run.case.validation.model_copy(update=changes)})
    folder.mkdir(exist_ok=True)
    other = Run(case, folder)
    for name in ("simulate", "train"):
        other.output(name).symlink_to(run.output(name))
    (folder / "simulations").symlink_to(run.folder / "simulations")
    return other


def test_q_itself_is_tested_without_weights(
    trained: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "_weighted_draws", None)
    c = calibration(stage.validate(changed(trained, tmp_path, weighted=False)))
    assert c["tested"].all()
    assert np.isnan(c["ess_fraction"]).all()
    assert "unweighted" in capsys.readouterr().err


def test_where_weights_leave_too_little_it_says_what_to_do(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"only 0 of 400 .* or test q itself: validate.weighted: false"):
        stage.validate(changed(trained, tmp_path, least_ess=1e9))
    with pytest.raises(InputError, match=r"Pareto k is at most -1; raise validate.proposals"):
        stage.validate(changed(trained, tmp_path / "k", most_pareto_k=-1))


def test_q_itself_is_not_tested_under_a_proposal(tmp_path: Path) -> None:
    changes = {"simulate": {"proposal": {"theta_1": {"uniform": [-1, 1]}}}, "validate": {"weighted": False}}
    with pytest.raises(InputError, match="only weights make ranks uniform"):
        stage.validate(Run(load_case(write_case(tmp_path, changes)), tmp_path / "run"))


def test_under_a_proposal_the_proposals_posterior_is_tested(tmp_path: Path) -> None:
    changes = {
        "simulate": {"count": 8_000, "held_out": 1_000, "proposal": {"theta_1": {"uniform": [-0.5, 1.5]}}},
        "validate": {"simulations": 400, "draws": 100, "proposals": 2_000},
    }
    run = Run(load_case(write_case(tmp_path, changes)), tmp_path / "run")
    simulate(run)
    train(run)
    c = calibration(stage.validate(run))
    assert c["tested_posterior"] == "proposal as prior"
    assert c["passed"]
    # every delivered draw lies where the proposal does, though q itself reaches beyond
    assert c["theta_draws"][:, c["tested"], 0].min() >= -0.5
    assert c["theta_draws"][:, c["tested"], 0].max() <= 1.5
    # against the prior's posterior these ranks would not be uniform: theta_1 never comes from the prior's tails
    posterior = stage.load_posterior(run.output("train"))
    data = stage.held_out_simulations(run)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = posterior.sample_batched((100,), data.x)
    assert float((draws[..., 0] < -0.5).double().mean()) > 0.01


def test_more_than_was_held_out_is_refused(trained: Run) -> None:
    case = trained.case.model_copy(
        update={"validation": trained.case.validation.model_copy(update={"simulations": 5_000})}
    )
    with pytest.raises(InputError, match="only 1000 simulations were held out"):
        stage.validate(Run(case, trained.folder))
