"""Ctrl-C and SIGTERM: stop at the next safe point, with everything done so far kept."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_received: list[int] = []
_handling: list[bool] = []


class Interrupted(Exception):
    """A signal asked to stop, and the state is saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _received and number == signal.SIGINT:
        raise KeyboardInterrupt  # the second Ctrl-C does not wait
    _received.append(number)


@contextmanager
def handle_signals() -> Iterator[None]:
    """Note SIGINT and SIGTERM instead of dying of them; `stop_if_asked` then stops."""
    previous = {s: signal.signal(s, _on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
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
