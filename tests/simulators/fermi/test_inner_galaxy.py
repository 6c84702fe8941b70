"""The whole model: mean counts, derived quantities, options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simulators.fermi.inner_galaxy import FermiInnerGalaxy
from simulators.fermi.poisson import FermiPoisson
from simulators.priors import prior_of, sample
from simulators.protocol import has_likelihood
from tests.simulators.fermi.synthetic_sky import write_synthetic_sky


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_sky(tmp_path_factory.mktemp("sky") / "sky.h5")


@pytest.fixture(scope="module")
def simulator(path: Path) -> FermiInnerGalaxy:
    return FermiInnerGalaxy(data=path)


def draws(simulator: FermiInnerGalaxy, rows: int) -> torch.Tensor:
    return sample(prior_of(simulator), rows, torch.Generator().manual_seed(0))


def test_it_is_implicit_and_has_the_parameters_of_the_file(simulator: FermiInnerGalaxy) -> None:
    assert not has_likelihood(simulator)
    names = [p.name for p in simulator.parameters]
    assert len(names) == 18
    assert names[0] == "S_gce_poiss"
    assert names[6:12] == ["S_ps_gce", "n1_gce", "n2_gce", "n3_gce", "Sb1_gce", "Sb2_gce"]


def test_without_sources_it_is_the_poisson_model(simulator: FermiInnerGalaxy, path: Path) -> None:
    theta = draws(simulator, 10)
    theta[:, [6, 12]] = 0.0
    ours = simulator.simulate(theta, generator=torch.Generator().manual_seed(1))["counts"]
    smooth = FermiPoisson(data=path).simulate(theta[:, :6], generator=torch.Generator().manual_seed(1))["counts"]
    assert torch.equal(ours, smooth)


def test_total_counts_are_as_expected(simulator: FermiInnerGalaxy) -> None:
    """Up to what the PSF carries over the edges of the mask, under one percent here."""
    theta = draws(simulator, 400)
    total = simulator.simulate(theta, generator=torch.Generator().manual_seed(1))["counts"].sum(1)
    ratio = total / simulator.expected_counts(theta)
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.01)


def test_derived_quantities(simulator: FermiInnerGalaxy) -> None:
    theta = draws(simulator, 3)
    theta[:, 0], theta[:, 6] = 0.5, 1.5
    torch.testing.assert_close(simulator.point_source_share(theta), torch.full((3,), 0.75).double())
    more = theta.clone()
    more[:, 12] += 1.0
    disk = simulator.sky.templates["dsk"]
    added = disk[simulator.sky.analysis].sum() / disk[simulator.sky.normalisation].mean()
    gained = simulator.expected_counts(more) - simulator.expected_counts(theta)
    torch.testing.assert_close(gained, added.expand(3))


def test_other_ranges_of_flux(path: Path) -> None:
    fainter = FermiInnerGalaxy(data=path, flux_range=(0.01, 200.0))
    assert fainter.flux_range == (0.01, 200.0)
    for bad in ((0.2, 100.0), (0.1, 30.0), (0.0, 100.0)):
        with pytest.raises(ValueError, match="flux_range"):
            FermiInnerGalaxy(data=path, flux_range=bad)


def test_pilot_says_nothing_about_what_templates_do_not_fix(simulator: FermiInnerGalaxy) -> None:
    x = simulator.simulate(draws(simulator, 4), generator=torch.Generator().manual_seed(1))
    location, scale = simulator.pilot(x)
    silent = [0, *range(6, 12), *range(13, 18)]
    assert bool((location[:, silent] == 0).all())
    assert bool((scale[:, silent] == 1).all())
    assert bool((location[:, [*range(1, 6), 12]] != 0).all())
