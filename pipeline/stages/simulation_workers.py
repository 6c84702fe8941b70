"""Shards on several processes of one machine: a worker that dies is replaced, and its shard made again."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

from pipeline.errors import InputError
from pipeline.interrupt import stop_if_asked
from pipeline.own_process import own_command, own_sources
from pipeline.progress import Advance, console
from pipeline.stages.run import Run
from pipeline.stages.shard import FOLDER, Shard, ShardReport

MOST_DEATHS = 3
"""Workers that one shard may cost."""
END_S = 3.0
"""That a worker has for taking its half file and its program with it."""
WAIT_S = 0.2
"""Between two looks at whether a signal has come."""
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB")}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(eq=False)
class _Worker:
    """One process, the shard that it is at, and how many rows of it are made."""

    process: subprocess.Popen[bytes]
    shard: Shard | None = None
    rows: int = 0
    unread: bytes = b""

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def give(self, value: Any) -> None:
        """Hand over one JSON value; a worker that is dead is noticed where its answers end."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(value).encode() + b"\n")
            self.process.stdin.flush()

    def end(self) -> None:
        """Reap a process that has ended, or is about to."""
        assert self.process.stdin is not None
        self.process.wait()
        self.output.close()
        with suppress(BrokenPipeError):
            self.process.stdin.close()


@dataclass
class _Work:
    """What is left to do, and which workers have died of what."""

    run: Run
    key: str
    waiting: deque[Shard]
    deaths: Counter[int] = field(default_factory=Counter)

    def start(self) -> _Worker:
        """A process with its first shard."""
        worker = _Worker(
            subprocess.Popen(
                own_command("pipeline.stages.simulation_worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | ONE_THREAD | own_sources(),
                process_group=0,  # Ctrl-C reaches this process alone
            )
        )
        worker.give({"case": self.run.case.dump(), "folder": str(self.run.folder.resolve()), "key": self.key})
        self.give_next(worker)
        return worker

    def give_next(self, worker: _Worker) -> None:
        """The next shard; none left closes its input, and it ends."""
        worker.shard, worker.rows = (self.waiting.popleft() if self.waiting else None), 0
        if worker.shard is not None:
            worker.give({"index": worker.shard.index, "rows": worker.shard.rows})
        elif worker.process.stdin is not None:
            with suppress(BrokenPipeError):
                worker.process.stdin.close()

    def died(self, worker: _Worker) -> None:
        """Put its shard back.

        Raises:
            InputError: the same shard has cost too many workers.
        """
        assert worker.shard is not None
        code = worker.process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.deaths[worker.shard.index] += 1
        if self.deaths[worker.shard.index] >= MOST_DEATHS:
            raise InputError(
                f"{self.run.folder / FOLDER / worker.shard.name}: {MOST_DEATHS} workers in turn died of it, the last {how}: "
                "where memory ran out, take fewer --workers or a smaller simulate.batch or simulate.shard"
            )
        console.print(f"simulate: the worker of shard {worker.shard.index} died ({how}); the shard is made again")
        self.waiting.appendleft(worker.shard)


def make_in_workers(
    run: Run,
    shards: Sequence[Shard],
    key: str,
    *,
    workers: int,
    advance: Advance,
    done: Callable[[ShardReport], None],
) -> None:
    """Make shards on `workers` processes; `done` hears of each, in the order in which they come.

    Raises:
        InputError: what a worker has found wrong, or a shard that costs every worker its life.
        Interrupted: a signal has come; shards that were not complete are not there.
    """
    work = _Work(run, key, deque(shards))
    with _started(work, min(workers, len(shards))) as (selector, alive):
        while alive:
            for event, _ in selector.select(WAIT_S):
                worker = event.data
                chunk = os.read(worker.output.fileno(), 1 << 16)
                for answer in _answers(worker, chunk):
                    _hear(work, worker, answer, advance, done)
                if chunk:
                    continue
                selector.unregister(worker.output)
                alive.remove(worker)
                worker.end()
                if worker.shard is not None:
                    advance(-worker.rows)
                    work.died(worker)
                    _add(work, selector, alive)
            stop_if_asked()


@contextmanager
def _started(work: _Work, count: int) -> Iterator[tuple[selectors.BaseSelector, list[_Worker]]]:
    """Workers at work; whatever happens, none of them outlives the block, and no half file stays."""
    alive: list[_Worker] = []
    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(count):
                _add(work, selector, alive)
            yield selector, alive
        finally:
            for worker in alive:
                worker.process.terminate()
            for worker in alive:
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(END_S)
                worker.process.kill()
                worker.end()


def _add(work: _Work, selector: selectors.BaseSelector, alive: list[_Worker]) -> None:
    worker = work.start()
    alive.append(worker)
    selector.register(worker.output, selectors.EVENT_READ, worker)


def _answers(worker: _Worker, chunk: bytes) -> Iterator[dict[str, Any]]:
    *lines, worker.unread = (worker.unread + chunk).split(b"\n")
    for line in lines:
        yield json.loads(line)


def _hear(
    work: _Work, worker: _Worker, answer: dict[str, Any], advance: Advance, done: Callable[[ShardReport], None]
) -> None:
    if "rows" in answer:
        worker.rows += answer["rows"]
        advance(answer["rows"])
    elif "failed" in answer:
        assert worker.shard is not None
        report = ShardReport(worker.shard, answer["failed"], answer["first"])
        work.give_next(worker)
        done(report)
    elif answer["error"] is not None:
        raise InputError(answer["error"])
    else:
        raise RuntimeError(f"a simulation worker failed:\n{answer['trace']}")
