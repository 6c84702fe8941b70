"""Processes that make shards: one that is killed is replaced, and a fault in one is the command's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.interrupt import Interrupted, handle_signals
from pipeline.stages.run import Run
from pipeline.stages.shard import Shard, shard_key, shard_report
from pipeline.stages.simulation_workers import make_in_workers

SIMULATOR = """
import os
import signal
from pathlib import Path

import torch
from simulators.linear_gaussian import LinearGaussian

HERE = Path(__file__).parent


class Mortal(LinearGaussian):
    batch = 50

    def __init__(self, *, deaths: int = 0, fault: str = "", **options):
        super().__init__(**options)
        self.deaths, self.fault = deaths, fault

    def simulate(self, theta, context=None, *, generator):
        print("what a simulator prints must not disturb the pipe")
        if self.fault:
            raise ArithmeticError(self.fault)
        graves = len(list(HERE.glob("grave-*")))
        if graves < self.deaths and len(list(HERE.glob("run/simulations/shard-*.h5"))) > 0:
            (HERE / f"grave-{graves}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().simulate(theta, context, generator=generator)
"""
SHARDS = [Shard(i, 100) for i in range(6)]


def mortal(folder: Path, **options: object) -> Run:
    (folder / "mortal.py").write_text(SIMULATOR, encoding="utf-8")
    case = {"simulator": {"name": "Mortal", "path": "mortal.py", "options": options}}
    (folder / "case.yaml").write_text(yaml.safe_dump(case), encoding="utf-8")
    return Run(load_case(folder / "case.yaml"), folder / "run")


def make(run: Run, workers: int = 1) -> tuple[list[int], int]:
    """Indices in the order made, and rows that the progress bar has seen."""
    made: list[int] = []
    rows: list[int] = []
    make_in_workers(
        run, SHARDS, shard_key(run), workers=workers, advance=rows.append, done=lambda r: made.append(r.shard.index)
    )
    return made, sum(rows)


def test_a_killed_worker_is_noticed_and_its_shard_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = mortal(tmp_path, deaths=1)
    made, rows = make(run, workers=2)
    assert sorted(made) == [0, 1, 2, 3, 4, 5]
    assert rows == 600  # those of the dead were taken back
    assert (tmp_path / "grave-0").exists()
    assert "died (killed by SIGKILL); the shard is made again" in capsys.readouterr().err
    folder, key = run.folder / "simulations", shard_key(run)
    assert all(shard_report(folder / s.name, s, key) is not None for s in SHARDS)
    assert not [p for p in folder.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shard-0000\d.h5: 3 workers in turn died of it, the last killed by SIGKILL"):
        make(mortal(tmp_path, deaths=99))


def test_a_fault_of_the_simulator_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mortal.py, line \d+, in simulate: ArithmeticError: wrong sign"):
        make(mortal(tmp_path, fault="wrong sign"))


def test_a_signal_stops_the_workers_and_leaves_complete_shards(tmp_path: Path) -> None:
    run = mortal(tmp_path)
    key = shard_key(run)
    with handle_signals(), pytest.raises(Interrupted):
        make_in_workers(
            run,
            [Shard(i, 100) for i in range(2_000)],
            key,
            workers=1,
            advance=lambda n: None,
            done=lambda r: os.kill(os.getpid(), signal.SIGTERM),
        )
    files = list((run.folder / "simulations").iterdir())
    assert 1 <= len(files) < 2_000
    assert all(shard_report(p, Shard(int(p.stem[-5:]), 100), key) is not None for p in files)
