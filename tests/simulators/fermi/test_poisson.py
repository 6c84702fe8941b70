"""The exact likelihood against scipy, and the simulator against its rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from simulators.fermi import poisson as module
from simulators.fermi.poisson import FermiPoisson
from simulators.priors import prior_of, sample
from tests.simulators.fermi.synthetic_sky import write_synthetic_sky


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> FermiPoisson:
    return FermiPoisson(data=write_synthetic_sky(tmp_path_factory.mktemp("sky") / "sky.h5"))


def draws(simulator: FermiPoisson, rows: int, seed: int = 0) -> torch.Tensor:
    return sample(prior_of(simulator), rows, torch.Generator().manual_seed(seed))


def test_log_likelihood_is_scipys(simulator: FermiPoisson) -> None:
    theta = draws(simulator, 5)
    x = simulator.simulate(theta, generator=torch.Generator().manual_seed(1))
    expected = poisson.logpmf(x["counts"].numpy(), simulator.rate(theta).numpy()).sum(1)
    np.testing.assert_allclose(simulator.log_likelihood(theta, x), expected, rtol=1e-12)


def test_log_likelihood_in_pieces_is_the_same(simulator: FermiPoisson, monkeypatch: pytest.MonkeyPatch) -> None:
    theta = draws(simulator, 33).view(11, 3, 6)
    x = simulator.simulate(theta[0], generator=torch.Generator().manual_seed(1))
    whole = simulator.log_likelihood(theta, x)
    monkeypatch.setattr(module, "NUMBERS", 4 * x["counts"].numel() + 1)
    torch.testing.assert_close(simulator.log_likelihood(theta, x), whole, rtol=1e-13, atol=0)


def test_mean_counts_are_the_rate(simulator: FermiPoisson) -> None:
    theta = draws(simulator, 1).expand(2000, -1)
    counts = simulator.simulate(theta, generator=torch.Generator().manual_seed(2))["counts"].double()
    rate = simulator.rate(theta[0])
    pull = (counts.mean(0) - rate) / (rate / 2000).sqrt()
    assert float(pull.square().mean()) == pytest.approx(1, abs=4 * (2 / len(rate)) ** 0.5)
    assert float(simulator.expected_counts(theta[0])) == pytest.approx(float(rate.sum()))


def test_pilot_covers_the_truth_as_often_as_it_says(simulator: FermiPoisson) -> None:
    theta = draws(simulator, 400)
    x = simulator.simulate(theta, generator=torch.Generator().manual_seed(3))
    location, scale = simulator.pilot(x)
    unconstrained = torch.logit((theta - simulator.low) / (simulator.high - simulator.low))
    inside = ((unconstrained - location).abs() < scale).double().mean(0)
    assert bool((inside > 0.55).all())
    assert bool((inside < 0.85).all())


def test_the_observed_map_is_read(reference: Path) -> None:
    path = reference / "observations" / "fermi_inner_galaxy" / "fermi_inner_galaxy_nside128.h5"
    simulator = FermiPoisson(data=path)
    x, ids = simulator.read_observation(path)
    assert ids == ["fermi_inner_galaxy_nside128"]
    assert float(x["counts"].sum()) == 104_635
