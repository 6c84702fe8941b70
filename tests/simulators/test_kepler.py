"""Kepler's equation and Keplerian velocities, against radvel and finite differences."""

from __future__ import annotations

import math
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from simulators.kepler import (
    eccentric_anomaly,
    keplerian_velocity,
    mean_anomaly_at_conjunction,
    radial_velocity,
    time_periastron_from_conjunction,
    wrap_turns,
)

ECCENTRICITIES = (0.0, 1e-9, 0.1, 0.5, 0.9, 0.98, 0.99)


@pytest.fixture(scope="module")
def radvel() -> ModuleType:
    """radvel with its modules for orbits; it warns on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("radvel", reason="radvel is the oracle of orbits")
        pytest.importorskip("radvel.kepler")
        pytest.importorskip("radvel.orbit")
    return module


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def mean_anomalies() -> Tensor:
    """A grid, the neighbourhood of periastron where the equation is hardest, and exact multiples of pi."""
    near = torch.logspace(-15, 0, 200, dtype=torch.float64)
    exact = torch.tensor([0.0, math.pi, -math.pi, 2 * math.pi, -2 * math.pi, 100 * math.pi], dtype=torch.float64)
    return torch.cat([torch.linspace(-20, 20, 3001, dtype=torch.float64), near, -near, exact])


@pytest.mark.parametrize("eccentricity", ECCENTRICITIES)
def test_keplers_equation_holds_to_round_off(eccentricity: float) -> None:
    m = mean_anomalies()
    e = eccentric_anomaly(m, eccentricity)
    residual = e - eccentricity * e.sin() - m
    assert residual.abs().max() <= 8 * torch.finfo(torch.float64).eps * 20
    inner = m.abs() < math.pi  # there also relative to M, as far as the condition 1/(1 - e) allows
    relative = (residual / m)[inner & (m != 0)].abs()
    assert relative.max() <= 8 * torch.finfo(torch.float64).eps / (1 - eccentricity)


@pytest.mark.parametrize("eccentricity", ECCENTRICITIES)
def test_float32_is_as_good_as_float32_allows(eccentricity: float) -> None:
    m = torch.linspace(-math.pi, math.pi, 2001)
    e = eccentric_anomaly(m, eccentricity)
    exact = eccentric_anomaly(m.double(), float(torch.tensor(eccentricity)))
    assert e.dtype == torch.float32
    torch.testing.assert_close(e.double(), exact, rtol=1e-6 / (1 - eccentricity), atol=1e-7)


@pytest.mark.parametrize("eccentricity", [0.0, 0.3, 0.9, 0.985])
def test_gradient_is_that_of_the_implicit_function(eccentricity: float) -> None:
    m = torch.tensor([-9.0, -3.1, -0.4, -0.01, 0.02, 0.5, 3.0, 7.0], dtype=torch.float64, requires_grad=True)
    e = torch.full_like(m, eccentricity).requires_grad_()
    assert torch.autograd.gradcheck(eccentric_anomaly, (m, e + 1e-4), eps=1e-7, atol=1e-5, rtol=1e-5)
    anomaly = eccentric_anomaly(m, e)
    by_m, by_e = torch.autograd.grad(anomaly.sum(), (m, e))
    slope = 1 - eccentricity * anomaly.cos()
    torch.testing.assert_close(by_m, 1 / slope, rtol=1e-12, atol=0)
    torch.testing.assert_close(by_e, anomaly.sin() / slope, rtol=1e-12, atol=1e-12)


def test_solver_is_odd_and_keeps_whole_turns() -> None:
    m = torch.linspace(0, 3.1, 50, dtype=torch.float64)
    torch.testing.assert_close(eccentric_anomaly(-m, 0.7), -eccentric_anomaly(m, 0.7), rtol=0, atol=0)
    turned = eccentric_anomaly(m + 6 * math.pi, 0.7)
    torch.testing.assert_close(turned, eccentric_anomaly(m, 0.7) + 6 * math.pi, rtol=0, atol=1e-13)


def test_solver_broadcasts_and_works_under_vmap_and_no_grad() -> None:
    m, e = torch.rand(5, 1, 7, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64) * 0.9
    assert eccentric_anomaly(m, e).shape == (5, 3, 7)
    mapped = torch.func.vmap(eccentric_anomaly, in_dims=(0, None))(m, e)
    torch.testing.assert_close(mapped, eccentric_anomaly(m, e))


def test_wrapping_keeps_the_gradient_of_the_identity() -> None:
    turns = torch.tensor([0.2, 5.4, -7.7], dtype=torch.float64, requires_grad=True)
    wrapped = wrap_turns(turns)
    assert wrapped.abs().max() <= 0.5
    (gradient,) = torch.autograd.grad(wrapped.sum(), turns)
    assert gradient.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("eccentricity", np.linspace(0.0, 0.98, 8))
def test_velocity_agrees_with_radvel(radvel: ModuleType, eccentricity: float) -> None:
    t = np.linspace(-50.0, 1500.0, 801)
    period, conjunction, semi_amplitude = 37.123, 434.5, 5.0
    for omega in np.linspace(-3.1, 3.1, 9):
        periastron = radvel.orbit.timetrans_to_timeperi(conjunction, period, eccentricity, omega)
        ours = time_periastron_from_conjunction(conjunction, period, scalar(eccentricity), scalar(omega))
        assert abs(float(ours) - periastron) < 1e-10
        elements = np.array([period, periastron, eccentricity, omega, semi_amplitude])
        expected = radvel.kepler.rv_drive(t, elements)
        got = radial_velocity(
            torch.from_numpy(t), period, ours, scalar(eccentricity), scalar(omega), semi_amplitude
        ).numpy()
        assert np.abs(got - expected).max() < 1e-8


def test_velocity_agrees_with_radvel_at_periastron(radvel: ModuleType) -> None:
    """Epochs within a millionth of a period of periastron, at the highest eccentricity."""
    offsets = np.concatenate([-np.logspace(-9, -1, 60), [0.0], np.logspace(-9, -1, 60)])
    expected = radvel.kepler.rv_drive(offsets, np.array([10.0, 0.0, 0.98, 0.7, 3.0]))
    got = radial_velocity(torch.from_numpy(offsets), 10.0, 0.0, scalar(0.98), scalar(0.7), 3.0).numpy()
    assert np.abs(got - expected).max() < 1e-8


def test_conjunction_is_where_the_planet_is_in_front() -> None:
    """At conjunction nu + omega = pi/2, so that v = K e cos(omega): also at omega = -pi/2."""
    for omega in (-math.pi / 2, 0.0, 1.0, math.pi / 2, 3.0):
        o, e = scalar(omega), scalar(0.6)
        periastron = time_periastron_from_conjunction(100.0, 8.0, e, o)
        v = radial_velocity(scalar(100.0), 8.0, periastron, e, o, 2.0)
        assert abs(float(v) - 2.0 * 0.6 * math.cos(omega)) < 1e-12


def test_circular_limit_is_a_sine() -> None:
    m, o, zero = torch.linspace(-3, 3, 11, dtype=torch.float64), scalar(0.4), scalar(0.0)
    v = keplerian_velocity(m, zero, o.cos(), o.sin(), 2.0)
    torch.testing.assert_close(v, 2.0 * torch.cos(m + 0.4), rtol=0, atol=1e-14)
    assert abs(float(mean_anomaly_at_conjunction(zero, o.cos(), o.sin())) - (math.pi / 2 - 0.4)) < 1e-15


def test_velocity_gradients_match_finite_differences() -> None:
    t = torch.linspace(0, 30, 5, dtype=torch.float64)
    arguments = [scalar(v).requires_grad_() for v in (12.3, 4.0, 0.7, -1.2, 2.5)]

    def model(*elements: Tensor) -> Tensor:
        period, conjunction, e, omega, k = elements
        return radial_velocity(t, period, time_periastron_from_conjunction(conjunction, period, e, omega), e, omega, k)

    assert torch.autograd.gradcheck(model, arguments, eps=1e-7, atol=1e-5, rtol=1e-5)
