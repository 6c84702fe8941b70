"""Periodogram against astropy's, and against explicit least squares where there are several instruments."""

from __future__ import annotations

import numpy as np
import torch
from astropy.timeseries import LombScargle

from simulators.periodogram import FrequencyGrid, periodogram


def star(instruments: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Elapsed (1, 40), velocity, weight, membership (1, 40, I); each velocity centred on its instrument's weighted mean."""
    rng = np.random.default_rng(seed)
    time, error = np.sort(rng.uniform(-150, 150, 40)), rng.uniform(0.5, 2, 40)
    velocity = 3 * np.sin(2 * np.pi * time / 17.3) + error * rng.normal(size=40)
    membership = np.eye(instruments)[rng.integers(instruments, size=40)]
    weight = 1 / error**2
    mean = membership.T @ (weight * velocity) / (membership.T @ weight)
    arrays = (time, velocity - membership @ mean, weight, membership)
    elapsed, centered, w, m = (torch.from_numpy(a)[None] for a in arrays)
    return elapsed, centered, w, m


def test_one_instrument_is_astropys() -> None:
    time, velocity, weight, membership = star(1)
    grid = FrequencyGrid.between(1 / 40, 1 / 8, 300)
    got = periodogram(time, velocity, weight, membership, grid)[0].numpy()
    oracle = LombScargle(time[0].numpy(), velocity[0].numpy(), weight[0].numpy() ** -0.5, fit_mean=True)
    expected = oracle.power(grid.frequency.numpy(), normalization="psd", method="slow", assume_regular_frequency=False)
    assert np.abs(got - 2 * np.asarray(expected)).max() < 1e-3 * got.max()


def test_several_instruments_are_least_squares() -> None:
    time, velocity, weight, membership = star(3, seed=1)
    grid = FrequencyGrid.between(1 / 30, 1 / 12, 300)
    got = periodogram(time, velocity, weight, membership, grid)[0]
    t, y, root, m = time[0].numpy(), velocity[0].numpy(), weight[0].numpy() ** 0.5, membership[0].numpy()
    empty = np.sum((root * y) ** 2)
    for index in (0, 7, len(got) // 2, len(got) - 1):
        phase = 2 * np.pi * float(grid.frequency[index]) * t
        basis = np.column_stack([np.cos(phase), np.sin(phase), m]) * root[:, None]
        residual = root * y - basis @ np.linalg.lstsq(basis, root * y, rcond=None)[0]
        assert abs(float(got[index]) - (empty - residual @ residual)) < 1e-3 * float(got.max())


def test_absent_points_do_not_matter() -> None:
    time, velocity, weight, membership = star(2, seed=2)
    grid = FrequencyGrid.between(1 / 30, 1 / 12, 300)
    gone = torch.arange(40) >= 30
    weight, membership = torch.where(gone, 0.0, weight), torch.where(gone[:, None], 0.0, membership)
    first = periodogram(time, velocity, weight, membership, grid)
    other = periodogram(torch.where(gone, 1e4, time), velocity, weight, membership, grid)
    torch.testing.assert_close(first, other)


def test_the_grid_covers_its_range() -> None:
    grid = FrequencyGrid.between(0.01, 0.05, 1000)
    assert float(grid.frequency[0]) == 0.01
    assert float(grid.frequency[-1]) >= 0.05 - 1e-12
    assert grid.step <= 1 / 6000
