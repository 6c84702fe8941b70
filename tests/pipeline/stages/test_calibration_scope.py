"""A calibration on simulations from a proposal speaks of the proposal: in words, and not passed where a peak is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
import yaml

from pipeline.config import load_case
from pipeline.stages.calibration_scope import Scope, scope_of
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.stages.validate import validate
from pipeline.store import write_data
from simulators.protocol import Observable
from tests.pipeline.stages.conftest import CASE, write_case

ROOT = Path(__file__).resolve().parents[3]
SIMULATOR = '''
import torch
from torch.distributions import Uniform
from simulators.protocol import Observable, Parameter

class Square:
    """y = theta^2 + 0.5 n: the sign of theta is open."""
    name = "square"
    parameters = (Parameter("theta", Uniform(torch.tensor(-4.0).double(), torch.tensor(4.0).double())),)
    observables = (Observable("y", (1,)),)

    def simulate(self, theta, context=None, *, generator):
        return {"y": theta**2 + 0.5 * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)}

    def log_likelihood(self, theta, x):
        return -0.5 * ((x["y"][:, 0] - theta[..., 0] ** 2) / 0.5) ** 2 - 0.225791

    def candidates(self, x):
        return x["y"].clamp_min(0.01).sqrt() * torch.tensor([[1.0], [-1.0]])
'''


def square(folder: Path, proposal: dict[str, Any]) -> Run:
    """The observation y = 4, theta = +-2."""
    (folder / "square.py").write_text(SIMULATOR)
    y = {"y": torch.tensor([[4.0]], dtype=torch.float64)}
    write_data(folder / "y.h5", observables=(Observable("y", (1,)),), x=y, ids=["four"])
    case = CASE | {
        "simulator": {"name": "Square", "path": "square.py"},
        "observation": "y.h5",
        "simulate": {"count": 2_000, "held_out": 300, "proposal": proposal},
        "train": {
            "flow": {"transforms": 3, "hidden": 16, "blocks": 1, "bins": 8},
            "embedding": {"kind": "none"},
            "phases": [{"objective": "forward_kl", "steps": 300, "learning_rate": 5e-3, "batch": 128}],
        },
        "validate": {"simulations": 200, "draws": 60, "proposals": 600},
    }
    (folder / "case.yaml").write_text(yaml.safe_dump(case))
    return Run(load_case(folder / "case.yaml"), folder / "run")


def test_a_proposal_that_leaves_out_a_mode_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue: half of a posterior was absent, and `validate` passed, since its simulations came from the same box."""
    run = square(tmp_path, {"theta": {"uniform": [0.5, 3.5]}})
    simulate(run)
    train(run)
    path = validate(run)
    said = " ".join(capsys.readouterr().err.split())
    with h5py.File(path) as file:
        found: dict[str, Any] = dict(file["calibration"].attrs)
    assert not found["passed"]
    assert found["outside_proposal"] == pytest.approx(0.5, abs=1e-3)
    assert found["scope"] == "within the proposal only: simulations from the prior were not tested"
    assert "NOT passed: peaks that hold 50 % of the posterior of 'four' lie outside simulate.proposal" in said
    assert "the heaviest at theta -" in found["verdict"]
    assert found["verdict"].endswith("within it calibrated")  # the ranks alone see nothing


@pytest.mark.parametrize(
    "proposal",
    [{"theta": {"uniform": [-3.5, 3.5]}}, {"mixture": [{"theta": {"uniform": [a - 1, a + 1]}} for a in (-2, 2)]}],
)
def test_a_proposal_that_holds_both_passes_with_its_qualification(tmp_path: Path, proposal: dict[str, Any]) -> None:
    scope = scope_of(square(tmp_path, proposal))
    assert scope.outside == 0.0
    assert not scope.misses_peaks
    assert scope.verdict(True) == "calibrated within the proposal only (simulations from the prior were not tested)"
    assert scope.verdict(False).startswith("NOT calibrated within the proposal only")


def test_a_mixture_goes_through_training_and_validation(tmp_path: Path) -> None:
    proposal = {"mixture": [{"weight": w, "theta": {"uniform": [a - 1.5, a + 1.5]}} for w, a in ((1, -2), (3, 2))]}
    run = square(tmp_path, proposal)
    simulate(run)
    train(run)
    with h5py.File(validate(run)) as file:
        found: Any = file["calibration"]
        truth = found["theta_true"][:, 0]
        draws = found["theta_draws"][:, found["tested"][:], 0]
        assert found.attrs["passed"]
        assert found.attrs["tested_posterior"] == "proposal as prior"
    # 3 of 4 from the right box; 5 binomial errors of 200
    assert (truth > 0).mean() == pytest.approx(0.75, abs=0.155)
    assert (draws > 0).mean() == pytest.approx(0.75, abs=0.155)


def test_without_a_proposal_or_without_candidates_nothing_is_claimed_of_peaks(tmp_path: Path) -> None:
    assert scope_of(square(tmp_path, {})) == Scope(False)
    assert Scope(False).verdict(True) == "calibrated"
    changes = {"simulate": {"proposal": {"theta_1": {"uniform": [-0.5, 1.5]}}}}
    scope = scope_of(Run(load_case(write_case(tmp_path, changes)), tmp_path / "run"))
    assert scope.of_proposal
    assert not scope.misses_peaks
    assert scope.outside != scope.outside  # NaN: nothing to start from


def test_the_alias_that_was_missing_is_named() -> None:
    box = "{per1: {uniform: [4.814109, 4.822675]}, tc1: {uniform: [2458324.226, 2458325.661]}}"
    scope = scope_of(Run(load_case(ROOT / "configs/aliases.yaml", [f"simulate.proposal={box}"]), ROOT / "runs/none"))
    assert scope.outside == pytest.approx(0.49, abs=0.05)
    assert "per1 4.759" in scope.verdict(True)
