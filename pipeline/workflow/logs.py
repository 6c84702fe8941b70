"""What the logs of jobs say: whether the last attempt has ended and how, and the line that tells why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 20_000
TOLD = re.compile(r"^elboscope: job \S+ \((?P<id>[^)]*)\) on (?P<host>\S+), (?P<when>\S+): (?P<what>.*)$")
ENDED = re.compile(r"ended with exit code (\d+)")
MATTERS = re.compile(
    r"^(error: |slurmstepd: error: |\w*(Error|Exception)\b|Killed|=>> PBS|TERM_|stopped (by|at) |srun: error)"
)


@dataclass(frozen=True)
class Attempt:
    """The last attempt of a job, as its log tells it.

    Attributes:
        id: the scheduler's.
        code: exit code; None where it has not ended, or was ended from outside.
        line: the line that matters most, or the last.
    """

    id: str
    host: str
    started: str
    code: int | None
    line: str


def last_attempt(log: Path) -> Attempt | None:
    """The last attempt in a log; None where there is none."""
    lines = _tail(log)
    starts = [i for i, line in enumerate(lines) if (told := TOLD.match(line)) and told["what"] == "starts"]
    if not starts:
        return None
    told = TOLD.match(lines[starts[-1]])
    assert told is not None
    rest = lines[starts[-1] + 1 :]
    codes = [int(m[1]) for line in rest if TOLD.match(line) and (m := ENDED.search(line))]
    return Attempt(told["id"], told["host"], told["when"], codes[-1] if codes else None, _line_that_matters(rest))


def last_word(log: Path) -> str:
    """Why a job failed, in one line, with the log's path."""
    lines = _tail(log)
    return f"{_line_that_matters(lines) or 'it left no message'} [{log}]"


def _line_that_matters(lines: list[str]) -> str:
    """The last line that looks like a reason; else the last that the command wrote."""
    written = [line.strip() for line in lines if line.strip() and not line.startswith("elboscope: job ")]
    reasons = [line for line in written if MATTERS.match(line)]
    return (reasons or written or [""])[-1][:300]


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
