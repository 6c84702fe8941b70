"""The same on a GPU: closed form and agreement with the CPU; the real star against its known evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline.config import load_case
from pipeline.stages.run import Run
from pipeline.stages.validate import validate
from simulators.linear_gaussian import LinearGaussian
from tests.pipeline.stages.conftest import write_case
from tests.pipeline.stages.test_k2_24 import LOG_EVIDENCE, run_until_inferred

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def certificates(run: Run) -> dict[str, Any]:
    with h5py.File(run.output("infer")) as file:
        group: Any = file["certificate"]
        return {name: group[name][:] for name in group}


def test_linear_gaussian_on_the_gpu(tmp_path: Path) -> None:
    from pipeline.stages.infer import infer
    from pipeline.stages.simulate import simulate
    from pipeline.stages.train import train

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
