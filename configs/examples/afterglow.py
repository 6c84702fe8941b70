"""A simulator that is an external command-line program, called once a draw: a fading source, counted in eight hours."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from simulators.priors import distribution_from_spec
from simulators.protocol import Data, Observable, Parameter

BINS = 8
TIMEOUT_S = 10
PROGRAM = Path(__file__).with_name("afterglow.awk")


class Afterglow:
    """Photons of a fading source: D = 2, eight whole numbers."""

    name = "afterglow"
    parameters = (
        Parameter("rate", distribution_from_spec({"log_normal": [3.4, 0.5]}), "ct / h", "$r$"),
        Parameter("decay", distribution_from_spec({"log_normal": [0.9, 0.4]}), "h", r"$\tau$"),
    )
    observables = (Observable("counts", (BINS,), "ct", discrete=True),)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """One call of the program a draw, its seed from `generator`."""
        seeds = torch.randint(2**31 - 1, (len(theta),), generator=generator).tolist()
        rows = [call_program(*values, seed) for values, seed in zip(theta.tolist(), seeds, strict=True)]
        return {"counts": torch.tensor(rows, dtype=torch.float64)}

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        """Square roots, whose noise is the same everywhere, (N, 8)."""
        return x["counts"].sqrt()

    def read_observation(self, path: Path) -> tuple[Data, list[str]]:
        """A text file with eight counts."""
        counts = [float(word) for word in path.read_text(encoding="utf-8").split()]
        if len(counts) != BINS:
            raise ValueError(f"{path}: expected {BINS} counts, got {len(counts)}")
        return {"counts": torch.tensor([counts], dtype=torch.float64)}, [path.stem]


def call_program(rate: float, decay: float, seed: int) -> list[float]:
    """Run it once; its exit code and the end of its stderr become the error.

    Raises:
        ValueError: it failed, took too long, or printed something else.
    """
    command = ["awk", "-f", str(PROGRAM), "-v", f"rate={rate!r}", "-v", f"decay={decay!r}", "-v", f"seed={seed}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"afterglow: took more than {TIMEOUT_S} s at rate {rate:.6g}, decay {decay:.6g}") from None
    numbers = done.stdout.split()
    if done.returncode or len(numbers) != BINS:
        raise ValueError(
            f"afterglow: exit code {done.returncode} at rate {rate:.6g}, decay {decay:.6g}: {done.stderr[-400:].strip()}"
        )
    return [float(n) for n in numbers]
