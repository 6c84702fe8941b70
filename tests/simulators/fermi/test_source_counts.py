"""Moments and draws of the doubly broken power law against numerical integration."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest

from simulators.fermi.source_counts import source_counts

RANGE = (0.1, 100.0)
# n1, n2, n3, b1, b2: ordinary, n3 so negative that faint sources vanish, exponents of exactly 1 and 2, b2 at the faint end
SHAPES = [
    (15.0, 1.5, -3.0, 12.0, 2.0),
    (10.0, 1.1, -10.0, 40.0, 4.99),
    (20.0, 1.99, 1.99, 5.0, 1.0),
    (12.0, 1.5, 1.0, 8.0, 3.0),
    (11.0, 1.8, 0.5, 30.0, 0.1),
]


def density(flux: float, shape: tuple[float, ...]) -> float:
    n1, n2, n3, b1, b2 = shape
    if flux < b2:
        return (flux / b2) ** -n3
    if flux < b1:
        return (flux / b2) ** -n2
    return (b1 / b2) ** -n2 * (flux / b1) ** -n1


def integral(shape: tuple[float, ...], power: int, low: float = RANGE[0], high: float = RANGE[1]) -> float:
    edges = sorted({low, *(b for b in shape[3:] if low < b < high), high})
    return sum(quad(lambda f: f**power * density(f, shape), a, b, limit=200)[0] for a, b in pairwise(edges))


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_integrals(shape: tuple[float, ...]) -> None:
    counts = source_counts(torch.tensor([shape, SHAPES[0]]), RANGE)
    for power in (0, 1, 2):
        assert float(counts.segments(power)[0].sum()) == pytest.approx(integral(shape, power), rel=1e-5)
    mean = integral(shape, 1) / integral(shape, 0)
    assert float(counts.moment(1)[0]) == pytest.approx(mean, rel=1e-5)


def test_draws_follow_the_distribution_of_their_own_population() -> None:
    counts = source_counts(torch.tensor(SHAPES), RANGE)
    population = torch.arange(len(SHAPES)).repeat_interleave(5_000)
    flux = counts.sample(population, torch.Generator().manual_seed(0)).double().numpy()
    for n, shape in enumerate(SHAPES):
        grid = np.exp(np.linspace(*np.log(RANGE), 400))
        whole = integral(shape, 0)
        share = np.array([0.0, *(integral(shape, 0, high=g) / whole for g in grid[1:])])
        result = kstest(flux[population.numpy() == n], lambda f, g=grid, s=share: np.interp(np.log(f), np.log(g), s))
        assert result.pvalue > 1e-3, shape
