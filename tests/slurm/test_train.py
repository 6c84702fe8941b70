"""Training on two nodes of a real Slurm, stopped on the way: the curve of one process here."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import load_case
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.workflow.jobs import Jobs
from tests.pipeline.stages.conftest import write_case

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
CASE = {
    "simulate": {"count": 1_003, "held_out": 200, "shard": 300},
    "train": {
        "flow": {"transforms": 1, "hidden": 16, "blocks": 1, "bins": 4},
        "embedding": {"kind": "none"},
        "phases": [{"objective": "forward_kl", "steps": 400, "batch": 64}],
        "check_every": 10,
        "checkpoint_every": 15,
    },
}
ROUNDING = 1e-4
"""Relative: 400 steps of Adam amplify 1e-7."""


def history(run: Run) -> list[dict[str, str]]:
    with (run.folder / "training.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_two_nodes_told_that_time_is_short_give_the_curve_of_one_process(tmp_path: Path, profile: Path) -> None:
    case = write_case(tmp_path, CASE)
    here, there = (Run(load_case(case), tmp_path / name) for name in ("here", "there"))
    simulate(here)
    simulate(there)
    site = tmp_path / "site.yaml"
    site.write_text(profile.read_text() + "setup: export MASTER_ADDR=127.0.0.1\n")  # names of nodes have no address
    arguments = [case, there.folder, site]
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.slurm.drive_train", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    try:
        deadline = time.monotonic() + 200
        while not (there.folder / "checkpoints/phase-0.ckpt").exists():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job = Jobs(run=str(there.folder), case="", folder="", stages={}, command=[]).name("train")
        subprocess.run(["scancel", "--batch", "--signal=USR1", f"--name={job}"], check=True)
        train(here)
        assert driver.wait(timeout=400) == 0
    finally:
        driver.kill()
        driver.wait()
    log = (there.folder / "logs/train.log").read_text()
    assert "ended with exit code 75" in log
    assert log.count(": starts\n") == 2
    for row, other in zip(history(here), history(there), strict=True):
        for name, value in row.items():
            assert bool(value) is bool(other[name])
            if value:
                assert float(other[name]) == pytest.approx(float(value), rel=ROUNDING, abs=ROUNDING), name
