"""A simulator that is a plain NumPy function: a pulsating star with flares, at nights that differ from star to star.

Flares have no tractable likelihood here: their number, times and heights are not parameters. Nights are observing conditions,
and there are 10 to 24 of them: data of variable length, by a mask.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simulators.priors import distribution_from_spec
from simulators.protocol import Data, Observable, Parameter

NIGHTS, FEWEST = 24, 10
PERIOD_D, NOISE = 1.7, 0.02


def light_curve(
    amplitude: float, phase: float, time_d: np.ndarray, rng: np.random.Generator
) -> np.ndarray:  # your own function: knows nothing of torch, and takes one star at a time
    """Relative flux: a sine, Gaussian noise, and a flare in one night of ten."""
    flux = 1 + amplitude * np.sin(2 * math.pi * time_d / PERIOD_D + phase)
    flares = rng.exponential(0.1, len(time_d)) * (rng.random(len(time_d)) < 0.1)
    return flux + flares + NOISE * rng.standard_normal(len(time_d))


class PulsatingStar:
    """Sine with flares: D = 2, up to 24 nights."""

    name = "pulsating_star"
    parameters = (
        Parameter("amplitude", distribution_from_spec({"uniform": [0.02, 0.2]}), label="$a$"),
        Parameter("phase", distribution_from_spec({"uniform": [0, 2 * math.pi]}), "rad", r"$\phi$", periodic=True),
    )
    observables = (
        Observable("time", (NIGHTS,), "d", role="context"),
        Observable("present", (NIGHTS,), role="context"),
        Observable("flux", (NIGHTS,), against="time", present="present"),
    )
    feature_shape = (NIGHTS, 3)  # as embeddings `set` and `transformer` read it: the last number is the mask

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """One call of `light_curve` a star; every random number comes from `generator`."""
        seeds = torch.randint(2**62, (len(theta),), generator=generator).tolist()
        conditions = context or nights(len(theta), generator)
        time_d, present = conditions["time"].double().numpy(), conditions["present"].double().numpy() > 0.5
        flux = np.ones((len(theta), NIGHTS))
        for n, ((amplitude, phase), seed) in enumerate(zip(theta.tolist(), seeds, strict=True)):
            rng = np.random.default_rng(seed)
            flux[n, present[n]] = light_curve(amplitude, phase, time_d[n, present[n]], rng)
        return {"time": conditions["time"], "present": conditions["present"], "flux": torch.from_numpy(flux)}

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        """(phase within the period, flux, mask) of each night, (N, 24 * 3)."""
        turn = torch.remainder(x["time"], PERIOD_D) / PERIOD_D
        return torch.stack([turn, x["flux"], x["present"]], dim=-1).flatten(1)

    def read_observation(self, path: Path) -> tuple[Data, list[str]]:
        """A CSV file with columns time (d) and flux, of one star."""
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(float(r["time"]), float(r["flux"])) for r in csv.DictReader(file)]
        if not 1 <= len(rows) <= NIGHTS:
            raise ValueError(f"{path}: expected 1 to {NIGHTS} nights, got {len(rows)}")
        x = {"time": torch.zeros(1, NIGHTS), "present": torch.zeros(1, NIGHTS), "flux": torch.ones(1, NIGHTS)}
        x = {name: values.double() for name, values in x.items()}
        x["present"][0, : len(rows)] = 1
        x["time"][0, : len(rows)], x["flux"][0, : len(rows)] = torch.tensor(rows, dtype=torch.float64).T
        return x, [path.stem]


def nights(count: int, generator: torch.Generator) -> Data:
    """The design distribution: 10 to 24 nights within 60 d."""
    number = torch.randint(FEWEST, NIGHTS + 1, (count, 1), generator=generator)
    present = (torch.arange(NIGHTS) < number).double()
    time_d = 60 * torch.rand(count, NIGHTS, generator=generator, dtype=torch.float64)
    return {"time": time_d.sort(1).values * present, "present": present}
