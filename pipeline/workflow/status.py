"""Where a run stands: stages that are done, jobs that wait or run, and what went wrong."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.stages.run import Run
from pipeline.workflow.jobs import Jobs
from pipeline.workflow.logs import last_attempt
from pipeline.workflow.plan import needs

QUIET_SECONDS = 30


@dataclass(frozen=True)
class Standing:
    """One stage, or one job of a stage that is not done.

    Attributes:
        state: done, running, waiting, failed, stopped or to do.
        note: why, or where to look.
    """

    name: str
    state: str
    note: str


def standings(run: Run, jobs: Jobs, queue: dict[str, tuple[str, str]]) -> list[Standing]:
    """All stages of a run in order; those that are not done by job, as far as jobs were ever started.

    Args:
        run: the run, whose stages are asked by content key.
        jobs: names and logs of its jobs.
        queue: id and state of the user's jobs, by name.
    """
    todo = {need.stage: need for need in needs(run, run.stages)}
    found: list[Standing] = []
    for stage in run.stages:
        if stage not in todo:
            found.append(Standing(stage, "done", str(run.output(stage))))
            continue
        parts = range(jobs.stages[stage].parts) if jobs.is_divided(stage) else ()
        found += [s for p in parts if (s := _of_job(jobs, stage, p, queue)) is not None]
        whole = _of_job(jobs, stage, None, queue)
        # a job that ended well, and an output that is not there: it is the job of other settings, or the file was deleted
        found.append(Standing(stage, "to do", todo[stage].why) if whole is None or whole.state == "done" else whole)
    return found


def _of_job(jobs: Jobs, stage: str, part: int | None, queue: dict[str, tuple[str, str]]) -> Standing | None:
    """What queue and log say of one job of a stage that is not done; None where it was never started."""
    name, log = jobs.step(stage, part), Path(jobs.log(stage, part))
    attempt = last_attempt(log)
    if jobs.name(stage, part) in queue:
        number, state = queue[jobs.name(stage, part)]
        running = "RUN" in state.upper() or state == "R"
        where = f", on {attempt.host} since {attempt.started}" if running and attempt and attempt.id == number else ""
        return Standing(name, "running" if running else "waiting", f"job {number}, {state}{where}")
    if attempt is None:
        return None
    if attempt.code == 0:
        return Standing(name, "done", f"job {attempt.id}")
    if attempt.code == 75:
        return Standing(name, "stopped", f"job {attempt.id} saved its state; the same `elboscope run` continues")
    ended = "was ended from outside" if attempt.code is None else f"exit code {attempt.code}"
    return Standing(name, "failed", f"job {attempt.id} {ended}: {attempt.line} [{log}]")


def read_queue(command: str) -> dict[str, tuple[str, str]]:
    """Id and state of the user's jobs by name, from a command that prints id, state and name in columns.

    A scheduler that does not answer gives none.
    """
    if not command:
        return {}
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True, timeout=QUIET_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.split() for line in done.stdout.splitlines()]
    return {row[-1]: (row[0], row[1]) for row in reversed(rows) if len(row) >= 3}
