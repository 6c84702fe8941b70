"""Luminosity distances against astropy, in all models and at the edges of their priors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from astropy import cosmology

from simulators.cosmology_distances import Cosmology, RedshiftGrid, curvature_factor, luminosity_distance

REDSHIFT = np.geomspace(1e-3, 2.5, 40)
RANGES = {  # Om, Ode (None: flat), w0, wa: the priors of supernova_cosmology
    "lcdm": ((0, 1), None, (-1, -1), (0, 0)),
    "open_lcdm": ((0.1, 1), (0, 1.3), (-1, -1), (0, 0)),
    "wcdm": ((0, 1), None, (-2, 0), (0, 0)),
    "w0wa": ((0, 1), None, (-3, 1), (-3, 2)),
}


def universes(model: str, count: int = 12) -> np.ndarray:
    """Om, Ode, w0, wa (count, 4): all corners of the prior, and draws of it."""
    rng = np.random.default_rng(1)
    matter, dark_energy, w0, wa = RANGES[model]
    free = [r for r in (matter, dark_energy, w0, wa) if r is not None]
    corners = np.stack([c.ravel() for c in np.meshgrid(*free, indexing="ij")], axis=1)
    rows = np.concatenate([corners, rng.uniform([r[0] for r in free], [r[1] for r in free], (count, len(free)))])
    if dark_energy is None:
        rows = np.insert(rows, 1, 1 - rows[:, 0], axis=1)
    return np.unique(rows, axis=0)


def modulus(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ours (mag), for every universe, and whether distances exist."""
    z = torch.from_numpy(REDSHIFT)[None]
    cosmology = Cosmology(*(torch.tensor(c, dtype=torch.float64)[:, None, None] for c in rows.T))
    values, exists = RedshiftGrid.of(z, z).modulus(cosmology)
    return values[:, 0].numpy(), exists[:, 0].numpy()


@pytest.mark.parametrize("model", RANGES)
def test_moduli_are_astropys(model: str) -> None:
    rows = universes(model)
    ours, exists = modulus(rows)
    assert exists.all()
    make: Any = cosmology.w0waCDM
    for row, values in zip(rows, ours, strict=True):
        universe = make(299792.458, row[0], row[1], w0=row[2], wa=row[3], Tcmb0=0)  # c / H_0 = 1 Mpc
        expected = 5 * np.log10(universe.luminosity_distance(REDSHIFT).value)
        np.testing.assert_allclose(values, expected, atol=1e-6, rtol=0)


def test_curvature_is_smooth_through_zero() -> None:
    y = torch.tensor([-9.0, -1e-8, 0.0, 1e-8, 9.0], dtype=torch.float64, requires_grad=True)
    value = curvature_factor(y)
    expected = [np.sin(3) / 3, 1 - 1e-8 / 6, 1.0, 1 + 1e-8 / 6, np.sinh(3) / 3]
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), y)
    np.testing.assert_allclose(slope[1:4].numpy(), 1 / 6, rtol=1e-8)


def test_gradients_are_those_of_differences() -> None:
    point = torch.tensor([0.3, 0.75, -0.9, 0.4], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[0.01, 0.5, 2.0]], dtype=torch.float64)

    def distances(p: torch.Tensor) -> torch.Tensor:
        return luminosity_distance(Cosmology(*p[:, None, None]), z)[0]

    assert torch.autograd.gradcheck(distances, point)


def test_a_universe_without_a_big_bang_has_no_distance() -> None:
    z = torch.tensor([[0.1, 2.0]], dtype=torch.float64)
    assert bool(luminosity_distance(Cosmology(0.05, 1.5), z).isnan().all())  # bounced below z = 2
    nearby = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    assert bool(luminosity_distance(Cosmology(0.05, 1.5), nearby).isfinite().all())


def test_heliocentric_redshifts_stretch_the_distance_alone() -> None:
    z, shifted = torch.tensor([[0.1]], dtype=torch.float64), torch.tensor([[0.11]], dtype=torch.float64)
    cosmology = Cosmology(0.3, 0.7)
    plain, moved = (RedshiftGrid.of(z, h).modulus(cosmology)[0] for h in (z, shifted))
    assert float(moved - plain) == pytest.approx(5 * np.log10(1.11 / 1.1), abs=1e-12)
