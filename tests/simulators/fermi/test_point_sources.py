"""Photons of point sources: their mean, their variance, and where they fall."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simulators.fermi.king_psf import King, KingPsf
from simulators.fermi.point_sources import mean_sources, source_photons, source_template
from simulators.fermi.sky import Sky, read_sky
from simulators.fermi.source_counts import source_counts
from tests.simulators.fermi.synthetic_sky import write_synthetic_sky

SHAPE = (15.0, 1.5, -1.0, 20.0, 3.0)
POINT = KingPsf(King(1.0, 5.0), King(1.0, 5.0), core_share=1.0, scale_rad=1e-6)
"""Practically no smearing."""


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Sky:
    return read_sky(write_synthetic_sky(tmp_path_factory.mktemp("sky") / "sky.h5"))


def photons(sky: Sky, psf: KingPsf, rows: int, strength: float = 1.5, seed: int = 0) -> torch.Tensor:
    return source_photons(
        torch.full((rows,), strength).double(),
        source_counts(torch.tensor([SHAPE]).expand(rows, -1), (0.1, 100)),
        source_template(sky.templates["gce"], sky.exposure, sky.corner, sky.normalisation, sky.nside),
        psf=psf,
        pixels=sky.table,
        size=sky.size,
        generator=torch.Generator().manual_seed(seed),
    )


def test_without_smearing_pixels_have_the_moments_of_a_compound_poisson(sky: Sky) -> None:
    r"""Mean S T_p; variance S T_p (1 + e_p <F^2> / <F>), F the flux and e_p the exposure of the pixel."""
    rows = 3000
    counts = photons(sky, POINT, rows).double()
    mean = 1.5 * sky.templates["gce"][sky.analysis]
    law = source_counts(torch.tensor([SHAPE]), (0.1, 100))
    variance = mean * (1 + sky.exposure[sky.analysis] * float(law.moment(2) / law.moment(1)))
    pull = (counts.mean(0) - mean) / (variance / rows).sqrt()
    assert float(pull.square().mean()) == pytest.approx(1.0, abs=4 * (2 / len(mean)) ** 0.5)
    total = counts.sum(1)
    error = (variance.sum() / rows).sqrt()
    assert abs(float(total.mean() - mean.sum())) < 4 * float(error)
    # the variance of a sample variance, for tails this heavy, is measured and not known
    ratio = counts.var(0) / variance
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * float(ratio.std()) / len(mean) ** 0.5)


def test_exposure_brightens_sources_and_does_not_add_any(sky: Sky) -> None:
    """Doubling the exposure everywhere leaves S the mean number of photons: half the sources, each twice as bright."""
    law = source_counts(torch.tensor([SHAPE]), (0.1, 100))
    once, twice = (
        source_template(sky.templates["gce"], factor * sky.exposure, sky.corner, sky.normalisation, sky.nside)
        for factor in (1, 2)
    )
    strength = torch.ones(1).double()
    torch.testing.assert_close(
        mean_sources(strength, law, once), 2 * mean_sources(strength, law, twice), rtol=1e-6, atol=0
    )


def test_smearing_carries_photons_of_the_centre_into_what_is_analysed(sky: Sky) -> None:
    """The brightest pixels are those next to the plane and the centre, which are not analysed; far away nothing changes."""
    wide = KingPsf(King(1.0, 5.0), King(1.0, 5.0), core_share=1.0, scale_rad=0.03)
    sharp, smeared = photons(sky, POINT, 400).mean(0), photons(sky, wide, 400, seed=1).mean(0)
    order = sky.templates["gce"][sky.analysis].argsort()
    assert float(smeared[order[-10:]].sum()) > 1.2 * float(sharp[order[-10:]].sum())
    assert float(smeared[order[:300]].sum()) == pytest.approx(float(sharp[order[:300]].sum()), rel=0.1)


def test_photons_depend_on_the_generator_alone(sky: Sky) -> None:
    torch.manual_seed(0)
    first = photons(sky, sky.psf, 20)
    torch.manual_seed(1)
    assert torch.equal(first, photons(sky, sky.psf, 20))
    assert not torch.equal(first, photons(sky, sky.psf, 20, seed=1))


def test_no_sources_send_no_photons(sky: Sky) -> None:
    assert float(photons(sky, sky.psf, 3, strength=0.0).sum()) == 0


def test_psf_of_the_sky_smears_as_its_containment_says(tmp_path: Path) -> None:
    """One bright pixel: the share of photons that stay within a radius, against the PSF and a pixel's extent."""
    sky = read_sky(write_synthetic_sky(tmp_path / "fine.h5", nside=128, radius_deg=12))
    template = torch.zeros_like(sky.templates["gce"])
    target = int(((sky.z - 0.1).abs() + sky.phi.abs() + 9.0 * ~sky.analysis).argmin())
    template[target] = 1.0
    normalisation = torch.zeros_like(sky.normalisation)
    normalisation[target] = True
    counts = source_photons(
        torch.full((50,), 400.0).double(),
        source_counts(torch.tensor([SHAPE]).expand(50, -1), (0.1, 100)),
        source_template(template, sky.exposure, sky.corner, normalisation, sky.nside),
        psf=sky.psf,
        pixels=sky.table,
        size=sky.size,
        generator=torch.Generator().manual_seed(0),
    ).sum(0)
    phi, z = sky.phi[sky.analysis], sky.z[sky.analysis]
    phi_0, z_0 = sky.phi[target], sky.z[target]
    angle = (z * z_0 + (1 - z**2).sqrt() * (1 - z_0**2).sqrt() * (phi - phi_0).cos()).clamp(max=1).acos()
    emitted = 50 * 400.0
    for radius_deg in (1.0, 2.0):
        inside = float(counts[angle < radius_deg * torch.pi / 180].sum()) / emitted
        low, high = (float(sky.psf.containment(torch.tensor((radius_deg + d) * torch.pi / 180))) for d in (-0.6, 0.6))
        spread = 4 * (float(source_counts(torch.tensor([SHAPE]), (0.1, 100)).moment(2)) / emitted) ** 0.5
        assert low - spread < inside < high + spread
