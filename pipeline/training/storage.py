"""Where the stored simulations are while training: on the training device, in memory, or in the file, chosen by size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.errors import InputError
from pipeline.training.data import HostSet, TrainingSet
from pipeline.training.rows import SimulationRows
from pipeline.training.stream import Plan, StreamedSet, plan_of

DEVICE_SHARE = 0.5
"""Of a GPU's memory that simulations may take; the rest is for the network, its gradients and a batch."""
BLOCK_ROWS, BLOCK_BYTES = 32_768, 256 << 20
"""Of the file that are loaded at once, at most."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Storage:
    """The choice.

    Attributes:
        where: the content of a training run depends on whether this is `file`, and then on the plan.
        count: simulations that did not fail.
        gigabytes: of all of them with features and pilot, 1e9 bytes.
        plan: how they are read from the file.
    """

    where: Literal["device", "memory", "file"]
    count: int
    gigabytes: float
    plan: Plan | None

    def __str__(self) -> str:
        size = f"{self.count:,} simulations, {self.gigabytes:.3g} GB"
        if self.plan is None:
            return f"{size}, {'in memory' if self.where == 'memory' else 'on the training device'}"
        p = self.plan
        return f"{size}, more than train.memory_gb: read from the file in blocks of {p.block_rows}, {p.window_blocks} of them mixed"


def storage_of(rows: SimulationRows, start: int, *, memory_gb: float, batch: int, device: torch.device) -> Storage:
    """Simulations from row `start` on: in memory up to `memory_gb`, and on a GPU up to half of it.

    Args:
        batch: the largest one.

    Raises:
        InputError: no simulation that did not fail, or too little memory to read them from the file.
    """
    count = rows.usable(start, rows.total)
    if count == 0:
        raise InputError(f"{rows.path}: none of its {rows.total - start} simulations for training can be used")
    first = next(i for i in range(start, rows.total) if not rows.failed[i])
    row_bytes = rows.read(first, first + 1, device=device).row_bytes
    size = count * row_bytes / 1e9
    if size > memory_gb:
        plan = plan_of(rows, start, row_bytes=row_bytes, memory_gb=memory_gb, batch=batch)
        return Storage("file", count, size, plan)
    if device.type == "cpu":
        return Storage("memory", count, size, None)
    room = DEVICE_SHARE * torch.cuda.get_device_properties(device).total_memory / 1e9
    return Storage("device" if size <= room else "memory", count, size, None)


def stored_simulations(
    rows: SimulationRows, start: int, storage: Storage, *, device: torch.device
) -> TrainingSet | HostSet | StreamedSet:
    """The simulations from row `start` on, where `storage` says."""
    if storage.plan is not None:
        return StreamedSet(rows, storage.plan, device=device)
    keep_on = CPU if storage.where == "memory" else device
    loaded = load(rows, start, rows.total, device=device, keep_on=keep_on)
    return loaded if keep_on.type == device.type else HostSet(loaded, device)


def load(
    rows: SimulationRows, start: int, stop: int, *, device: torch.device, keep_on: torch.device | None = None
) -> TrainingSet:
    """The usable ones of rows start to stop - 1, at the cost of one block beyond their own size.

    Args:
        device: where features are computed.
        keep_on: where the simulations stay; default: there.

    Raises:
        InputError: there is none.
    """
    count, at, loaded = rows.usable(start, stop), 0, None
    if count == 0:
        raise InputError(f"{rows.path}: none of rows {start} to {stop - 1} can be used: all simulations failed")
    block = max(1, min(BLOCK_ROWS, BLOCK_BYTES // rows.file_row_bytes))
    for first in range(start, stop, block):
        last = min(first + block, stop)
        if rows.usable(first, last) == 0:
            continue
        part = rows.read(first, last, device=device).to(keep_on or device)
        if len(part) == count:
            return part
        loaded = loaded or part.empty(count)
        loaded.put(slice(at, at + len(part)), part)
        at += len(part)
    assert loaded is not None
    return loaded
