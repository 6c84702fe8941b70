"""What a baseline sampler hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Density = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""A vectorised log density in nats: (B, D) -> (B,), -inf outside the support."""

Progress = Callable[[int, int | None], None]
"""Told the likelihood calls made so far, and the number expected in all where it is known."""


@dataclass(frozen=True)
class BaselineResult:
    """Draws of a baseline sampler and its own opinion of them.

    Attributes:
        name: the sampler.
        draws: equally weighted draws of theta, (S, D) float64.
        log_evidence: log p(x) in nats; None where the sampler gives none.
        log_evidence_error: its standard error as the sampler states it, in nats.
        converged: whether the sampler's own checks were passed.
        checks: the numbers behind `converged`, by name.
        wall_time_s: wall time in seconds, likelihood included.
        cpu_time_s: of all threads and child processes, likewise.
        likelihood_calls: values of theta at which the likelihood was evaluated.
    """

    name: str
    draws: NDArray[np.float64]
    log_evidence: float | None
    log_evidence_error: float | None
    converged: bool
    checks: dict[str, float]
    wall_time_s: float
    cpu_time_s: float
    likelihood_calls: int
