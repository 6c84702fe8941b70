"""Processes that train one network together, each on its own rows of every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from pipeline.errors import InputError


@dataclass(frozen=True)
class Processes:
    """The R processes of a training run as one of them sees them; one alone by default, which speaks to nobody.

    Attributes:
        rank: r, 0 to R - 1; process 0 writes the files.
        world: R.
        control: the group over which they agree on what to do, on the CPU.
    """

    rank: int = 0
    world: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def need_even(self, batch: int) -> None:
        """Raise InputError where a batch of so many rows cannot be shared out evenly."""
        if batch % self.world:
            raise InputError(
                f"train: a batch of {batch} rows cannot be shared evenly by {self.world} processes; change train.phases batch or train.devices"
            )

    def own(self, rows: Tensor, dim: int = 0) -> Tensor:
        """Rows r, r + R, r + 2R, ... of a batch."""
        if self.world == 1:
            return rows
        return rows[(slice(None),) * dim + (slice(self.rank, None, self.world),)]

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a number over processes, without gradient."""
        if self.world == 1:
            return value
        total = value.detach().double().clone()
        torch.distributed.all_reduce(total)
        return (total / self.world).to(value.dtype if value.is_floating_point() else torch.float64)

    def total(self, count: Tensor) -> Tensor:
        """The sum of a count over processes."""
        if self.world == 1:
            return count
        total = count.clone()
        torch.distributed.all_reduce(total)
        return total

    def gather(self, rows: Tensor) -> Tensor:
        """The whole batch, (N, ...), from the equally many own rows of all processes."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    def largest(self, number: int) -> int:
        """The largest of the numbers that the processes give."""
        if self.world == 1:
            return number
        value = torch.tensor(number)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX, group=self.control)
        return int(value)

    def sum(self, number: float) -> float:
        """The sum of the numbers that the processes give."""
        if self.world == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        torch.distributed.all_reduce(value, group=self.control)
        return float(value)

    def from_first(self, value: Any) -> Any:
        """What process 0 gives, for all; a plain value (numbers, text, lists and mappings of them)."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier(group=self.control)


ALONE = Processes()
