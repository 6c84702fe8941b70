"""A log density that counts its calls, checks its shapes and turns NaN into zero density."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.baselines.result import Density, Progress


class CountedDensity:
    """Wraps a vectorised log density for a sampler.

    NaN and +inf become -inf, since samplers stop or go astray on them; `refused` says how often, and is part
    of what a baseline reports.

    Args:
        density: (B, D) -> (B,), nats.
        progress: told the count after every call.
        expected: number of calls in all, where known.
    """

    def __init__(self, density: Density, *, progress: Progress | None = None, expected: int | None = None) -> None:
        self.calls = 0
        self.refused = 0
        self._density = density
        self._progress = progress
        self._expected = expected

    def __call__(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log density of theta, (B, D) -> (B,).

        Raises:
            ValueError: the density did not return one number for each row.
        """
        values = np.array(self._density(theta), dtype=np.float64)  # a copy: the caller's array is not ours to change
        if values.shape != theta.shape[:1]:
            raise ValueError(
                f"log density: expected shape {theta.shape[:1]} for theta of shape {theta.shape}, got {values.shape}; "
                "return one value for each row of theta"
            )
        bad = np.isnan(values) | (values == np.inf)
        values[bad] = -np.inf
        self.calls += len(values)
        self.refused += int(bad.sum())
        if self._progress is not None:
            self._progress(self.calls, self._expected)
        return values
