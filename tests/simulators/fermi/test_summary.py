"""Features against sums written out, and what they must see: point sources."""

from __future__ import annotations

import pytest
import torch

from simulators.fermi.inner_galaxy import FermiInnerGalaxy
from simulators.fermi.summary import PHOTONS, SIGNIFICANCE
from simulators.priors import prior_of, sample
from tests.simulators.fermi.synthetic_sky import write_synthetic_sky


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> FermiInnerGalaxy:
    return FermiInnerGalaxy(data=write_synthetic_sky(tmp_path_factory.mktemp("sky") / "sky.h5"))


def maps(simulator: FermiInnerGalaxy, rows: int, **fixed: float) -> torch.Tensor:
    theta = sample(prior_of(simulator), rows, torch.Generator().manual_seed(0))
    for name, value in fixed.items():
        theta[:, [p.name for p in simulator.parameters].index(name)] = value
    return simulator.simulate(theta, generator=torch.Generator().manual_seed(1))["counts"]


def test_source_photons_are_the_weighted_sum_over_neighbours(simulator: FermiInnerGalaxy) -> None:
    summary, counts = simulator.summary, maps(simulator, 2)
    fit = summary.fit(counts)
    residual = counts - fit.rate
    photons, error = summary.source_photons(residual, fit.rate)
    corner = simulator.sky.corner[simulator.sky.analysis].long()
    number = {tuple(c): i for i, c in enumerate(corner.tolist())}
    for i in range(0, simulator.sky.size, 37):
        top = bottom = 0.0
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                j = number.get((int(corner[i, 0]) + a, int(corner[i, 1]) + b))
                if j is not None:
                    k = float(summary.kernel[1 + a, 1 + b])
                    top += k * float(residual[1, j] / fit.rate[1, j])
                    bottom += k * k / float(fit.rate[1, j])
        assert float(photons[1, i]) == pytest.approx(top / bottom, rel=1e-9)
        assert float(error[1, i]) == pytest.approx(bottom**-0.5, rel=1e-9)


def test_kernel_is_a_share_with_most_in_the_middle(simulator: FermiInnerGalaxy) -> None:
    kernel = simulator.summary.kernel
    assert 0.95 < float(kernel.sum()) <= 1
    assert float(kernel[1, 1]) == float(kernel.max())


def test_every_pixel_is_counted_once_in_each_histogram(simulator: FermiInnerGalaxy) -> None:
    features = simulator.features({"counts": maps(simulator, 3)})
    regions = simulator.summary.region.shape[1]
    start = 14
    for edges in (SIGNIFICANCE, PHOTONS, SIGNIFICANCE):
        cells = (len(edges) + 1) * regions
        counted = features[:, start : start + cells].square().sum(1)
        torch.testing.assert_close(counted, torch.full_like(counted, simulator.sky.size))
        start += cells
    assert features.shape[1] == start + 5 * regions


def test_point_sources_make_the_residuals_wider(simulator: FermiInnerGalaxy) -> None:
    """The mean square of the significance, a feature, is that of Poisson noise without sources and larger with them."""
    regions = simulator.summary.region.shape[1]
    without = maps(simulator, 20, S_ps_gce=0.0, S_ps_dsk=0.0)
    with_sources = maps(simulator, 20, S_ps_gce=2.0, S_ps_dsk=2.0)
    variances = [
        simulator.features({"counts": m})[:, -5 * regions : -4 * regions].exp().mean(1) for m in (without, with_sources)
    ]
    assert float(variances[0].mean()) == pytest.approx(1.0, abs=0.1)
    assert bool((variances[1] > variances[0] + 0.1).all())
