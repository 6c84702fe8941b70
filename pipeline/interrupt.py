"""Ctrl-C, SIGTERM and SIGUSR1: stop at the next safe point, with everything done so far kept."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
RUN_AGAIN = 75
"""Exit code after SIGUSR1, by which a scheduler says that the time limit is near: EX_TEMPFAIL, run it again."""

_received: list[int] = []
_handling: list[bool] = []


class Interrupted(Exception):
    """A signal asked to stop, and the state is saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = RUN_AGAIN if signal_number == signal.SIGUSR1 else 128 + signal_number


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _received and number == signal.SIGINT:
        raise KeyboardInterrupt  # the second Ctrl-C does not wait
    _received.append(number)


@contextmanager
def handle_signals() -> Iterator[None]:
    """Note SIGINT, SIGTERM and SIGUSR1 instead of dying of them; `stop_if_asked` then stops."""
    previous = {s: signal.signal(s, _on_signal) for s in SIGNALS}
    _received.clear()
    _handling.append(True)
    try:
        yield
    finally:
        _handling.pop()
        for number, handler in previous.items():
            signal.signal(number, handler)
        _received.clear()  # what comes next in this process was not asked to stop


def handle_sigterm_again() -> None:
    """Take SIGTERM back from a library that has put its own handler in front of ours; nothing outside `handle_signals`.

    Lightning's turns a SIGTERM that comes between two steps into SystemExit without a code: exit 0, as if all were done.
    It leaves SIGUSR1 alone where a handler is there already (under Slurm it would requeue the job by itself).
    """
    if _handling:
        signal.signal(signal.SIGTERM, _on_signal)


def asked_to_stop() -> bool:
    """Whether a signal has come."""
    return bool(_received)


def stop_if_asked() -> None:
    """Raise Interrupted if a signal has come. Called where stopping loses nothing."""
    if _received:
        raise Interrupted(_received[0])
