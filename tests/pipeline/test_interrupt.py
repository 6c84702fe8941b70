"""Signals are noted, and stop the run where it is safe."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from pipeline.interrupt import SIGNALS, Interrupted, asked_to_stop, handle_signals, stop_if_asked


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = [signal.getsignal(s) for s in SIGNALS]
    yield
    assert [signal.getsignal(s) for s in SIGNALS] == before
    assert not asked_to_stop()


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
def test_a_signal_is_noted_and_stops_at_the_next_safe_point(number: signal.Signals, exit_code: int) -> None:
    with handle_signals():
        stop_if_asked()
        assert not asked_to_stop()
        send(number)
        assert asked_to_stop()
        with pytest.raises(Interrupted, match=number.name) as stopped:
            stop_if_asked()
    assert stopped.value.exit_code == exit_code


def test_the_second_ctrl_c_does_not_wait() -> None:
    with handle_signals():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_sigterm_is_patient_however_often_it_comes() -> None:
    with handle_signals():
        for _ in range(3):
            send(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop_if_asked()


def test_ctrl_c_after_sigterm_stops_at_once() -> None:
    with handle_signals():
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_handlers_come_back_whatever_happens() -> None:
    def stopped() -> None:
        with handle_signals():
            send(signal.SIGTERM)
            stop_if_asked()

    with pytest.raises(Interrupted):
        stopped()
    stop_if_asked()  # the next run starts afresh, even in the same process
