"""The same on a GPU: closed form and agreement with the CPU; the real star against its known evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline.config import load_case
from pipeline.stages.infer import infer
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.stages.validate import validate
from pipeline.training.data import FreshSimulations
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of, to_device
from tests.pipeline.stages.conftest import write_case
from tests.pipeline.stages.test_k2_24 import LOG_EVIDENCE, run_until_inferred

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def certificates(run: Run) -> dict[str, Any]:
    with h5py.File(run.output("infer")) as file:
        group: Any = file["certificate"]
        return {name: group[name][:] for name in group}


def test_linear_gaussian_on_the_gpu(tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        run = Run(load_case(write_case(tmp_path), [f"device={device}"]), tmp_path / device)
        for stage in (simulate, train, infer, validate):
            stage(run)
        found[device] = certificates(run)
        exact = LinearGaussian().log_evidence(run.observation().x["x"]).numpy()
        assert np.abs(found[device]["log_evidence"] - exact).max() < 2e-3
        assert found[device]["kl_gap"].max() < 0.02
    error = np.hypot(found["cpu"]["log_evidence_error"], found["cuda"]["log_evidence_error"])
    assert (np.abs(found["cpu"]["log_evidence"] - found["cuda"]["log_evidence"]) < 5 * error).all()


def test_k2_24_on_the_gpu(tmp_path: Path, root: Path) -> None:
    run = run_until_inferred(tmp_path, root, ["device=cuda", "train.steps=500"])
    c = certificates(run)
    assert c["verdict"][0].decode() == "refined"
    assert c["log_evidence"][0] == pytest.approx(LOG_EVIDENCE, abs=0.006)
    assert c["log_evidence_error"][0] < 0.003


def test_fresh_simulations_on_the_gpu_are_a_function_of_the_step() -> None:
    """The prior lies on the GPU there, and would draw from its global generator."""
    simulator, device = LinearGaussian(), torch.device("cuda", 0)
    prior = to_device(prior_of(simulator), device)
    source = FreshSimulations(simulator, prior, prior, device).batches(64, seed=1, stage="train-0")
    torch.cuda.manual_seed(1)
    first = source[3]
    torch.cuda.manual_seed(2)
    again = source[3]
    assert first.theta.is_cuda
    assert torch.equal(first.theta, again.theta)
    assert torch.equal(first.x["x"], again.x["x"])
    assert not torch.equal(first.theta, source[4].theta)


@pytest.mark.parametrize("objective", ["iwelbo", "wake", {"elbo": 0.5, "forward_kl": 0.5}])
def test_every_objective_trains_on_the_gpu(objective: Any, tmp_path: Path) -> None:
    phases = [
        {"objective": "forward_kl", "steps": 200, "batch": 256, "learning_rate": 3e-3},
        {"objective": objective, "steps": 200, "batch": 64, "draws": 8, "prior_share": 0.25},
    ]
    config = write_case(tmp_path)
    run = Run(
        load_case(config, ["device=cuda", "train.data=online", f"train.phases={json.dumps(phases)}"]), tmp_path / "run"
    )
    for stage in (simulate, train, infer):
        stage(run)
    found = certificates(run)
    exact = LinearGaussian().log_evidence(run.observation().x["x"]).numpy()
    assert np.abs(found["log_evidence"] - exact).max() < 5e-3
