"""What became of the phases of a schedule, in figures and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.cost import Cost
from pipeline.training.guard import gap_beside_ess, plain


@dataclass(frozen=True)
class PhaseOutcome:
    """What one phase did, and whether the guard let it keep that.

    Attributes:
        label: its objective in words.
        kept: whether the network after it is its own; otherwise it was rolled back.
        criterion: the held-out figure that it had to improve.
        steps: optimiser steps taken.
        learning_rate: at the start of the phase.
        before, after: held-out figures of the network before (none for an untrained one) and after it.
        reason: why it was rolled back, empty where it was kept.
    """

    label: str
    kept: bool
    criterion: str
    steps: int
    learning_rate: float
    before: Mapping[str, float]
    after: Mapping[str, float]
    reason: str = ""

    def __str__(self) -> str:
        name, remark = plain(self.criterion), gap_beside_ess(self.after)
        about = f"; {remark}" if remark and self.kept else ""
        if not self.before:
            return f"{self.label}: {name} {self.after[self.criterion]:.3f}{about}"
        gained = self.after["held_out_forward_log_q"] - self.before["held_out_forward_log_q"]
        change = f"{name} {self.before[self.criterion]:.3f} to {self.after[self.criterion]:.3f}"
        if self.kept:
            return f"{self.label}: {change}, forward log q {gained:+.3f}{about}"
        return f"{self.label}: rolled back: {self.reason} ({change}, forward log q {gained:+.3f})"


@dataclass(frozen=True)
class Trained:
    """Outcome of a schedule: history rows, phases, unusable draws met, steps whose gradient was not finite.

    `cost` is that of all sessions and processes up to here.
    """

    history: list[dict[str, float]]
    phases: list[PhaseOutcome]
    refused: int
    skipped: int
    cost: Cost = field(default=Cost(), compare=False)
