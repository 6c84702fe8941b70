"""One shard of simulations: a function of (seed, "simulate", index) and its number of rows, complete or absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.cost import Cost, Meter
from pipeline.errors import InputError
from pipeline.rng import generator
from pipeline.schema import CONTENT_KEY, STAGE
from pipeline.stages.run import Run
from pipeline.store import as_text, content_key, open_hdf5, read_cost, write_data, write_text
from simulators.failures import Failure, FailureCode
from simulators.priors import need_in_support, sample
from simulators.protocol import Data, simulate_with_reasons

VERSION = 3
FOLDER, COSTS = "simulations", "costs"
SHARD, FAILED_COUNT = "shard", "failed_count"
BATCH = 16_384


@dataclass(frozen=True)
class Shard:
    """Which one, and how many rows."""

    index: int
    rows: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"shard-{self.index:05d}.h5"


@dataclass(frozen=True)
class ShardReport:
    """What came of a shard.

    Attributes:
        shard: which one.
        failed: simulations of it that failed.
        first: the first of them, its reason and its theta in words; empty without one.
        cost: of making it.
    """

    shard: Shard
    failed: int
    first: str = ""
    cost: Cost = field(default=Cost(), compare=False)


@dataclass(frozen=True)
class Simulated:
    """Rows of a shard: theta (N, D), x, reason codes (N,) and the words that go with them by row."""

    theta: Tensor
    x: Data
    failed: Tensor
    reasons: dict[int, str]


def plan(sizes: Sequence[int], rows: int) -> tuple[Shard, ...]:
    """Shards of at most `rows` rows for sets that follow one another: each begins with a shard of its own.

    >>> [s.rows for s in plan((7, 3), 3)]
    [3, 3, 1, 3]
    """
    counts = [min(rows, size - start) for size in sizes for start in range(0, size, rows)]
    return tuple(Shard(i, count) for i, count in enumerate(counts))


def shard_key(run: Run) -> str:
    """What all shards of a run have in common; index and rows say the rest. It does not depend on how many there are."""
    settings = run.relevant("seed", "simulator", "simulate")
    settings["simulate"] = {k: settings["simulate"][k] for k in ("proposal", "batch", "signal")}
    return content_key("simulate-shard", VERSION, settings, {})


def shard_report(path: Path, shard: Shard, key: str) -> ShardReport | None:
    """What is in a shard's file; None where it is missing, unreadable, or not that shard."""
    try:
        with open_hdf5(path) as file:
            own = (as_text(file.attrs.get(CONTENT_KEY)), file.attrs.get(SHARD), len(file["theta"]))  # pyright: ignore[reportArgumentType]
            failed = int(np.asarray(file.attrs.get(FAILED_COUNT, -1)))
    except (InputError, OSError, KeyError, TypeError, RuntimeError):
        return None
    return (
        ShardReport(shard, failed, cost=_cost_of(path))
        if own == (key, shard.index, shard.rows) and failed >= 0
        else None
    )


def make_shard(
    run: Run, shard: Shard, key: str, *, advance: Callable[[int], None], meter: Meter | None = None
) -> ShardReport:
    """Simulate and write one shard; `advance` is told of rows, and may raise to stop; its cost is a lap of `meter`.

    Raises:
        InputError: the simulator gives shapes that it has not declared, or the file cannot be written.
    """
    meter = meter or Meter()
    rows = simulate_rows(run, shard, advance=advance)
    # from here on the old file over the shards, if there is one, would show rows of two settings
    run.output("simulate").unlink(missing_ok=True)
    failed = int((rows.failed != 0).sum())
    cost = meter.lap()
    write_data(
        run.folder / FOLDER / shard.name,
        observables=run.stored_simulator.observables,
        parameters=run.simulator.parameters,
        x=rows.x,
        theta=rows.theta,
        failed=rows.failed,
        failures=rows.reasons,
        compression=run.case.simulate.compression,
        checked=True,
        attributes={
            STAGE: "simulate",
            CONTENT_KEY: key,
            SHARD: shard.index,
            FAILED_COUNT: failed,
        },
    )
    # beside the file and not in it: equal shards are equal bytes
    write_text(_cost_path(run.folder / FOLDER / shard.name), cost.text())
    if not failed:
        return ShardReport(shard, 0, cost=cost)
    row = int((rows.failed != 0).nonzero()[0, 0])
    return ShardReport(shard, failed, f"{rows.reasons[row]}, at theta = ({numbers(rows.theta[row])})", cost)


def _cost_path(shard: Path) -> Path:
    return shard.parents[1] / COSTS / f"{shard.stem}.json"


def _cost_of(shard: Path) -> Cost:
    """What a shard has cost; nothing where that was not written down."""
    return read_cost(_cost_path(shard)) or Cost()


def simulate_rows(run: Run, shard: Shard, *, advance: Callable[[int], None]) -> Simulated:
    """Draw theta from the proposal and x from the simulator, `simulate.batch` rows at once.

    Everything comes from one stream of (seed, "simulate", index): first theta of all rows, then x batch by batch.
    """
    stream = generator(run.case.seed, "simulate", shard.index, device=run.device)
    theta = sample(run.proposal, shard.rows, stream)
    need_in_support(run.prior, theta.cpu(), "simulate.proposal")
    simulator = run.stored_simulator
    batch = run.case.simulate.batch or getattr(simulator, "batch", BATCH)
    parts: list[Data] = []
    failed = torch.zeros(shard.rows, dtype=torch.uint8)
    reasons: dict[int, str] = {}
    for start in range(0, shard.rows, batch):
        some = theta[start : start + batch]
        x, failures = simulate_with_reasons(simulator, some, generator=stream)
        failures = failures | not_finite(x, known=failures)
        for row, failure in failures.items():
            failed[start + row], reasons[start + row] = failure.code, failure.reason
        parts.append(_without(x, sorted(failures)) if failures else x)
        advance(len(some))
    x = parts[0] if len(parts) == 1 else {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    return Simulated(theta, x, failed, dict(sorted(reasons.items())))


def not_finite(x: Data, *, known: dict[int, Failure]) -> dict[int, Failure]:
    """Rows with NaN or infinite data, but those whose reason is known."""
    found: dict[int, Failure] = {}
    for name, values in x.items():
        if bool(values.sum(dtype=torch.float64).isfinite()):  # one pass instead of three where all is well
            continue
        for row in (~values.isfinite().reshape(len(values), -1).all(1)).nonzero()[:, 0].tolist():
            if row not in known:
                found.setdefault(row, Failure(FailureCode.NOT_FINITE, f"{name} is NaN or infinite"))
    return found


def _without(x: Data, rows: list[int]) -> Data:
    """A copy with NaN in some rows: what a simulator gives may share memory between rows."""
    return {k: v.double().index_fill(0, torch.tensor(rows, device=v.device), torch.nan) for k, v in x.items()}


def numbers(values: Tensor) -> str:
    """Theta in a message."""
    return ", ".join(f"{v:.6g}" for v in values.tolist())


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch and of NumPy's libraries: the same bits on 1 or 16 workers, which are what uses the cores."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
