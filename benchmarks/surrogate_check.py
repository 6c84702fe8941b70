"""The check of a learned likelihood, by its false alarms and its power, on cases whose answer is known.

    python -m benchmarks.surrogate_check                 minutes of one core; the table and results/surrogate_check.csv

s = A theta + n, S numbers and T parameters, A with orthonormal columns, n and theta (of the delivered posterior) N(0, 1); 400
simulations. The learned likelihood is right, or wrong in one way:

    wide, narrow     its noise is 1.4 times too wide, or too narrow
    blind            it does not depend on the first parameter, which then is as wide as its prior, 3
    shifted          by one standard deviation of the posterior of the first parameter; "half": by half of it
    uncorrelated     the simulator's noise has correlations of 0.36 that it does not know
    slope            the first parameter acts 1.5 times as strongly as it knows

Beside the test by exchange, in at most 20 runs, the energy test on (theta, s), standardised, under exchange of one draw each (Szekely and Rizzo 2004).
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.diagnostics.exchange import exchange_p_value

COUNT, DRAWN, PERMUTATIONS = 400, 19, 1_500
LEVEL = 1e-3
SIZES = ((1, 1), (5, 3), (16, 6))
WRONGS = ("none", "wide", "narrow", "blind", "shifted", "half", "uncorrelated", "slope")
RIGHT_RUNS, WRONG_RUNS, ENERGY_RUNS = {1: 1_000, 5: 300, 16: 100}, {1: 50, 5: 20, 16: 10}, 20
RESULTS = Path(__file__).parent / "results" / "surrogate_check.csv"
PValue = Callable[[Tensor, Tensor, Tensor, torch.Generator], float]


def case(wrong: str, size: int, dimension: int, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """v (K, L + 1, S), log densities of the likelihood in question (K, L + 1), and theta (K, T)."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    theta, slope = normal(COUNT, dimension), torch.linalg.qr(normal(size, dimension))[0]
    first = slope[:, 0]
    if wrong == "blind":
        theta[:, 0] *= 3
    noise = normal(COUNT, size)
    if wrong == "uncorrelated":
        noise = 0.8 * noise + 0.6 * normal(COUNT, 1)
    expected = theta @ slope.T
    mean = expected + {"shifted": 1.0, "half": 0.5}.get(wrong, 0.0) * first
    mean = mean + {"blind": -1.0, "slope": -1 / 3}.get(wrong, 0.0) * theta[:, :1] * first
    scale = {"wide": 1.4, "narrow": 1 / 1.4}.get(wrong, 1.0)
    drawn = mean[:, None] + scale * normal(COUNT, DRAWN, size)
    v = torch.cat([(expected + noise)[:, None], drawn], 1)
    return v, -((v - mean[:, None]) / scale).square().sum(-1) / 2, theta


def by_exchange(v: Tensor, log_density: Tensor, theta: Tensor, stream: torch.Generator) -> float:
    """The test that is used."""
    return exchange_p_value(v, log_density, theta, generator=stream)


def by_energy(v: Tensor, log_density: Tensor, theta: Tensor, stream: torch.Generator) -> float:
    r"""Energy distance of (theta, v_0) and (theta, v_1): $\sum_{kj} e_k e_j h_{kj}$, under random signs e_k."""
    joint = [torch.cat([theta, v[:, i]], 1) for i in (0, 1)]
    both = torch.cat(joint)
    a, b = ((j - both.mean(0)) / both.std(0) for j in joint)
    h = torch.cdist(a, b) + torch.cdist(b, a) - torch.cdist(a, a) - torch.cdist(b, b)
    signs = torch.randint(2, (PERMUTATIONS, COUNT), generator=stream).double() * 2 - 1
    values = ((signs @ h) * signs).sum(1)
    return float(1 + (values >= h.sum()).sum()) / (1 + PERMUTATIONS)


def measure(test: PValue, wrong: str, size: int, dimension: int, runs: int) -> tuple[Tensor, float]:
    """p-values of `runs` cases, and seconds a case."""
    started = time.process_time()
    values = []
    for run in range(runs):
        stream = torch.Generator().manual_seed(10_000 * size + run)
        values.append(test(*case(wrong, size, dimension, stream), stream))
    return torch.tensor(values), (time.process_time() - started) / runs


def main() -> None:
    """Print the table and write it."""
    torch.set_num_threads(1)
    rows = []
    for size, dimension in SIZES:
        for wrong in WRONGS:
            if size == 1 and wrong == "uncorrelated":
                continue
            runs = (RIGHT_RUNS if wrong == "none" else WRONG_RUNS)[size]
            row = {"numbers": size, "parameters": dimension, "wrong": wrong, "runs": runs}
            for name, test in (("exchange", by_exchange), ("energy", by_energy)):
                p, seconds = measure(
                    test, wrong, size, dimension, runs if test is by_exchange else min(runs, ENERGY_RUNS)
                )
                row |= {f"{name}_{level:g}": round(float((p < level).double().mean()), 4) for level in (LEVEL, 0.01)}
                row[f"{name}_cpu_s"] = round(seconds, 3)
            rows.append(row)
            sys.stdout.write("  ".join(f"{k} {v}" for k, v in row.items()) + "\n")
            sys.stdout.flush()
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
