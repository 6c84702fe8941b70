"""Positions and pixels against astropy-healpix."""

from __future__ import annotations

import math

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy_healpix import HEALPix

from simulators.fermi.belt import direction, lattice, pixel_table


@pytest.mark.parametrize("nside", [16, 128])
def test_pixels_are_those_of_healpix(nside: int) -> None:
    grid = HEALPix(nside, order="ring")
    generator = torch.Generator().manual_seed(nside)
    phi = (torch.rand(20_000, generator=generator, dtype=torch.float64) - 0.5) * 1.0
    z = (torch.rand(20_000, generator=generator, dtype=torch.float64) - 0.5) * 0.9
    expected = grid.lonlat_to_healpix(phi.numpy() * u.rad, np.arcsin(z.numpy()) * u.rad)
    lon, lat = grid.healpix_to_lonlat(np.arange(grid.npix))
    lon, lat = np.angle(np.exp(1j * lon.to_value(u.rad))), lat.to_value(u.rad)
    some = np.flatnonzero((np.abs(lat) < 0.4) & (np.abs(lon) < 0.4))
    table = pixel_table(torch.from_numpy(lon[some]), torch.from_numpy(np.sin(lat[some])), nside)
    found = table.find(phi, z).numpy()
    inside = np.isin(expected, some)
    assert 0.3 < inside.mean() < 0.9
    np.testing.assert_array_equal(found == len(some), ~inside)
    np.testing.assert_array_equal(some[found[inside]], expected[inside])


def test_direction_inverts_lattice_on_negative_longitudes_too() -> None:
    phi, z = torch.linspace(-0.6, 0.6, 50, dtype=torch.float64), torch.linspace(0.6, -0.6, 50, dtype=torch.float64)
    again = direction(*lattice(phi, z, 128), 128)
    torch.testing.assert_close(again[0], phi)
    torch.testing.assert_close(again[1], z)


def test_uniform_in_the_lattice_is_uniform_on_the_sphere() -> None:
    """The solid angle of a cell: d(phi) d(z) = (pi / 2 nside) (2 / 3 nside) d(p) d(m) = 4 pi / (12 nside^2)."""
    p, m = torch.tensor([3.2, 3.7]), torch.tensor([40.1, 40.4])
    phi, _ = direction(p, m, 64)
    other, _ = direction(p + 1, m, 64)
    assert math.isclose(float(other[0] - phi[0]), math.pi / 4 / 64, rel_tol=1e-4)
    area = torch.autograd.functional.jacobian(
        lambda t: torch.stack(direction(t[0], t[1], 64)), torch.tensor([3.0, 40.0])
    )
    assert math.isclose(abs(float(torch.linalg.det(area))), 4 * math.pi / (12 * 64**2), rel_tol=1e-5)


def test_pixels_near_the_poles_are_refused() -> None:
    with pytest.raises(ValueError, match="41 degrees"):
        pixel_table(torch.zeros(1), torch.tensor([0.7]), 64)
