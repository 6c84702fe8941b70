"""Two processes train what one trains: the same curve within rounding, one writer, and they stop together."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.stages import perform
from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.interrupt import RUN_AGAIN
from pipeline.stages import run as run_module
from pipeline.stages import train as train_module
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.store import read_key
from pipeline.training.launch import LAUNCHED, launch
from pipeline.training.processes import Processes
from pipeline.training.schedule import train_schedule
from tests.pipeline.stages.conftest import write_case

CASE: dict[str, Any] = {
    "simulate": {"count": 1_003, "held_out": 200, "shard": 300, "proposal": {"theta_1": {"normal": [0.0, 2.0]}}},
    "train": {
        "flow": {"transforms": 1, "hidden": 16, "blocks": 1, "bins": 4},
        "embedding": {"kind": "none"},
        "phases": [
            {"objective": "forward_kl", "steps": 40, "batch": 64, "weighted": True},
            {"objective": {"elbo": 0.5, "iwelbo": 0.5}, "steps": 40, "batch": 64, "draws": 2},
        ],
        "check_every": 10,
        "checkpoint_every": 15,
    },
}
STREAMED: dict[str, Any] = {
    "simulate": {"count": 2_003, "held_out": 200, "shard": 300},
    "train": CASE["train"]
    | {
        "memory_gb": 0.0002,
        "phases": [
            {"objective": "wake", "steps": 60, "batch": 64, "draws": 4, "prior_share": 0.25, "memory": True},
        ],
    },
}
ROUNDING = 1e-4
"""Relative: sums of 32 and 32 numbers in float32 are not those of 64; forty steps of Adam amplify 1e-7 to some 1e-6."""


def history(run: Run) -> list[dict[str, str]]:
    with (run.folder / "training.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def of_devices(folder: Path, changes: dict[str, Any], devices: int) -> Run:
    path = write_case(folder, changes | {"train": changes["train"] | {"devices": devices}})
    run = Run(load_case(path), folder / f"run-{devices}")
    simulate(run)
    return run


@pytest.mark.parametrize("changes", [CASE, pytest.param(STREAMED, marks=pytest.mark.slow)], ids=["memory", "streamed"])
def test_two_processes_give_the_training_curve_of_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    one, two = (of_devices(tmp_path, changes, devices) for devices in (1, 2))
    train(one)
    perform("train", two)  # holds the run folder for the processes that it starts
    rows, others = history(one), history(two)
    assert len(rows) == len(others) == (8 if changes is CASE else 6)
    for row, other in zip(rows, others, strict=True):
        for name, value in row.items():
            assert bool(value) is bool(other[name])
            if value:
                assert float(other[name]) == pytest.approx(float(value), rel=ROUNDING, abs=ROUNDING), name
    assert read_key(one.output("train")) == read_key(two.output("train"))
    assert not list(two.folder.glob("checkpoints/*.ckpt"))
    assert not list(two.folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("rank", "others", "launched"), [("0", 1, False), ("0", 2, False), ("1", 2, True), ("0", 2, True)]
)
def test_one_of_the_processes_holds_the_run_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: str, others: int, launched: bool
) -> None:
    """Neither those that `elboscope train` has started nor all but the first of a launcher's."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", str(others))
    if launched and rank == "0":
        monkeypatch.setenv(LAUNCHED, "1")
    held: list[str] = []
    monkeypatch.setattr(run_module, "hold", lambda run, stage, shared: held.append(stage) or nullcontext())
    monkeypatch.setattr(train_module, "train", lambda run: run.folder)
    perform("train", Run(load_case(write_case(tmp_path, {})), tmp_path / "run"))
    assert held == ([] if launched else ["train"])


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    changes = CASE | {"train": CASE["train"] | {"phases": [{"objective": "forward_kl", "steps": 5, "batch": 63}]}}
    run = Run(load_case(write_case(tmp_path, changes)), tmp_path / "run")
    nothing: Any = None  # it is refused before anything is looked at
    with pytest.raises(InputError, match="a batch of 63 rows cannot be shared evenly by 2 processes"):
        train_schedule(
            nothing,
            case=run.case,
            phases=run.phases,
            simulator=run.simulator,
            prior=run.prior,
            training=nothing,
            held_out=nothing,
            folder=tmp_path / "checkpoints",
            key="key",
            processes=Processes(rank=0, world=2),
        )


def test_processes_that_refuse_say_so_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"train: process \d of 2 ended with exit code 2"):
        launch(["train", str(tmp_path / "none.yaml")], 2, logs=tmp_path / "logs", threads=1)
    said = capfd.readouterr().err
    assert "error: " in said
    assert "none.yaml" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGKILL])
def test_stopped_or_killed_they_go_on_where_they_were(tmp_path: Path, stop: signal.Signals) -> None:
    steps = {"phases": [{"objective": "forward_kl", "steps": 120, "batch": 64}]}
    whole, stopped = (of_devices(tmp_path / name, CASE | {"train": CASE["train"] | steps}, 2) for name in "ab")
    train(whole)
    command = [sys.executable, "-m", "pipeline.cli", "train", str(tmp_path / "b/case.yaml")]
    process = subprocess.Popen(
        [*command, "--run-dir", str(stopped.folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    checkpoint = stopped.folder / "checkpoints/phase-0.ckpt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    if stop == signal.SIGINT:  # Ctrl-C goes to all processes of a terminal
        os.killpg(process.pid, stop)
    else:
        process.send_signal(stop)
    codes = {signal.SIGTERM: 143, signal.SIGUSR1: RUN_AGAIN, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
    assert process.wait(60) == codes[stop]
    time.sleep(3)  # those of a killed command notice that it is gone
    assert not stopped.output("train").exists()
    train(stopped)
    assert history(stopped) == history(whole)
