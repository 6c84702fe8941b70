"""Data replicated from posteriors by a simulator that may fail, raise, or exceed its time limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.interrupt import Interrupted
from simulators.protocol import Data, Simulator, context_of, simulate_with_reasons

BLOCK_NUMBERS = 2_000_000
"""Numbers of replicated data that exist at once: 16 MB an array."""
LEAST_REMAINING = 100
"""Fewest replicates for a p-value, which then reaches 0.02; or half of those asked for, if less."""


@dataclass(frozen=True)
class Replicates:
    """Data replicated from the posteriors of N observations.

    Attributes:
        x: every observable, (S, N, ...) each; where a simulation failed, the observation's own
            numbers.
        good: whether the simulation succeeded, (S, N).
        why: the first reason why one of an observation failed; "" without one.
    """

    x: Data
    good: Tensor
    why: tuple[str, ...]

    @property
    def failed(self) -> Tensor:
        """How many of each observation failed, (N,)."""
        return (~self.good).sum(0)

    @property
    def enough(self) -> Tensor:
        """Whether those that are left make a p-value, (N,)."""
        return self.good.sum(0) >= needed(len(self.good))


def needed(replicates: int) -> int:
    """Fewest of so many replicates that make a p-value."""
    return min(LEAST_REMAINING, math.ceil(replicates / 2))


def rows_at_once(simulator: Simulator, x: Mapping[str, Tensor]) -> int:
    """So many simulations of these observables hold BLOCK_NUMBERS numbers."""
    return max(1, BLOCK_NUMBERS // sum(x[o.name][0].numel() for o in simulator.observables))


def replicate(
    simulator: Simulator, theta: Tensor, x: Mapping[str, Tensor], *, generator: torch.Generator
) -> Replicates:
    """Data drawn anew for theta (S, N, D) under the observing conditions of x.

    Simulated in pieces of about BLOCK_NUMBERS numbers, no larger than the simulator's own `batch`.
    Nothing more is simulated once too many failed for a p-value of any observation: each may have
    taken its whole time limit.
    """
    replicates, count, dimension = theta.shape
    most = min(rows_at_once(simulator, x), getattr(simulator, "batch", BLOCK_NUMBERS))
    context = context_of(simulator, x)
    drawn = {o.name: x[o.name].expand(replicates, *x[o.name].shape).clone() for o in simulator.observables}
    good = torch.zeros(replicates, count, dtype=torch.bool, device=theta.device)
    why = [""] * count
    step = max(1, most // count)
    for start in range(0, replicates, step):
        if bool(((start - good.sum(0)) > replicates - needed(replicates)).all()):
            break
        some = theta[start : start + step]
        repeated = {k: v.expand(len(some), *v.shape).flatten(0, 1) for k, v in context.items()}
        found, reasons = _simulate(simulator, some.reshape(-1, dimension), repeated, generator)
        bad = torch.zeros(len(some) * count, dtype=torch.bool, device=theta.device)
        bad[list(reasons)] = True
        good[start : start + len(some)] = ~bad.view(-1, count)
        for row, reason in reasons.items():
            why[row % count] = why[row % count] or reason
        for name, values in found.items():
            whole = values.reshape(-1, count, *values.shape[1:])
            there = good[start : start + len(some)].view(-1, count, *(1,) * (values.dim() - 1))
            drawn[name][start : start + len(some)] = torch.where(there, whole, x[name])
    return Replicates(drawn, good, tuple(why))


def _simulate(
    simulator: Simulator, theta: Tensor, context: Mapping[str, Tensor], generator: torch.Generator
) -> tuple[Data, dict[int, str]]:
    """x of theta (R, D), and why rows failed; row by row where the simulator raises for all at once."""
    try:
        # without any context observable there is no design to draw, and None is what simulators expect
        x, failures = simulate_with_reasons(simulator, theta, context or None, generator=generator)
    except Interrupted:
        raise
    except Exception as error:
        if len(theta) == 1:
            return {}, {0: f"{type(error).__name__}: {first_line(error)}"}
        return _row_by_row(simulator, theta, context, generator)
    reasons = {row: failure.reason for row, failure in failures.items()}
    for name, values in x.items():
        finite = values.reshape(len(values), -1).isfinite().all(1)
        for row in (~finite).nonzero()[:, 0].tolist():
            reasons.setdefault(row, f"{name} is NaN or infinite")
    return x, reasons


def _row_by_row(
    simulator: Simulator, theta: Tensor, context: Mapping[str, Tensor], generator: torch.Generator
) -> tuple[Data, dict[int, str]]:
    """Each row by itself; none more once none of the first LEAST_REMAINING worked."""
    parts: list[Data] = []
    reasons: dict[int, str] = {}
    for row in range(len(theta)):
        if row >= LEAST_REMAINING and not parts:
            reasons[row] = reasons[0]
            continue
        one = {k: v[row : row + 1] for k, v in context.items()}
        x, failed = _simulate(simulator, theta[row : row + 1], one, generator)
        if failed:
            reasons[row] = failed[0]
        else:
            parts.append(x)
    if not parts:
        return {}, reasons
    whole = {k: v.new_zeros(len(theta), *v.shape[1:]) for k, v in parts[0].items()}
    worked = [row for row in range(len(theta)) if row not in reasons]
    for name, values in whole.items():
        values[worked] = torch.cat([p[name] for p in parts])
    return whole, reasons


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).splitlines()[0] if str(error) else "no message"
