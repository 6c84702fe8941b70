"""Orbits at the edges of their parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from simulators.orbit import MAX_ECCENTRICITY, Orbit, Quantity, orbit_from_spec, orbital_elements
from simulators.protocol import Parameter

TIME = torch.linspace(0, 40, 7, dtype=torch.float64)[None]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_elements_are_those_of_the_polar_form() -> None:
    e, omega = vector(0.01, 0.3, 0.9), vector(0.4, -2.0, 3.0)
    got = orbital_elements(e.sqrt() * omega.cos(), e.sqrt() * omega.sin())
    for value, expected in zip(got, (e, omega.cos(), omega.sin()), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)


def test_elements_have_finite_gradients_at_the_origin_and_beyond_the_bound() -> None:
    secosw, sesinw = vector(0.0, 1e-9, 1.0, 30.0).requires_grad_(), vector(0.0, 0.0, 1.0, 0.0).requires_grad_()
    eccentricity, cos_omega, sin_omega = orbital_elements(secosw, sesinw)
    assert eccentricity.tolist() == [0.0, pytest.approx(1e-18), MAX_ECCENTRICITY, MAX_ECCENTRICITY]
    torch.testing.assert_close(cos_omega.square() + sin_omega.square(), torch.ones(4, dtype=torch.float64))
    for gradient in torch.autograd.grad((eccentricity + cos_omega + sin_omega).sum(), (secosw, sesinw)):
        assert bool(gradient.isfinite().all())


def test_vanishing_eccentricity_is_the_circular_orbit() -> None:
    theta = torch.zeros(1, 3, dtype=torch.float64)
    period, conjunction, logk = Quantity(11.0), Quantity(3.0), Quantity(0.0, 0)
    circular = Orbit(period, conjunction, logk)
    round_orbit = Orbit(period, conjunction, logk, Quantity(0.0, 1), Quantity(0.0, 2))
    torch.testing.assert_close(round_orbit.velocity(theta, TIME), circular.velocity(theta, TIME), rtol=0, atol=1e-14)
    assert float(circular.velocity(theta, vector(3.0)[None]).abs()) < 1e-15  # transit: no velocity
    assert float(circular.velocity(theta, vector(3.0 + 11 / 4)[None])) == pytest.approx(-1.0)  # then approaching


def test_fixed_and_free_quantities_give_the_same_orbit() -> None:
    values = (11.0, 3.0, 0.7, 0.3, -0.4)
    free = Orbit(Quantity(0.0, 0), Quantity(0.0, 1), Quantity(0.0, 2), Quantity(0.0, 3), Quantity(0.0, 4))
    fixed = Orbit(Quantity(11.0), Quantity(3.0), Quantity(0.0, 2), Quantity(0.3), Quantity(-0.4))
    theta = vector(*values)[None]
    torch.testing.assert_close(free.velocity(theta, TIME), fixed.velocity(theta, TIME), rtol=1e-12, atol=1e-12)
    assert float(free.velocity(theta, TIME).abs().max()) < 2.1 * math.exp(0.7)


def test_free_quantities_are_declared_with_the_median_of_their_prior() -> None:
    declared: list[Parameter] = []
    spec: dict[str, Any] = {"period": 5, "conjunction": {"uniform": [1, 3]}, "logk": {"normal": [1.6, 2]}}
    orbit = orbit_from_spec(spec, 2, declared)
    assert [p.name for p in declared] == ["tc2", "logk2"]
    assert orbit.period == Quantity(5.0)
    assert orbit.conjunction == Quantity(2.0, 0)
    assert orbit.secosw is None


def test_an_orbit_is_linear_where_its_ephemeris_is_fixed() -> None:
    period, conjunction, logk = Quantity(11.0), Quantity(3.0), Quantity(0.0, 0)
    circular = Orbit(period, conjunction, logk)
    assert circular.has_fixed_ephemeris
    assert circular.linear_columns == 1
    assert not Orbit(Quantity(11.0, 1), conjunction, logk).has_fixed_ephemeris
    assert not Orbit(period, Quantity(3.0, 1), logk).has_fixed_ephemeris
    eccentric = Orbit(period, conjunction, logk, Quantity(0.1), Quantity(0.2, 1))
    assert eccentric.has_fixed_ephemeris
    assert eccentric.linear_columns == 4
