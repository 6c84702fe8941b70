r"""Training from simulations that are larger than memory: chunks in random order, mixed in a window, read ahead.

The rows of the file are cut into blocks (some HDF5 chunks each, of one shard). In every epoch the blocks are shuffled, and
shared out among windows of W blocks; the rows of a window are shuffled among themselves. Each row comes once an epoch.
Two rows of one block come within the same 1 / (number of windows) of an epoch, and two neighbours in the file are as
likely to share a batch as any two rows of a window: rows of simulations are independent, so that this order differs
from a perfect one by nothing but the W blocks that an epoch's batch is drawn from.

The rows of a window are a function of (seed, stage, number of the window), so a batch is one of (seed, stage, step), and
training stopped in the middle of an epoch goes on with the very next batch. While one window is trained on, a thread
reads the next one, computes its features and pilot, and puts every row where it will be taken from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.rng import generator
from pipeline.training.data import HEAD_ROWS, Batches, TrainingSet, in_epochs, joined
from pipeline.training.processes import ALONE, Processes
from pipeline.training.rows import SimulationRows

BLOCK_BYTES = 4 << 20
"""Of the file that are read at once: large enough for a disk or a parallel file system."""
LEAST_BLOCKS = 32
"""Blocks of a window at least, up to rounding to whole chunks."""
CPU = torch.device("cpu")
READING = 6
"""Blocks' worth of memory that reading one takes: as stored, in the units and dtype asked for, checked, with features."""
SPARE_BYTES = 32 << 20
"""For batches and what allocators keep, at most; an eighth of a memory that is smaller than eight times that."""
BOOKKEEPING = 24
"""Bytes a row of a window for its number and its place."""


@dataclass(frozen=True)
class Plan:
    """How the simulations from `start` on are read; part of the content of what is trained on them.

    Attributes:
        start, stop: rows of the file.
        block_rows: rows that are read at once.
        window_blocks: blocks that are mixed.
        head_rows: first rows that stay in memory.
    """

    start: int
    stop: int
    block_rows: int
    window_blocks: int
    head_rows: int


def plan_of(rows: SimulationRows, start: int, *, row_bytes: int, memory_gb: float, batch: int) -> Plan:
    """Two windows, one that is trained on and one that is read, the head, and what reading a block takes fit into the memory given.

    Args:
        rows: of the file; those from `start` on are for training.
        row_bytes: of a simulation in memory.
        memory_gb: for all three.
        batch: the largest one.

    Raises:
        InputError: too little memory for a window of four batches and LEAST_BLOCKS rows.
    """
    head = int(min(HEAD_ROWS, rows.total - start, memory_gb * 1e9 / 8 / row_bytes))
    left = memory_gb * 1e9 - head * row_bytes - min(SPARE_BYTES, memory_gb * 1e9 / 8)
    window = int(left / (2 + READING / LEAST_BLOCKS) / (row_bytes + BOOKKEEPING))
    least = max(4 * batch, LEAST_BLOCKS)
    if window < least:
        raise InputError(
            f"train.memory_gb: {memory_gb:g} GB holds two windows of {window} simulations, at least {least} are needed; raise it to {3 * least * row_bytes / 1e9:.2g}"
        )
    block = max(1, min(BLOCK_BYTES // rows.file_row_bytes, window // LEAST_BLOCKS))
    if 2 * block > rows.chunk_rows:
        block = max(1, round(block / rows.chunk_rows)) * rows.chunk_rows
    return Plan(start, rows.total, block, window // block, max(head, 1))


class StreamedSet:
    """Stored simulations that do not fit into memory.

    Args:
        rows: of the file.
        plan: how they are read.
        device: of training.
        prepare: done to all rows that batches are cut from.
    """

    def __init__(
        self,
        rows: SimulationRows,
        plan: Plan,
        *,
        device: torch.device,
        prepare: Callable[[TrainingSet], TrainingSet] = lambda rows: rows,
    ) -> None:
        self.rows, self.plan, self.device, self.prepare = rows, plan, device, prepare

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """Rows of the file of each block, first and last + 1, within one shard; none in which all simulations failed."""
        size, blocks = self.plan.block_rows, []
        for piece in self.rows.pieces_between(self.plan.start, self.plan.stop):
            for first in range(piece.start, piece.stop, size):
                start, stop = max(first, self.plan.start), min(first + size, piece.stop)
                if start < stop and self.rows.usable(start, stop):
                    blocks.append((start, stop))
        return blocks

    @cached_property
    def counts(self) -> np.ndarray:
        """Usable rows of each block."""
        return np.array([self.rows.usable(*b) for b in self.blocks])

    def __len__(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def head(self) -> TrainingSet:
        """The first rows, on the training device."""
        stop = min(self.plan.start + self.plan.head_rows, self.plan.stop)
        return self.rows.read(self.plan.start, stop, device=self.device)

    def true_theta(self) -> Tensor:
        """Theta of every simulation, (N, D), in memory."""
        return torch.cat([self.rows.true_theta(*b) for b in self.blocks]).to(self.device)

    def batches(
        self, batch: int, *, seed: int, stage: str, processes: Processes = ALONE, with_x: bool = True
    ) -> Batches:
        """Batches in the order of the stream."""
        return StreamedBatches(self, batch, seed=seed, stage=stage, processes=processes, with_x=with_x)


@dataclass(frozen=True)
class _Epoch:
    """Blocks of each window, and the place in the epoch at which each window starts, with the length of the epoch last."""

    windows: Sequence[np.ndarray]
    starts: np.ndarray


@dataclass(frozen=True)
class _Window:
    """Own rows of a window in the order in which they are trained on, and the place of its first row in the stream."""

    rows: TrainingSet
    numbers: Tensor
    start: int


class StreamedBatches:
    """Batches cut from an endless sequence of epochs, as `StoredBatches` has them, in the order of the stream.

    Of several processes each keeps and prepares its own rows alone; each reads the whole file.
    """

    def __init__(
        self, source: StreamedSet, batch: int, *, seed: int, stage: str, processes: Processes, with_x: bool = True
    ) -> None:
        self.source, self.batch, self.count = source, batch, len(source)
        self.seed, self.stage, self.processes, self.with_x = seed, stage, processes, with_x
        self.first_numbers = np.concatenate([[0], np.cumsum(source.counts)[:-1]])
        self.windows_per_epoch = -(-len(source.blocks) // source.plan.window_blocks)
        self._epochs: dict[int, _Epoch] = {}
        self._wanted: frozenset[int] = frozenset()
        self._reading: dict[int, Future[_Window]] = {}
        self._buffers: list[tuple[TrainingSet, Tensor]] = []
        self._in_use: dict[int, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="simulations")

    def __getitem__(self, step: int) -> TrainingSet:
        start, parts = step * self.batch, list[TrainingSet]()
        for epoch, first, last in in_epochs(start, start + self.batch, self.count):
            starts = self._epoch(epoch).starts
            for w in range(np.searchsorted(starts, first, "right") - 1, np.searchsorted(starts, last, "left")):
                a = epoch * self.count + max(first, int(starts[w]))
                b = epoch * self.count + min(last, int(starts[w + 1]))
                window = self._window(epoch * self.windows_per_epoch + int(w))
                own = slice(*(self._own_before(p) - self._own_before(window.start) for p in (a, b)))
                # copies: with the next window the thread begins to write the one after it over this one
                parts.append(replace(window.rows.rows(own).each(torch.clone), numbers=window.numbers[own].clone()))
        return joined(parts).to(self.source.device)

    def _own_before(self, place: int) -> int:
        """How many of the first `place` rows of the stream are this process's own."""
        return (place - self.processes.rank + self.processes.world - 1) // self.processes.world

    def close(self) -> None:
        """Stop reading."""
        self._wanted = frozenset()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._buffers, self._reading = [], {}
        self.source.rows.close()

    # ------------------------------------------------------------ order

    def _epoch(self, epoch: int) -> _Epoch:
        """Order of an epoch; two are kept, for the batch that lies in both and for reading ahead."""
        if epoch not in self._epochs:
            stream = generator(self.seed, f"{self.stage}-blocks", epoch)
            order = torch.randperm(len(self.source.blocks), generator=stream).numpy()
            # read in the order of the file within a window: one shard after the other, and rows are shuffled anyway
            windows = [np.sort(w) for w in np.array_split(order, self.windows_per_epoch)]
            starts = np.concatenate([[0], np.cumsum([self.source.counts[w].sum() for w in windows])])
            self._epochs = {e: v for e, v in self._epochs.items() if abs(e - epoch) == 1} | {
                epoch: _Epoch(windows, starts)
            }
        return self._epochs[epoch]

    # ------------------------------------------------------------ reading ahead

    def _window(self, number: int) -> _Window:
        """A window, read already or read now; the one after it is read next."""
        if self._wanted != {number, number + 1}:
            self._wanted = frozenset((number, number + 1))
            for old in set(self._reading) - self._wanted:
                future = self._reading.pop(old)
                if not future.cancel():
                    future.exception()  # until the thread has let go of its buffer
                self._in_use.pop(old, None)
            for new in sorted(self._wanted - set(self._reading)):
                self._in_use[new] = next(i for i in (0, 1) if i not in self._in_use.values())
                epoch = self._epoch(new // self.windows_per_epoch)
                self._reading[new] = self._thread.submit(self._read, new, self._in_use[new], epoch)
        return self._reading[number].result()

    def _read(self, number: int, buffer: int, epoch: _Epoch) -> _Window:
        """Fill a buffer with the own rows of a window, each at its place in the order."""
        source, processes = self.source, self.processes
        position = number % self.windows_per_epoch
        start = number // self.windows_per_epoch * self.count + int(epoch.starts[position])
        blocks = epoch.windows[position]
        count = int(source.counts[blocks].sum())
        order = torch.randperm(count, generator=generator(self.seed, f"{self.stage}-window", number))
        own = order[(processes.rank - start) % processes.world :: processes.world]
        place = torch.full((count,), -1)
        place[own] = torch.arange(len(own))
        at = 0
        for block in blocks:
            if number not in self._wanted:
                raise _NotWanted
            here = place[at : at + source.counts[block]]
            at += len(here)
            mine = here >= 0
            if not bool(mine.any()):
                continue
            own_only = None if processes.world == 1 else mine
            rows = source.prepare(source.rows.read(*source.blocks[block], own=own_only, device=source.device)).to(CPU)
            rows = rows if self.with_x else rows.without_x()
            stored, numbers = self._buffer(buffer, rows)
            stored.put(here[mine], rows)
            numbers[here[mine]] = int(self.first_numbers[block]) + mine.nonzero()[:, 0]
        stored, numbers = self._buffers[buffer]
        return _Window(stored, numbers, start)

    def _buffer(self, index: int, like: TrainingSet) -> tuple[TrainingSet, Tensor]:
        """One of two, of the size of the largest window that may come."""
        while len(self._buffers) <= index:
            blocks = -(-len(self.source.blocks) // self.windows_per_epoch)
            most = int(np.sort(self.source.counts)[-blocks:].sum())
            most = -(-most // self.processes.world)
            self._buffers.append((like.empty(most), torch.empty(most, dtype=torch.long)))
        return self._buffers[index]


class _NotWanted(Exception):
    """A window that nobody waits for any more."""
