"""What work cost: seconds by the clock and seconds of processors, of sessions that followed one another or ran side by side."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Span = tuple[float, float]
SPANS = "worked"
"""Name of the spans in a file's provenance."""


@dataclass(frozen=True)
class Cost:
    r"""Cost of one piece of work, or of several: a sum counts an hour in which two machines worked once in wall time.

    wall time = length of the union of all spans,   CPU time = sum over all processes

    Attributes:
        spans: when work went on, (start, end) in s since 1970; in order, none of them touching another.
        cpu_time_s: of all threads and of all child processes that have ended.
    """

    spans: tuple[Span, ...] = ()
    cpu_time_s: float = 0.0

    @property
    def wall_time_s(self) -> float:
        """Time during which something was at work."""
        return sum(end - start for start, end in self.spans)

    def __add__(self, other: Cost) -> Cost:
        merged: list[Span] = []
        for start, end in sorted((*self.spans, *other.spans)):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return Cost(tuple(merged), self.cpu_time_s + other.cpu_time_s)

    def __str__(self) -> str:
        return f"{self.wall_time_s:.1f} s, {self.cpu_time_s:.1f} s of CPU"

    def record(self) -> dict[str, Any]:
        """For a file's provenance."""
        times = {"wall_time_s": round(self.wall_time_s, 3), "cpu_time_s": round(self.cpu_time_s, 3)}
        return times | {SPANS: [list(span) for span in self.spans]}

    def text(self) -> str:
        """The provenance of a piece of an output."""
        return json.dumps(self.record())


def cost_from(provenance: str | None) -> Cost | None:
    """The cost in the provenance of a file, or of a piece of one; None where it was not measured."""
    record: Mapping[str, Any] = json.loads(provenance or "{}")
    if SPANS not in record:
        return None
    spans = tuple((float(start), float(end)) for start, end in record[SPANS])
    return Cost(spans, float(record["cpu_time_s"]))


def total_cost(costs: Iterable[Cost | None]) -> Cost:
    """Their sum; what was not measured counts nothing."""
    return sum((c for c in costs if c is not None), Cost())


class Meter:
    """Measures this process and the child processes that it has waited for, from when it is made."""

    def __init__(self) -> None:
        self._made = time.monotonic()
        self._time, self._cpu, self._children = _now(), time.process_time(), _children_s()

    @property
    def elapsed_s(self) -> float:
        """Wall time since the meter was made."""
        return time.monotonic() - self._made

    def took(self, whole: Cost | None) -> str:
        """Seconds of this session, and those of the whole stage where there were other sessions or jobs."""
        session = f"{self.elapsed_s:.1f} s"
        if whole is None or whole.wall_time_s < 1.1 * self.elapsed_s + 1:
            return session
        return f"{session}; the whole stage, with earlier sessions and other jobs: {whole}"

    def lap(self) -> Cost:
        """The cost since the meter was made or last read."""
        start, cpu, children = self._time, self._cpu, self._children
        self._time, self._cpu, self._children = _now(), time.process_time(), _children_s()
        # a clock that was set back must not give a negative time
        return Cost(((start, max(start, self._time)),), self._cpu - cpu + self._children - children)

    @contextmanager
    def others_count_themselves(self) -> Iterator[None]:
        """Child processes that end inside keep an account of their own: they are not counted here too."""
        before = _children_s()
        try:
            yield
        finally:
            self._children += _children_s() - before


def _now() -> float:
    """To the millisecond, so that laps that follow one another still touch when they were written as text."""
    return round(time.time(), 3)


def _children_s() -> float:
    """CPU time of child processes that have been waited for, user and system."""
    times = os.times()
    return times.children_user + times.children_system
