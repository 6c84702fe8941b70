"""Supernova surveys through the stages: a folder as the observation, absent supernovae, and the real survey against an exact grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from benchmarks.supernova_grid import grid_posterior
from pipeline.config import load_case
from pipeline.diagnostics.c2st import c2st
from pipeline.stages.infer import infer
from pipeline.stages.report_observations import _error_bars, predictive_views
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.stages.validate import validate
from simulators.supernova_cosmology import supernova_observables

CASE = {
    "threads": 1,
    "simulator": {"name": "supernova_cosmology", "options": {"count": 8}},
    "observation": "survey",
    "simulate": {"count": 600, "held_out": 100},
    "train": {
        "flow": {"transforms": 2, "hidden": 16, "blocks": 1, "bins": 4},
        "phases": [{"objective": "forward_kl", "steps": 60, "learning_rate": 5e-3, "batch": 128}],
    },
    "infer": {"draws": 500, "refine": {"when": "never"}, "sample": {"when": "never"}},
}
REDSHIFT = [0.02, 0.1, 0.3, 0.6, 1.2]


def write_survey(folder: Path, systematic: float) -> None:
    """Five supernovae of a universe with Om = 0.3, to 0.01 mag."""
    folder.mkdir(exist_ok=True)
    magnitude = [15.36, 19.03, 21.67, 23.47, 25.24]
    rows = "".join(f"{n} {z} {m} 0.03\n" for n, (z, m) in enumerate(zip(REDSHIFT, magnitude, strict=True)))
    (folder / "lcparam_T.txt").write_text("#name zcmb mb dmb\n" + rows)
    (folder / "sys_T.txt").write_text("5\n" + "\n".join(map(str, (systematic**2 * np.eye(5)).ravel())))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("supernovae")
    (folder / "case.yaml").write_text(yaml.safe_dump(CASE))
    write_survey(folder / "survey", 0.01)
    run = Run(load_case(folder / "case.yaml"), folder / "run")
    simulate(run)
    train(run)
    infer(run)
    return run


def test_a_folder_is_an_observation_and_a_change_in_it_is_seen(run: Run) -> None:
    def evidence() -> float:
        with h5py.File(infer(run)) as file:
            certificate: Any = file["certificate"]
            assert certificate["observation"].asstr()[0] == "survey"
            return float(certificate["log_evidence"][0])

    before = evidence()
    write_survey(run.observation_path(), 0.05)
    assert abs(evidence() - before) > 0.05  # errors of 0.05 mag, and evidences that are good to 0.01
    write_survey(run.observation_path(), 0.01)
    assert evidence() == before


def test_the_hubble_diagram_has_the_supernovae_that_are_there(run: Run) -> None:
    views = predictive_views(run, np.full((300, 1), 0.3), 0)
    assert list(views) == ["Hubble diagram"]
    top, bottom = views["Hubble diagram"]().axes
    assert top.get_xscale() == "log"
    np.testing.assert_allclose(bottom.get_lines()[0].get_xdata(), REDSHIFT)
    residual = np.asarray(bottom.get_lines()[0].get_ydata(), dtype=float)
    assert np.abs(residual).max() < 0.05


def test_error_bars_come_from_a_covariance_or_from_errors() -> None:
    magnitude = supernova_observables(2)[-1]
    x = {"covariance": torch.diag(torch.tensor([4.0, 9.0]))[None]}
    bars = _error_bars(x, magnitude, torch.tensor([True, False]))
    assert bars is not None
    assert bars.tolist() == [2.0]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "log_evidence"), [("lcdm", 75.3067), ("wcdm", 74.0234)])
def test_pantheon_against_the_exact_grid(
    model: str, log_evidence: float, tmp_path: Path, root: Path, reference: Path
) -> None:
    """The configs as they stand, on the real survey."""
    case = load_case(root / f"configs/pantheon_{model}.yaml")
    run = Run(case.model_copy(update={"observation": reference / "observations/pantheon"}), tmp_path)
    simulate(run)
    train(run)
    infer(run)
    validate(run)
    names = tuple(p.name for p in run.simulator.parameters)
    x = {k: v[0].numpy() for k, v in run.observation().x.items()}
    grid = grid_posterior(x, names)
    assert grid.log_evidence == pytest.approx(log_evidence, abs=1e-3)
    with h5py.File(run.output("infer")) as file:
        certificate: Any = file["certificate"]
        assert certificate["verdict"].asstr()[0] == "exact"
        assert abs(certificate["log_evidence"][0] - grid.log_evidence) < 0.02
        posterior: Any = file["posterior"]
        draws = np.stack([posterior[n][0, :, 0] for n in names], axis=1)
    assert c2st(grid.draws(len(draws), seed=1), draws) < 0.515  # 0.50 +- 0.005 for equal sets of 10,000
    with h5py.File(run.output("validate")) as file:
        assert file["calibration"].attrs["passed"]
