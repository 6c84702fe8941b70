r"""Random SIGKILLs over simulate, merge, train and infer of a small case: nothing lost, nothing doubled, nothing half.

    python -m benchmarks.kills --kills 200 --seed 1    # and with other seeds: each is a series of its own

An undisturbed run comes first; it says for how long each stage works. Then a second run is made under fire: a stage is
started, and at a random moment of its work a process is killed: the command itself, or (three in ten, where there are
some) one of its workers. After every kill all files that have their final name are read to the end. A stage that
finished under its quota is undone and begins again. At the end the content of both runs must be equal. Commands are forks of this
process, which has imported all they need; their workers are fresh processes. One command in five is a fresh process too,
killed at any moment from its start on, imports included.

Rows go to benchmarks/results/kills.csv.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
import yaml

import pipeline.stages.infer
import pipeline.stages.simulate
import pipeline.stages.train  # noqa: F401  before it forks
from benchmarks.table import append
from pipeline.cli import main as elboscope
from pipeline.own_process import own_command
from pipeline.run_lock import FOLDER as LOCKS
from pipeline.stages.verify import check_run
from pipeline.store import hdf5_content_digest, read_safetensors, write_data
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of, sample

RESULTS = Path(__file__).resolve().parent / "results" / "kills.csv"
ROOT = Path(__file__).resolve().parents[1]
CASE = {
    "seed": 5,
    "threads": 1,
    "simulator": {"name": "SlowGaussian", "path": "slow.py"},
    "observation": "observed.h5",
    "simulate": {"count": 2_800, "held_out": 200, "shard": 100, "workers": 2},
    "train": {
        "flow": {"transforms": 2, "hidden": 16, "blocks": 1, "bins": 4},
        "embedding": {"kind": "none"},
        "phases": [
            {"objective": "forward_kl", "steps": 120, "batch": 128},
            {"objective": "elbo", "steps": 120, "batch": 128},
        ],
        "check_every": 40,
        "checkpoint_every": 20,
    },
    "infer": {"refine": {"when": "never"}, "sample": {"when": "never"}, "draws": 1_000},
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SIMULATOR = """
import time

import torch
from simulators.linear_gaussian import LinearGaussian


class SlowGaussian(LinearGaussian):
    batch = 50

    def simulate(self, theta, context=None, *, generator):
        time.sleep(1e-3 * len(theta))
        x = super().simulate(theta, context, generator=generator)
        return {"x": torch.where(theta[:, :1] > 2.5, torch.nan, x["x"])}
"""
STAGES = {
    "simulate": (["simulate"], 0.25, ["simulations", "simulations.h5"]),
    "merge": (["simulate", "--merge"], 0.25, ["simulations.h5"]),
    "train": (["train"], 0.3, ["posterior.safetensors", "checkpoints", "training.csv"]),
    "infer": (["infer"], 0.2, ["inference.h5"]),
}
"""Arguments, share of the kills, and what undoes the stage."""
WORKER_SHARE = 0.3
FRESH_SHARE = 0.2
"""Of commands that are processes of their own: each takes seconds to start."""


@dataclass(frozen=True)
class Tally:
    """What came of one stage."""

    stage: str
    kills: int
    workers_killed: int
    fresh: int
    finished: int
    unreadable: int


class Command:
    """The command of a stage at work: a fork of this process, or a fresh one."""

    def __init__(self, folder: Path, run: str, stage: str, *, fresh: bool = False) -> None:
        arguments = [*STAGES[stage][0], "case.yaml", "--run-dir", run]
        self.began = time.monotonic()
        if fresh:
            with (folder / "log.txt").open("ab") as log:
                self.fresh = subprocess.Popen(
                    [*own_command("pipeline.cli"), *arguments],
                    cwd=folder,
                    env=os.environ | ENVIRONMENT,
                    stdout=log,
                    stderr=log,
                )
            self.pid = self.fresh.pid
        else:
            self.fork = multiprocessing.get_context("fork").Process(target=command, args=(folder, arguments))
            self.fork.start()
            self.pid = self.fork.pid or 0
        self.is_fresh = fresh

    def is_alive(self) -> bool:
        """Whether it still works."""
        return self.fresh.poll() is None if self.is_fresh else self.fork.is_alive()

    def ended(self) -> int | None:
        """Exit code, once it has ended."""
        if self.is_fresh:
            return self.fresh.wait()
        self.fork.join()
        return self.fork.exitcode


def command(folder: Path, arguments: list[str]) -> None:
    """In the fork: what the shell's `elboscope` does."""
    log = (folder / "log.txt").open("ab")
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log.fileno(), stream.fileno())
    os.chdir(folder)
    os.environ |= ENVIRONMENT
    sys.argv = ["elboscope", *arguments]
    elboscope()


def wait_for_work(process: Command, run: Path) -> None:
    """Until it has announced itself in the run folder: imports are done."""
    mine = f"-{process.pid}-"
    while process.is_alive():
        if any(mine in p.name for p in (run / LOCKS).glob("[!.]*.json")):
            return
        time.sleep(0.002)


def undisturbed(folder: Path) -> tuple[dict[str, float], float]:
    """Make the run `whole`; seconds of work of each stage, and seconds that a fresh process takes to start."""
    seconds, start_s = {}, 0.0
    for stage in STAGES:
        if stage == "merge":
            (folder / "whole" / "simulations.h5").unlink()
        process = Command(folder, "whole", stage, fresh=stage == "simulate")
        wait_for_work(process, folder / "whole")
        began = time.monotonic()
        start_s = max(start_s, began - process.began)
        if process.ended() != 0:
            raise SystemExit(f"{stage} failed: see {folder / 'log.txt'}")
        seconds[stage] = time.monotonic() - began
    return seconds, start_s


def children(pid: int) -> list[int]:
    """Processes that it has started."""
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def under_fire(folder: Path, stage: str, kills: int, seconds: float, start_s: float, chance: random.Random) -> Tally:
    """Start, kill, check, until so many have been killed; then let it finish."""
    run = folder / "killed"
    done = workers = finished = unreadable = fresh = 0
    while done < kills:
        process = Command(folder, "killed", stage, fresh=chance.random() < FRESH_SHARE)
        if process.is_fresh:
            time.sleep(chance.uniform(0, start_s + seconds))
        else:
            wait_for_work(process, run)
            time.sleep(chance.uniform(0, seconds))
        if process.is_alive():
            own = children(process.pid)
            victim = chance.choice(own) if own and chance.random() < WORKER_SHARE else process.pid
            os.kill(victim, signal.SIGKILL)
            done += 1
            workers += victim != process.pid
            fresh += process.is_fresh
        code = process.ended()
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"{stage}: exit code {code}: see {folder / 'log.txt'}")
        bad = check_run(run)
        unreadable += len(bad)
        for finding in bad:
            sys.stderr.write(f"{stage}: {finding.path}: {finding.problem}\n")
        if code == 0:
            finished += 1
            if done < kills:
                undo(run, stage)
    if Command(folder, "killed", stage).ended() != 0:
        raise SystemExit(f"{stage}: does not finish: see {folder / 'log.txt'}")
    return Tally(stage, done, workers, fresh, finished, unreadable)


def undo(run: Path, stage: str) -> None:
    """Remove what a stage has made."""
    for name in STAGES[stage][2]:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def content(run: Path) -> dict[str, object]:
    """All that is content: datasets and attributes, weights, training log."""
    tensors, header = read_safetensors(run / "posterior.safetensors")
    files = [run / "simulations.h5", run / "inference.h5", *sorted((run / "simulations").glob("*.h5"))]
    return {
        **{p.name: hdf5_content_digest(p) for p in files},
        "weights": {k: v.numpy().tobytes() for k, v in tensors.items()},
        "header": {k: v for k, v in header.items() if k != "provenance"},
        "training.csv": (run / "training.csv").read_text(encoding="utf-8"),
    }


def prepare(folder: Path) -> None:
    """The case, its simulator and two observations."""
    simulator = LinearGaussian()
    stream = torch.Generator().manual_seed(11)
    theta = sample(prior_of(simulator), 2, stream)
    x = simulator.simulate(theta, generator=stream)
    write_data(folder / "observed.h5", observables=simulator.observables, x=x, ids=["first", "second"])
    (folder / "slow.py").write_text(SIMULATOR, encoding="utf-8")
    (folder / "case.yaml").write_text(yaml.safe_dump(CASE), encoding="utf-8")


def kill_all(folder: Path, kills: int, seed: int) -> tuple[list[Tally], list[str]]:
    """Both runs; gives what happened, and the names of what differs at the end."""
    prepare(folder)
    seconds, start_s = undisturbed(folder)
    chance = random.Random(seed)
    tallies = [
        under_fire(folder, stage, max(1, round(share * kills)), seconds[stage], start_s, chance)
        for stage, (_, share, _) in STAGES.items()
    ]
    whole, killed = content(folder / "whole"), content(folder / "killed")
    differing = [name for name in whole.keys() | killed.keys() if whole.get(name) != killed.get(name)]
    with h5py.File(folder / "killed" / "simulations.h5") as file:
        theta = np.asarray(file["theta"])
    if len(np.unique(theta, axis=0)) != len(theta):
        differing.append("rows of theta are not unique")
    leftover = [p.name for p in (folder / "killed").rglob(".*.tmp")]
    return tallies, differing + [f"leftover {name}" for name in leftover if "shard" in name]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        tallies, differing = kill_all(Path(name), given.kills, given.seed)
        rows = [
            {
                "stage": t.stage,
                "kills": t.kills,
                "of workers": t.workers_killed,
                "finished meanwhile": t.finished,
                "unreadable files": t.unreadable,
                "content differs": ", ".join(differing) or "no",
                "date": time.strftime("%Y-%m-%d"),
                "of fresh processes": t.fresh,
            }
            for t in tallies
        ]
    append(RESULTS, rows)
    for row in rows:
        sys.stdout.write(", ".join(f"{k} {v}" for k, v in row.items()) + "\n")
    sys.stdout.write(f"{sum(t.kills for t in tallies)} kills in {time.monotonic() - began:.0f} s\n")
    if differing or any(t.unreadable for t in tallies):
        raise SystemExit("content was lost, doubled or damaged")


if __name__ == "__main__":
    main()
