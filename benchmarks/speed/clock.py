"""One measurement, and how it is made: the sides take turns in one run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline.settings import FlowSettings

SETTINGS = FlowSettings(kind="coupling", transforms=4, hidden=64, blocks=2, bins=8)
BATCH = 256
LEAST_SECONDS = 0.1
"""Of one timing: calls are repeated until they fill it."""
CPU = torch.device("cpu")

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; sizes that play no part are None, and so is `theirs` where there is nothing to compare with."""

    part: str
    what: str
    against: str = ""
    dimension: int
    observations: int
    draws: int | None = None
    hidden: int | None = None
    x_numbers: int | None = None
    our_parameters: int | None = None
    their_parameters: int | None = None
    ours: float
    theirs: float | None = None
    ratio: float | None = None
    unit: str
    repeat: int
    machine: str = f"{os.cpu_count()} cores {platform.machine()}"
    torch: str = torch.__version__
    date: str = time.strftime("%Y-%m-%d")


def device_clock() -> float:
    """Wall seconds once the GPU has done what it was asked for."""
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Call, count: int, clock: Callable[[], float]) -> float:
    """Mean of `count` calls."""
    started = clock()
    for _ in range(count):
        call()
    return (clock() - started) / count


def take_turns(
    calls: Sequence[Call], repeat: int, clock: Callable[[], float] = time.process_time
) -> list[tuple[float, ...]]:
    """Seconds of each call, (calls, repeat): within a round one after the other, so that all meet the same machine."""
    for call in calls:
        call()  # the first one allocates
    counts = [max(1, round(LEAST_SECONDS / max(seconds(call, 1, clock), 1e-6))) for call in calls]
    rounds = [[seconds(call, n, clock) for call, n in zip(calls, counts, strict=True)] for _ in range(repeat)]
    return list(zip(*rounds, strict=True))


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds."""
    return digits(statistics.median(a / b for a, b in zip(above, below, strict=True)))


def digits(value: float) -> float:
    """Four significant ones."""
    return float(f"{value:.4g}")
