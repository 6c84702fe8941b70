r"""Where the epochs and error bars of simulated velocities come from.

`{observation: PATH, error_scatter: 0.0}`: those of an observed star, the same for every simulation.
`{points: M, baseline: days, start: t0, error: m/s, error_scatter: 0.2}`: M sorted epochs, uniform in the
baseline. In both, every error bar is multiplied by $\exp(\mathrm{scatter} \cdot z)$, z ~ N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from simulators.velocity_files import read_velocity_table

DesignSpec = Mapping[str, Any]


@dataclass(frozen=True)
class ObservingDesign:
    """Distribution of epochs and error bars.

    Attributes:
        start: first epoch, or start of the baseline (d).
        baseline: from the first to the last epoch (d).
        error: typical error bar (m/s): median.
        points: M, epochs of one star.
        error_scatter: standard deviation of the logarithm of the error bars about the design's.
        epochs: fixed epochs (d), (M,) float64, or None where they are random.
        errors: error bars (m/s) of those epochs, (M,) float64, or None.
    """

    start: float
    baseline: float
    error: float
    points: int
    error_scatter: float = 0.0
    epochs: Tensor | None = None
    errors: Tensor | None = None

    def draw(self, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Epochs (d), float64, and error bars (m/s), float32, each (count, M)."""
        device, shape = generator.device, (count, self.points)
        if self.epochs is None:
            turns = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
            time = self.start + self.baseline * turns.sort(dim=-1).values
        else:
            time = self.epochs.to(device).repeat(count, 1)
        typical = torch.full((self.points,), self.error, dtype=torch.float64) if self.errors is None else self.errors
        error = typical.to(device).repeat(count, 1)
        if self.error_scatter > 0:
            normal = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
            error = error * torch.exp(self.error_scatter * normal)
        return time, error.float()


def number(value: object, what: str, *, positive: bool = False) -> float:
    """A finite float from a config's number.

    A string is accepted where it is one: YAML 1.1 reads 1e-3 as text.

    >>> number("1e-3", "trend")
    0.001
    """
    try:
        result = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise ValueError(f"{what}: expected a number, got {value!r}") from None
    if isinstance(value, bool) or not math.isfinite(result):
        raise ValueError(f"{what}: expected a finite number, got {value!r}")
    if positive and result <= 0:
        raise ValueError(f"{what}: must be positive, got {result:g}")
    return result


def check_keys(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    """Refuse a key that is not known, naming the nearest."""
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what}: no key {key!r}{hint} (keys: {', '.join(known)})")


def design_from_spec(spec: DesignSpec | None, *, instrument: str | None = None) -> ObservingDesign:
    """Build the design from a config's mapping (see the top of this file).

    Raises:
        ValueError: neither `observation` nor `points`, an unknown key, or a number outside its domain.
    """
    what = "radial_velocity: design"
    if not isinstance(spec, Mapping) or ("observation" in spec) == ("points" in spec):
        raise ValueError(
            f"{what}: expected {{observation: FILE}} or {{points: M, baseline: d, start: d, error: m/s}}, got {spec!r}"
        )
    scatter = number(spec.get("error_scatter", 0.0 if "observation" in spec else 0.2), f"{what}.error_scatter")
    if scatter < 0:
        raise ValueError(f"{what}.error_scatter: must not be negative, got {scatter:g}")
    if "observation" in spec:
        check_keys(spec, ("observation", "error_scatter"), what)
        table = read_velocity_table(spec["observation"], instrument=instrument)
        time, error = torch.from_numpy(table.time), torch.from_numpy(table.velocity_error)
        return ObservingDesign(
            start=float(time.min()),
            baseline=float(time.max() - time.min()),
            error=float(error.median()),
            points=len(table),
            error_scatter=scatter,
            epochs=time,
            errors=error,
        )
    check_keys(spec, ("points", "baseline", "start", "error", "error_scatter"), what)
    missing = [key for key in ("baseline", "error") if key not in spec]
    if missing:
        raise ValueError(f"{what}: {missing[0]} is missing")
    points = number(spec["points"], f"{what}.points", positive=True)
    if points != int(points):
        raise ValueError(f"{what}.points: expected a whole number, got {points:g}")
    return ObservingDesign(
        start=number(spec.get("start", 0.0), f"{what}.start"),
        baseline=number(spec["baseline"], f"{what}.baseline", positive=True),
        error=number(spec["error"], f"{what}.error", positive=True),
        points=int(points),
        error_scatter=scatter,
    )
