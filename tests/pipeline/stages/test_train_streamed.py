"""Training from a file that is larger than the memory given: resumed exactly, and another content than in memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.interrupt import Interrupted, handle_signals
from pipeline.stages import train as train_module
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import simulation_rows, train
from pipeline.store import read_data, read_key, read_safetensors
from pipeline.training.phase import Phase
from pipeline.training.storage import storage_of, stored_simulations
from tests.pipeline.stages.conftest import write_case
from tests.pipeline.stages.test_simulate import FAILING

STREAMED = {
    "simulate": {"count": 5_000, "held_out": 300, "shard": 700},
    "train": {
        "flow": {"transforms": 1, "hidden": 8, "blocks": 1, "bins": 4},
        "embedding": {"kind": "none"},
        "memory_gb": 0.0003,
        "phases": [
            {"objective": "forward_kl", "steps": 60, "batch": 64},
            {"objective": "wake", "steps": 60, "batch": 64, "draws": 4, "memory": True},
        ],
        "check_every": 30,
        "checkpoint_every": 25,
    },
}


def new_run(folder: Path, name: str = "run") -> Run:
    run = Run(load_case(write_case(folder, STREAMED)), folder / name)
    simulate(run)
    return run


def with_memory(run: Run, gigabytes: float) -> Run:
    train = run.case.train.model_copy(update={"memory_gb": gigabytes})
    return Run(run.case.model_copy(update={"train": train}), run.folder)


def test_stopped_in_the_middle_of_an_epoch_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = new_run(tmp_path, "whole"), new_run(tmp_path, "stopped")
    train(whole)
    original = Phase.training_step

    def with_signal(self: Phase, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 43:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    for _ in (0, 1):  # once in each phase
        with monkeypatch.context() as patch:
            patch.setattr(Phase, "training_step", with_signal)
            with handle_signals(), pytest.raises(Interrupted):
                train(stopped)
    train(stopped)
    (one, header), (other, other_header) = (read_safetensors(r.output("train")) for r in (whole, stopped))
    assert all(one[k].numpy().tobytes() == other[k].numpy().tobytes() for k in one)
    assert {k: v for k, v in header.items() if k != "provenance"} == {
        k: v for k, v in other_header.items() if k != "provenance"
    }


def test_the_order_of_rows_is_content_and_the_memory_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(train_module.console, "print", said.append)
    run = new_run(tmp_path)
    train(run)
    assert (
        "train: 5,000 simulations, 0.0008 GB, more than train.memory_gb: read from the file in blocks of 17, 32 of them mixed"
        in said
    )
    streamed = read_key(run.output("train"))
    train(with_memory(run, 1.0))
    assert "train: 5,000 simulations, 0.0008 GB, in memory" in said
    in_memory = read_key(run.output("train"))
    assert in_memory != streamed
    mark = run.output("train").stat().st_mtime_ns
    train(with_memory(run, 2.0))
    assert run.output("train").stat().st_mtime_ns == mark
    with pytest.raises(InputError, match=r"train.memory_gb: 1e-05 GB holds two windows"):
        train(with_memory(run, 1e-5))


def test_failed_simulations_are_counted_and_never_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """x is NaN where theta_1 < -2: one in 44."""
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    changes = STREAMED | {"simulator": {"name": "Failing", "path": "failing.py"}}
    run = Run(load_case(write_case(tmp_path, changes)), tmp_path / "run")
    simulate(run)
    data = read_data(run.output("simulate"), observables=run.simulator.observables, parameters=run.simulator.parameters)
    assert data.failed is not None
    assert data.theta is not None
    failed = data.failed[300:] != 0
    assert 60 < int(failed.sum()) < 180
    rows, start = simulation_rows(run, run.model)
    storage = storage_of(rows, start, memory_gb=0.0003, batch=64, device=torch.device("cpu"))
    assert storage.where == "file"
    source = stored_simulations(rows, start, storage, device=torch.device("cpu"))
    good = data.theta[300:][~failed]
    assert len(source) == len(good)  # pyright: ignore[reportArgumentType]
    batches = source.batches(64, seed=1, stage="a")
    seen = torch.cat([batches[step].theta for step in range(-(-len(good) // 64))])[: len(good)]
    batches.close()
    assert torch.equal(seen[seen[:, 0].argsort()], good[good[:, 0].argsort()])
    said: list[str] = []
    monkeypatch.setattr(train_module.console, "print", said.append)
    train(run)
    assert f"train: {int(failed.sum())} of 5000 training simulations failed and are left out" in said
