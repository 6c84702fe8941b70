"""What the workflow adds to a stage on Slurm, against sbatch with dependencies written by hand, in one run.

    python -m benchmarks.cluster             # needs a Slurm; prints Markdown tables

Stages are `sleep SECONDS`: simulate, train, infer, compare, report, each after the one before. Both sides submit to the same
partition, one after the other. Then many short jobs at once, for the constants of docs/cluster.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pipeline.workflow.drive import drive, jobs_of
from pipeline.workflow.jobs import Stage
from pipeline.workflow.profile import SHARED, load_profile

CHAIN = ("simulate", "train", "infer", "compare", "report")
STAGE = Stage(parts=1, cores=1, memory_mb=100, gpus=0, nodes=1, minutes=5)


def by_hand(seconds: float) -> float:
    """Wall time of the chain as sbatch lines with --dependency, s."""
    started, before = time.monotonic(), ""
    for _ in CHAIN:
        after = [f"--dependency=afterok:{before}"] if before else []
        line = ["sbatch", "--parsable", "--output=/dev/null", "--mem=100M", *after, f"--wrap=sleep {seconds}"]
        before = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    _wait_for(before)
    return time.monotonic() - started


def _wait_for(job: str) -> None:
    """Until a job has left the queue."""
    while subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False).stdout.strip():
        time.sleep(0.1)


def by_workflow(seconds: float, *, poll: int | None = None, detach: bool = False) -> float:
    """Wall time of the chain through the workflow, s."""
    profile = load_profile("slurm")
    if poll is not None:
        profile = profile.model_copy(update={"poll_seconds": poll})
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        (Path(folder) / "workflow").mkdir()
        jobs = replace(
            jobs_of(Path(folder), dict.fromkeys(CHAIN, STAGE), profile), command=["sh", "-c", f"sleep {seconds}"]
        )
        started = time.monotonic()
        if not drive(jobs, profile, detach=detach):
            sys.exit("a job failed")
        if detach:
            name = jobs.name("report")
            while subprocess.run(
                ["squeue", "-h", "-n", name], capture_output=True, text=True, check=False
            ).stdout.strip():
                time.sleep(0.1)
        return time.monotonic() - started


def many(count: int) -> float:
    """Wall time of `count` jobs that do nothing, s."""
    profile = load_profile("slurm").model_copy(update={"poll_seconds": 1})
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        (Path(folder) / "workflow").mkdir()
        jobs = replace(jobs_of(Path(folder), {"simulate": replace(STAGE, parts=count)}, profile), command=["true"])
        started = time.monotonic()
        if not drive(jobs, profile, at_a_time=count):
            sys.exit("a job failed")
        return time.monotonic() - started


def seconds_a_check() -> float:
    """Wall time of one look at a job that the controller knows, s: the list of all jobs is asked for once in two seconds."""
    listed = subprocess.run(["squeue", "-h", "--states=all", "-o", "%A"], capture_output=True, text=True, check=True)
    known = listed.stdout.split()[:100]
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        for job in known:
            command = ["bash", str(SHARED.parent / "slurm-status.sh"), job]
            subprocess.run(command, cwd=folder, capture_output=True, check=True)
        return (time.monotonic() - started) / len(known)


def say(text: str) -> None:
    """A line on standard output."""
    sys.stdout.write(text + "\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each stage")
    parser.add_argument("--many", type=int, default=100, help="short jobs at once")
    arguments = parser.parse_args()
    os.environ.pop("SBATCH_EXPORT", None)
    sides = {
        "by hand": lambda: by_hand(arguments.seconds),
        "workflow, a look every second": lambda: by_workflow(arguments.seconds, poll=1),
        "workflow, profile slurm": lambda: by_workflow(arguments.seconds),
        "workflow, --detach": lambda: by_workflow(arguments.seconds, detach=True),
    }
    walls: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeat):
        for name, side in sides.items():
            walls[name].append(side() / len(CHAIN))
    hand = statistics.median(walls["by hand"])
    say(
        f"| {len(CHAIN)} stages of {arguments.seconds:g} s, median of {arguments.repeat} | s a stage | ratio | ratio at ten minutes a stage |"
    )
    say("|---|---|---|---|")
    for name, values in walls.items():
        each = statistics.median(values)
        long = (600 + each - arguments.seconds) / (600 + hand - arguments.seconds)
        say(f"| {name} | {each:.2f} | {each / hand:.2f} | {long:.4f} |")
    wall = many(arguments.many)
    say(f"\n{arguments.many} jobs that do nothing: {wall:.1f} s, {arguments.many / wall:.1f} jobs a second")
    say(f"one look at a job: {1e3 * seconds_a_check():.1f} ms")


if __name__ == "__main__":
    main()
