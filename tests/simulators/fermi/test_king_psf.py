"""Normalisation and containment against numerical integration; displacements against rotation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest

from simulators.fermi.king_psf import King, KingPsf, displace

PSF = KingPsf(King(0.4287, 7.824), King(0.716, 3.619), core_share=0.749, scale_rad=0.004565)


def density(r: float) -> float:
    return float(PSF.density(torch.tensor(r, dtype=torch.float64)))


def test_density_integrates_to_one_over_solid_angle() -> None:
    total, _ = quad(
        lambda t: 2 * math.pi * math.exp(2 * t) * density(math.exp(t)), math.log(1e-7), math.log(50), limit=200
    )
    assert total == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("radius_deg", [0.1, 0.25, 0.5, 1.0, 2.0])
def test_containment_is_the_integral_of_the_density(radius_deg: float) -> None:
    radius = math.radians(radius_deg)
    inside, _ = quad(lambda r: 2 * math.pi * r * density(r), 0, radius)
    assert float(PSF.containment(torch.tensor(radius, dtype=torch.float64))) == pytest.approx(inside, abs=1e-9)


def test_draws_follow_the_containment() -> None:
    draws = PSF.sample(20_000, torch.Generator().manual_seed(0)).double()
    result = kstest(draws.numpy(), lambda r: PSF.containment(torch.from_numpy(np.asarray(r))).numpy())
    assert result.pvalue > 0.01
    core_only = KingPsf(PSF.core, PSF.tail, core_share=1.0, scale_rad=PSF.scale_rad)
    result = kstest(draws.numpy(), lambda r: core_only.containment(torch.from_numpy(np.asarray(r))).numpy())
    assert result.pvalue < 1e-6


def test_displacement_has_its_angle_and_its_direction() -> None:
    generator = torch.Generator().manual_seed(1)
    phi, z, r, azimuth = torch.rand(4, 1000, generator=generator, dtype=torch.float64)
    phi, z, r, azimuth = phi - 0.5, z - 0.5, 0.2 * r + 1e-3, 2 * math.pi * azimuth
    other_phi, other_z = displace(phi, z, r, azimuth)
    cosine = z * other_z + (1 - z**2).sqrt() * (1 - other_z**2).sqrt() * (other_phi - phi).cos()
    torch.testing.assert_close(cosine.acos(), r, rtol=1e-6, atol=1e-9)
    north_phi, north_z = displace(phi, z, r, torch.zeros_like(r))
    torch.testing.assert_close(north_phi, phi)
    torch.testing.assert_close(north_z.asin(), z.asin() + r)
    east, _ = displace(phi, z, r, torch.full_like(r, math.pi / 2))
    assert bool((east > phi).all())
