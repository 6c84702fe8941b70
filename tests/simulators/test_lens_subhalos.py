"""Subhalos: deflections against lenstronomy, masses against quadrature, what they add up to against its definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from astropy import constants, units
from astropy.cosmology import Planck18
from scipy.integrate import quad

from simulators.lens_subhalos import LensSubhalos, MassFunction, critical_density

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"pixels": 13, "binning": 3, "native_arcsec": 0.15}


def theta(log10_fraction: float, slope: float, count: int = 1) -> torch.Tensor:
    return torch.tensor([[log10_fraction, slope]], dtype=torch.float64).repeat(count, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("slope", [-2.4, -2.0, -1.9, -1.0])
def test_masses_have_the_mass_function(slope: float) -> None:
    masses, at = MassFunction(1e8, 1e10), torch.tensor(slope).double()
    number = quad(lambda u: math.exp(u * (slope + 1)), math.log(1e8), math.log(1e10))[0]
    mass = quad(lambda u: math.exp(u * (slope + 2)), math.log(1e8), math.log(1e10))[0]
    assert float(masses.mean(at)) == pytest.approx(mass / number, rel=1e-3)
    draws = masses.draw((torch.arange(200_000).double() + 0.5) / 200_000, at)
    assert float(draws.min()) >= 1e8
    assert float(draws.max()) <= 1e10
    assert float(draws.mean()) == pytest.approx(mass / number, rel=2e-3)


def test_critical_density_is_that_of_an_isothermal_lens() -> None:
    """An Einstein ring of 1 arcsec encloses pi Sigma_cr: theta_E = 4 pi (sigma/c)^2 D_ls / D_s, M = pi sigma^2 R / G."""
    lens, source = 0.155, 0.517
    nature: Any = constants
    universe: Any = Planck18
    ratio = universe.angular_diameter_distance(source)
    between = (universe.comoving_distance(source) - universe.comoving_distance(lens)) / (1 + source)
    square = (1 * units.arcsec).to_value(units.rad) / (4 * math.pi) * float(ratio / between) * nature.c**2
    radius = universe.angular_diameter_distance(lens) * (1 * units.arcsec).to_value(units.rad)
    mass = (math.pi * square * radius / nature.G).to_value(units.Msun)
    assert critical_density(lens, source) == pytest.approx(mass / math.pi, rel=1e-4)


def test_deflection_is_lenstronomys() -> None:
    models: Any = pytest.importorskip("lenstronomy.LensModel.lens_model", reason="lenstronomy is not installed")
    simulator, einstein, mass = LensSubhalos(lens=SMALL), 1.6, 3e9
    bent = simulator.deflection(theta(-300.0, -1.9)[0], torch.tensor(einstein), torch.tensor([[mass, 0.43, -0.61]]))
    b = (mass / (math.pi * simulator.critical * math.sqrt(einstein))) ** (2 / 3)
    core, truncation = 1e-7, math.sqrt(b * einstein)
    x, y = (t.double().numpy().ravel() for t in simulator.lens.grid.centers(native=True))
    options = {"sigma0": b / 2 * (truncation - core) / (core * truncation), "Ra": core, "Rs": truncation}
    expected = models.LensModel(["PJAFFE"]).ray_shooting(x, y, [options | {"center_x": 0.43, "center_y": -0.61}])
    for ours, at, theirs in zip(bent, (x, y), expected, strict=True):
        np.testing.assert_allclose(ours.double().numpy().ravel(), at - theirs, atol=2e-5)


def test_mass_of_a_subhalo_is_what_deflects_far_from_it() -> None:
    """Beyond the truncation a mass m deflects by m / (pi Sigma_cr r)."""
    simulator, mass = LensSubhalos(lens=SMALL), 1e8
    bent_x, _ = simulator.deflection(theta(-300.0, -1.9)[0], torch.tensor(1.6), torch.tensor([[mass, -300.0, 0.0]]))
    assert float(bent_x[19, 19]) == pytest.approx(mass / (math.pi * simulator.critical * 300.0), rel=1e-3)


def test_subhalos_hold_the_fraction() -> None:
    """Mean mass of 4,000 lenses within four standard errors; places even over the disk."""
    simulator = LensSubhalos(lens=SMALL)
    einstein = torch.full((4_000,), 1.6)
    drawn = simulator.draw_subhalos(theta(-2.0, -1.9, 4_000), einstein, generator=generator())
    mass = torch.stack([s[:, 0].sum() for s in drawn])
    expected = 0.01 * math.pi * simulator.critical * 1.6 * 3.0
    assert abs(float(mass.mean()) - expected) < 4 * float(mass.std()) / 4_000**0.5
    radius = torch.cat(drawn)[:, 1:].norm(dim=-1)
    assert float(radius.max()) <= 3.0
    assert float((radius < 1.5).double().mean()) == pytest.approx(0.25, abs=4 * (0.1875 / len(radius)) ** 0.5)


def test_subhalos_and_sheet_deflect_by_nothing_on_average() -> None:
    simulator = LensSubhalos(lens=SMALL)
    at = theta(-1.0, -1.6)
    total = torch.zeros(2, simulator.lens.grid.native, simulator.lens.grid.native)
    for n in range(100):
        (subhalos,) = simulator.draw_subhalos(at, torch.tensor([1.6]), generator=generator(n))
        total += torch.stack(simulator.deflection(at[0], torch.tensor(1.6), subhalos)) / 100
    x, y = simulator.lens.grid.centers(native=True)
    inside = (x.square() + y.square()).sqrt() < 2.0
    without = 0.1 * 1.6 * 2.0 / 3.0  # deflection at 2 arcsec by the mean of the subhalos
    assert float(total[:, inside].abs().mean()) < 0.1 * without


def test_images_of_a_lens_without_subhalos_are_strong_lens_images() -> None:
    simulator = LensSubhalos(lens=SMALL)
    nothing = simulator.deflection(theta(-300.0, -1.9)[0], torch.tensor(1.6), torch.zeros(0, 3))
    assert max(float(n.abs().max()) for n in nothing) == 0.0


def test_residuals_of_a_smooth_lens_are_noise_and_of_one_with_subhalos_are_not() -> None:
    """Power of noise is 1, less what 14 fitted numbers take out of the lowest of six bands of 250 frequencies."""
    case = yaml.safe_load((ROOT / "configs" / "lens_subhalos.yaml").read_text(encoding="utf-8"))
    simulator = LensSubhalos(**case["simulator"]["options"])
    smooth = simulator.features(simulator.simulate(theta(-300.0, -1.9, 40), generator=generator(1)))
    assert smooth.shape == (40, 6)
    error = smooth.std(0) / 40**0.5
    assert bool((smooth.mean(0)[1:].abs() < 4 * error[1:]).all())
    assert -0.12 < float(smooth.mean(0)[0]) < 0.0
    clumpy = simulator.features(simulator.simulate(theta(-1.0, -1.9, 40), generator=generator(2)))
    assert bool((clumpy.mean(0)[:4] > 0.3).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_mass": 1e11}, "least_mass < largest_mass"),
        ({"lens_redshift": 0.9}, "lens_redshift < source_redshift"),
        ({"priors": {"fraction": {"uniform": [0, 1]}}}, "no key 'fraction'"),
        ({"region_arcsec": -1}, "must be positive"),
    ],
)
def test_a_bad_option_says_what_to_change(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LensSubhalos(**options)
