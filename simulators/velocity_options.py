"""What the simulators of velocities share: planets, jitters, frequencies in which a planet is looked for, observables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from simulators.observing_design import check_keys
from simulators.orbit import Quantity, declare
from simulators.periodogram import FrequencyGrid
from simulators.protocol import Data, Observable, Parameter

OWNER = "multi_instrument_velocity"
MOST_PLANETS = 3
TAIL = 1e-3
"""Of the prior of a period, at either end, that is not searched."""
ROWS = 64
"""Stars whose fits are made at once: 64 stars of 400 points take 30 MB of derivatives."""


def planet_list(planets: object) -> list[Any]:
    """One to three planets.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(planets, Sequence) or isinstance(planets, str) or not 1 <= len(planets) <= MOST_PLANETS:
        raise ValueError(f"{OWNER}: planets: expected a list of one to {MOST_PLANETS} mappings, got {planets!r}")
    return list(planets)


def free_orbit(spec: Any, position: int) -> Any:
    """A planet's mapping, if period and conjunction have priors.

    Raises:
        ValueError: one of them is a number.
    """
    for key in ("period", "conjunction"):
        if isinstance(spec, Mapping) and key in spec and not isinstance(spec[key], Mapping):
            raise ValueError(
                f"{OWNER}: planet {position}: {key} is always free: give a prior such as {{uniform: [10, 20]}}, "
                f"got {spec[key]!r} (radial_velocity takes fixed ephemerides)"
            )
    return spec


def declare_jitters(
    declared: list[Parameter], jit: float | Mapping[str, Any], instruments: Sequence[str], *, shared: bool
) -> tuple[Quantity, ...]:
    """One jitter for all instruments, or one for each.

    Raises:
        ValueError: an instrument without jitter, or a jitter without instrument.
    """
    if shared:
        return (declare(declared, jit, "jit", unit="m / s", label=r"$\sigma_{\mathrm{jit}}$", owner=OWNER),)
    assert isinstance(jit, Mapping)
    check_keys(jit, tuple(instruments), f"{OWNER}: jit")
    missing = [name for name in instruments if name not in jit]
    if missing:
        raise ValueError(f"{OWNER}: jit: none for instrument {missing[0]!r}; give one for each, or one for all")
    return tuple(
        declare(declared, jit[n], f"jit_{n}", unit="m / s", label=rf"$\sigma_{{\mathrm{{{n}}}}}$", owner=OWNER)
        for n in instruments
    )


def frequencies(period: Parameter, baseline: float) -> FrequencyGrid:
    """Frequencies (1/d) of a period's prior."""
    assert period.prior is not None
    ends = period.prior.icdf(torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64))
    return FrequencyGrid.between(1 / float(ends[1]), 1 / float(ends[0]), baseline)


def period_grid(period: Quantity, parameters: Sequence[Parameter], baseline: float) -> FrequencyGrid:
    """Frequencies (1/d) of a period, that one alone where it is fixed."""
    if period.index is None:
        return FrequencyGrid(1 / period.value, 0.0, 1, 1)
    return frequencies(parameters[period.index], baseline)


def blocks(x: Mapping[str, Tensor]) -> Iterator[Data]:
    """x, `ROWS` stars at a time."""
    for start in range(0, len(x["time"]), ROWS):
        yield {name: values[start : start + ROWS] for name, values in x.items()}


def velocity_observables(points: int) -> tuple[Observable, ...]:
    """Observables of M points. Velocities are float64 in files: a systemic velocity of 100 km/s leaves float32 steps of 8 mm/s.

    An error bar has no such offset, so float32 (6e-8 of its value) is harmless there.
    """
    return (
        Observable("time", (points,), "d", role="context", label="time"),
        Observable("velocity_error", (points,), "m / s", role="context", dtype="float32", label="velocity error"),
        Observable("velocity", (points,), "m / s", label="radial velocity", against="time", error="velocity_error"),
    )


def masked_observables(size: int) -> tuple[Observable, ...]:
    """Observables of at most M points, of which `present` says which are there."""
    shape = (size,)
    return (
        Observable("time", shape, "d", role="context", label="time"),
        Observable("velocity_error", shape, "m / s", role="context", dtype="float32", label="velocity error"),
        Observable("instrument", shape, role="context", label="instrument code"),
        Observable("present", shape, role="context", label="present"),
        Observable(
            "velocity",
            shape,
            "m / s",
            label="radial velocity",
            against="time",
            error="velocity_error",
            present="present",
        ),
    )
