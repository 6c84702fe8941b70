"""Cost of work: nothing twice, nothing left out."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pipeline.cost import Cost, Meter, cost_from, total_cost

BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def test_sessions_that_follow_add_up_and_those_side_by_side_count_once_in_wall_time() -> None:
    first, second = Cost(((10.0, 20.0),), 9.0), Cost(((100.0, 105.0),), 4.0)
    beside = Cost(((15.0, 25.0),), 8.0)
    assert (first + second).wall_time_s == 15.0
    assert (first + beside).spans == ((10.0, 25.0),)
    all_three = total_cost([first, None, beside, second])
    assert (all_three.wall_time_s, all_three.cpu_time_s) == (20.0, 21.0)
    assert all_three == second + beside + first


def test_a_cost_comes_back_from_provenance() -> None:
    cost = Cost(((1.5, 2.25), (3.0, 4.0)), 2.5)
    assert cost_from(cost.text()) == cost
    assert cost_from(None) is None
    assert cost_from('{"wall_time_s": 3.0}') is None  # of an earlier version: not measured, and not nothing


def test_laps_follow_one_another() -> None:
    meter = Meter()
    laps = [meter.lap() for _ in range(3)]
    assert len(total_cost(laps).spans) == 1


def test_child_processes_count_unless_they_count_themselves() -> None:
    meter = Meter()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    lap = meter.lap()
    assert lap.cpu_time_s >= 0.3 - 0.02  # a clock tick of the kernel's each for user and system
    assert lap.wall_time_s >= 0.3 - 0.02
    with meter.others_count_themselves():
        subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert meter.lap().cpu_time_s < 0.2


def test_a_clock_that_is_set_back_gives_no_negative_time(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert meter.lap().wall_time_s == 0.0
