"""The least-squares fit: derivatives, and orbits that it must find again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from simulators.kepler import radial_velocity
from simulators.orbit_fit import COORDINATES, Velocities, fit_orbits, orbit_velocity
from simulators.periodogram import FrequencyGrid

SPAN = 800.0
ORBIT = (16.3, 0.7, math.log(6.0), 0.25, -0.2)  # cycles, mean longitude, ln K, k, h


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.parametrize("orbit", [ORBIT, (4.0, -2.0, 0.0, -0.6, 0.5), (4.0, 1.0, 1.0, 1e-4, 0.0)])
def test_derivatives_are_those_of_differences(orbit: tuple[float, ...]) -> None:
    elapsed = torch.linspace(-400, 400, 57, dtype=torch.float64)[None]
    _, columns = orbit_velocity(row(*orbit), elapsed, SPAN)
    for c in range(COORDINATES):
        step = 1e-5 * torch.eye(COORDINATES, dtype=torch.float64)[c]
        up, down = (orbit_velocity(row(*orbit) + s * step, elapsed, SPAN)[0] for s in (1, -1))
        assert float((columns[..., c] - (up - down) / 2e-5).abs().max()) < 1e-5


def test_velocity_is_keplers() -> None:
    cycles, longitude, log_k, k, h = ORBIT
    elapsed = torch.linspace(-400, 400, 57, dtype=torch.float64)[None]
    period, e, omega = SPAN / cycles, math.hypot(k, h), torch.tensor(math.atan2(h, k), dtype=torch.float64)
    periastron = -period * (longitude - float(omega)) / (2 * math.pi)
    expected = radial_velocity(
        elapsed, period, periastron, torch.tensor(e, dtype=torch.float64), omega, math.exp(log_k)
    )
    torch.testing.assert_close(orbit_velocity(row(*ORBIT), elapsed, SPAN)[0], expected, atol=1e-9, rtol=0)


def stars(count: int, *, jitter: float = 2.0) -> Velocities:
    """Two instruments with offsets, two planets: `ORBIT`, and a circle with 90 cycles and K = 3 m/s."""
    points, g = 120, generator(3)
    elapsed = SPAN * (torch.rand(count, points, generator=g, dtype=torch.float64) - 0.5)
    code = torch.randint(2, (count, points), generator=g)
    membership = torch.nn.functional.one_hot(code, 2).double()
    circle = row(90.0, 0.3, math.log(3.0), 1e-9, 0.0)
    velocity = sum(orbit_velocity(o.expand(count, -1), elapsed, SPAN)[0] for o in (row(*ORBIT), circle))
    velocity = velocity + 40.0 * code + math.hypot(1, jitter) * torch.randn(count, points, generator=g).double()
    linear = velocity.new_zeros(count, points, 0)
    return Velocities(elapsed, velocity, torch.ones_like(velocity), membership, linear, SPAN)


GRIDS = [FrequencyGrid.between(c[0] / SPAN, c[1] / SPAN, SPAN) for c in ((5, 50), (60, 120))]


def test_orbits_are_found_within_their_errors() -> None:
    count = 64
    fit = fit_orbits(stars(count), GRIDS, [True, False], typical_jitter=1.0, shared_jitter=True, free_jitter=True)
    truth = row(*ORBIT, 90.0, 0.3, math.log(3.0))
    error = fit.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    free = [0, 1, 2, 3, 4, 5, 6, 7]
    pull = (fit.y[:, free] - truth) / error[:, free]
    assert float(pull.abs().max()) < 6
    # 512 pulls of unit variance: 1 +- 0.06 for each star's eight, tighter overall
    assert abs(float(pull.square().mean()) - 1) < 0.3
    assert float(error[:, 8:].max()) == 0  # k and h of a circle are not fitted
    assert abs(float(fit.jitter.mean()) - 2.0) < 4 * 0.16 / math.sqrt(count)


def test_two_instruments_have_two_jitters() -> None:
    data = stars(32)
    noise = data.membership[..., 1] * 4.0 * torch.randn(data.velocity.shape, generator=generator(5)).double()
    noisier = Velocities(data.elapsed, data.velocity + noise, data.variance, data.membership, data.linear, SPAN)
    fit = fit_orbits(noisier, GRIDS, [True, False], typical_jitter=1.0, shared_jitter=False, free_jitter=True)
    jitter = fit.jitter.mean(0)
    assert abs(float(jitter[0]) - 2.0) < 0.25
    assert abs(float(jitter[1]) - math.hypot(2.0, 4.0)) < 0.4


def test_a_star_alone_is_fitted_as_among_others() -> None:
    data = stars(4)
    arrays = (data.elapsed, data.velocity, data.variance, data.membership, data.linear)
    elapsed, velocity, variance, membership, linear = (v[2:3] for v in arrays)
    one = Velocities(elapsed, velocity, variance, membership, linear, SPAN)
    options = {"typical_jitter": 1.0, "shared_jitter": True, "free_jitter": True}
    every, alone = (fit_orbits(d, GRIDS, [True, False], **options) for d in (data, one))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(every.y[2], alone.y[0])
