r"""Where epochs, error bars and instruments of simulated velocities come from, with points that may be absent.

`{observation: FILE}`: those of an observed star. `{points: [40, 200], baseline: [1000, 4000], start: 2450000,
error: [1.0, 2.5]}`: a star drawn anew each time, its number of points uniform, baseline and error bar of each instrument
log-uniform between two numbers (or fixed: one number), epochs uniform in the baseline, each point of an instrument
drawn at random. In both

- `error_scatter`: every error bar is multiplied by exp(scatter z), z ~ N(0, 1);
- `absent`: up to this share of the points is left out, the share uniform from 0;
- `absent_instrument`: probability with which each instrument but one, drawn at random, has no points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulators.observing_design import DesignSpec, check_keys, number
from simulators.protocol import Data
from simulators.velocity_files import VelocityTable, read_all_velocities

WHAT = "multi_instrument_velocity: design"
Range = tuple[float, float]


@dataclass(frozen=True)
class VelocityDesign:
    """Distribution of epochs, error bars and instruments of stars with at most M points.

    Attributes:
        size: M.
        instruments: their names.
        start: first epoch, or start of the baseline (d).
        baseline: shortest and longest (d).
        error: smallest and largest typical error bar (m/s).
        points: fewest and most points.
        error_scatter, absent, absent_instrument: see the top of this file.
        observed: the observation's arrays, (M,) each, or None.
    """

    size: int
    instruments: tuple[str, ...]
    start: float
    baseline: Range
    error: Range
    points: Range
    error_scatter: float = 0.0
    absent: float = 0.0
    absent_instrument: float = 0.0
    observed: Data | None = None

    @property
    def epoch(self) -> float:
        """Middle of the data, to which phases of first guesses refer (d)."""
        return self.start + self.baseline[1] / 2

    def draw(self, count: int, *, generator: torch.Generator) -> Data:
        """time (d), instrument, present, all float64, and velocity_error (m/s), float32, (count, M) each."""
        device, shape = generator.device, (count, self.size)
        if self.observed is not None:
            x = {name: values.to(device).repeat(count, 1) for name, values in self.observed.items()}
        else:
            x = self._draw_star(count, generator)
        error = x["velocity_error"].double()
        if self.error_scatter > 0:
            normal = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
            error = error * torch.exp(self.error_scatter * normal)
        if self.absent > 0 or self.absent_instrument > 0:
            share = self.absent * _uniform((count, 1), generator)
            kept = (_uniform(shape, generator) >= share) & self._instrument_is_there(x["instrument"], generator)
            kept = kept & (x["present"] > 0.5)
            # a star keeps what it had where nothing would be left of it
            x["present"] = torch.where(kept.sum(-1, keepdim=True) > 1, kept.double(), x["present"])
        return x | {"velocity_error": error.float()}

    def _draw_star(self, count: int, generator: torch.Generator) -> Data:
        """A star drawn anew; absent points are the last ones, at the start of the baseline."""
        low, high = self.points
        number_of = low + torch.floor((high - low + 1) * _uniform((count, 1), generator))
        index = torch.arange(self.size, dtype=torch.float64, device=generator.device)
        present = (index < number_of).double()
        baseline = _log_uniform(self.baseline, (count, 1), generator)
        turns = torch.where(present > 0.5, _uniform((count, self.size), generator), 2.0).sort(dim=-1).values
        instruments = len(self.instruments)
        code = torch.floor(instruments * _uniform((count, self.size), generator)).clamp_max(instruments - 1)
        error = _log_uniform(self.error, (count, instruments), generator).gather(1, code.long())
        time = self.start + baseline * torch.where(present > 0.5, turns, 0.0)
        return {"time": time, "velocity_error": error, "instrument": code, "present": present}

    def _instrument_is_there(self, code: Tensor, generator: torch.Generator) -> Tensor:
        """Whether the instrument of each point has any points, (count, M)."""
        count, instruments = len(code), len(self.instruments)
        there = _uniform((count, instruments), generator) >= self.absent_instrument
        safe = torch.floor(instruments * _uniform((count, 1), generator)).clamp_max(instruments - 1)
        there = there | (torch.arange(instruments, device=code.device) == safe)
        return there.gather(1, code.long())


def arrays_of(table: VelocityTable, instruments: Sequence[str], size: int, what: str) -> dict[str, np.ndarray]:
    """A table as arrays of M numbers, velocity too, the absent ones at the end.

    Raises:
        ValueError: more points than `size`, or an instrument that is not among `instruments`.
    """
    points = len(table)
    if points > size:
        raise ValueError(f"{what}: has {points} velocities, the simulator {size}: set its option size to {points}")
    unknown = sorted(set(table.instrument.tolist()) - set(instruments))
    if unknown:
        raise ValueError(
            f"{what}: instrument {unknown[0]!r} is not among the option instruments: [{', '.join(instruments)}]"
        )
    code = np.array([instruments.index(name) for name in table.instrument.tolist()], dtype=np.float64)
    absent = size - points
    return {
        "time": np.pad(table.time, (0, absent), constant_values=float(table.time.min())),
        "velocity_error": np.pad(table.velocity_error, (0, absent), constant_values=1.0).astype(np.float32),
        "instrument": np.pad(code, (0, absent)),
        "present": np.pad(np.ones(points), (0, absent)),
        "velocity": np.pad(table.velocity, (0, absent)),
    }


def velocity_design(spec: DesignSpec | None, *, size: int | None, instruments: Sequence[str] | None) -> VelocityDesign:
    """Build the design of a config's mapping (see the top of this file).

    Args:
        size: M; default: points of the observation, or the most that are drawn.
        instruments: names; default: those of the observation, in order of appearance.

    Raises:
        ValueError: neither `observation` nor `points`, an unknown key, or a number outside its domain.
    """
    if not isinstance(spec, Mapping) or ("observation" in spec) == ("points" in spec):
        raise ValueError(
            f"{WHAT}: expected {{observation: FILE}} or {{points: [least, most], baseline: d, start: d, error: m/s}}, got {spec!r}"
        )
    extras: dict[str, float] = {}
    for name in ("error_scatter", "absent", "absent_instrument"):
        extras[name] = number(spec.get(name, 0.0), f"{WHAT}.{name}")
        if extras[name] < 0 or (name != "error_scatter" and extras[name] >= 1):
            raise ValueError(f"{WHAT}.{name}: expected a number from 0 to below 1, got {extras[name]:g}")
    if "observation" in spec:
        check_keys(spec, ("observation", *extras), WHAT)
        table = read_all_velocities(spec["observation"])
        names = tuple(instruments or dict.fromkeys(table.instrument.tolist()))
        arrays = arrays_of(table, names, size or len(table), str(spec["observation"]))
        typical = float(np.median(table.velocity_error))
        span = float(table.time.max() - table.time.min())
        observed = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "velocity"}
        return VelocityDesign(
            size=len(arrays["time"]),
            instruments=names,
            start=float(table.time.min()),
            baseline=(span, span),
            error=(typical, typical),
            points=(len(table), len(table)),
            error_scatter=extras["error_scatter"],
            absent=extras["absent"],
            absent_instrument=extras["absent_instrument"],
            observed=observed,
        )
    check_keys(spec, ("points", "baseline", "start", "error", *extras), WHAT)
    missing = [key for key in ("baseline", "error") if key not in spec]
    if missing:
        raise ValueError(f"{WHAT}: {missing[0]} is missing")
    points = _limits(spec["points"], f"{WHAT}.points")
    if any(v != int(v) for v in points) or (size is not None and size < points[1]):
        raise ValueError(f"{WHAT}.points: expected whole numbers up to the option size, got {spec['points']!r}")
    return VelocityDesign(
        size=size or int(points[1]),
        instruments=tuple(instruments or ("",)),
        start=number(spec.get("start", 0.0), f"{WHAT}.start"),
        baseline=_limits(spec["baseline"], f"{WHAT}.baseline"),
        error=_limits(spec["error"], f"{WHAT}.error"),
        points=points,
        error_scatter=extras["error_scatter"],
        absent=extras["absent"],
        absent_instrument=extras["absent_instrument"],
    )


def _limits(value: Any, what: str) -> Range:
    """A positive number, or two in order."""
    pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(pair) != 2:
        raise ValueError(f"{what}: expected a number, or [low, high], got {value!r}")
    low, high = (number(v, what, positive=True) for v in pair)
    if low > high:
        raise ValueError(f"{what}: expected [low, high] in order, got {value!r}")
    return low, high


def _log_uniform(limits: Range, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    low, high = limits
    return low * torch.exp(math.log(high / low) * _uniform(shape, generator))


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
