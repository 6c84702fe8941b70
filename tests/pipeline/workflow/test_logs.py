"""The last attempt in a log, and the line that matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.workflow.logs import last_attempt, last_word

STARTS = "elboscope: job x-1 (12) on n1, 2026-01-01T00:00:00Z: starts\n"
ENDS = "elboscope: job x-1 (12) on n1, 2026-01-01T00:01:00Z: ended with exit code {}\n"


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        (STARTS + "train: done\n" + ENDS.format(0), 0, "train: done"),
        (STARTS + "error: no file\nbye\n" + ENDS.format(2), 2, "error: no file"),
        (STARTS + "Traceback (most recent call last):\n  x\nRuntimeError: bad\n" + ENDS.format(1), 1, "RuntimeError: bad"),
        (STARTS + "at work\nslurmstepd: error: *** JOB 12 CANCELLED DUE TO TIME LIMIT ***\n", None, "slurmstepd: error: *** JOB 12 CANCELLED DUE TO TIME LIMIT ***"),
        (STARTS + "error: earlier\n" + ENDS.format(1) + STARTS, None, ""),
    ],
)  # fmt: skip
def test_last_attempt(tmp_path: Path, text: str, code: int | None, line: str) -> None:
    (tmp_path / "log").write_text("x" * 30_000 + "\n" + text)
    attempt = last_attempt(tmp_path / "log")
    assert attempt is not None
    assert (attempt.id, attempt.host, attempt.code, attempt.line) == ("12", "n1", code, line)


def test_no_log(tmp_path: Path) -> None:
    assert last_attempt(tmp_path / "log") is None
    assert "left no message" in last_word(tmp_path / "log")
