"""The progress bar, where there is a terminal and where there is none."""

from __future__ import annotations

import io
import os
import signal

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.interrupt import Interrupted, handle_signals


def on(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    """What the bar writes."""
    text = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=text, force_terminal=terminal, width=120, color_system=None))
    return text


def test_nothing_is_drawn_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = on(monkeypatch, terminal=False)
    with progress.progress_bar("train", 10) as advance:
        advance(10, note="ELBO -3")
    assert text.getvalue().strip() == ""


def test_a_bar_shows_what_is_done_and_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    text = on(monkeypatch, terminal=True)
    with progress.progress_bar("train", 10, completed=3) as advance:
        advance(4, note="ELBO -3.2")
        advance()
        advance(0, total=20)
    last = next(line for line in reversed(text.getvalue().splitlines()) if "train" in line)
    assert "8/20" in last
    assert "ELBO -3.2" in last
    assert "left" in last


def test_every_advance_is_a_safe_point_unless_it_is_not() -> None:
    with handle_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with progress.progress_bar("train", 10, safe=False) as advance:
            advance(1)
        with pytest.raises(Interrupted), progress.progress_bar("train", 10) as advance:
            advance(1)


def test_messages_go_to_the_error_stream_as_they_are() -> None:
    """Standard output is for results; a [bracket] in a message is no markup."""
    assert progress.console.stderr
    with progress.console.capture() as captured:
        progress.console.print("dvdt [m / (s d)]")
    assert captured.get() == "dvdt [m / (s d)]\n"


def test_a_bar_within_a_bar_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, terminal=True)
    with progress.progress_bar("infer", 3) as outer:
        display = progress._live[0]
        with progress.progress_bar("refine", 7) as inner:
            inner(5)
            assert [(t.description, t.completed) for t in display.tasks] == [("infer", 0), ("refine", 5)]
        outer(3)
        assert [(t.description, t.completed) for t in display.tasks] == [("infer", 3)]
    assert progress._live == []
