"""Velocities of several instruments against radvel, against the simulator of one instrument, and under masks."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to

from simulators.multi_instrument_velocity import MultiInstrumentVelocity
from simulators.noise_laws import LIKELIHOODS
from simulators.priors import prior_of, sample
from simulators.protocol import Data
from simulators.radial_velocity import RadialVelocity

DATA = Path(__file__).resolve().parents[2] / "data"
DESIGN = {"observation": str(DATA / "hd164922.h5")}
LIMITS = (((900, 1600), (2456200, 2457300)), ((60, 95), (2456241, 2456316)))
POINT = (1198.4, 2456768.0, 1.978, -0.232, 0.15, 75.73, 2456279.5, 0.79, -0.25, 0.446)  # radvel's example run
JITTERS = (2.68, 2.94, 1.11)
EACH = {name: {"uniform": [0, 10]} for name in ("k", "j", "a")}
RANDOM = {"points": [30, 60], "baseline": 4000, "start": 2455000, "error": [1, 2]}


@pytest.fixture(scope="module")
def radvel() -> ModuleType:
    """radvel, which warns on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("radvel", reason="radvel is the oracle of velocities")


def planet(period: tuple[float, float], conjunction: tuple[float, float]) -> dict[str, Any]:
    shape = {"secosw": {"uniform": [-1, 1]}, "sesinw": {"uniform": [-1, 1]}}
    return {
        "period": {"uniform": list(period)},
        "conjunction": {"uniform": list(conjunction)},
        "logk": {"uniform": [-1, 4]},
    } | shape


def hd164922(**changes: Any) -> MultiInstrumentVelocity:
    options: dict[str, Any] = {"planets": [planet(*v) for v in LIMITS], "jit": EACH, "design": DESIGN}
    return MultiInstrumentVelocity(**(options | changes))


def observed(simulator: MultiInstrumentVelocity) -> Data:
    return simulator.read_observation(DATA / "hd164922.h5")[0]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def point(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# ------------------------------------------------------------ the likelihood


def radvel_likelihood(radvel: ModuleType, x: Data, **trend: float) -> float:
    """radvel's composite likelihood with its own analytic offsets, one for each instrument."""
    names = ("per", "tc", "logk", "secosw", "sesinw")
    parameters = radvel.Parameters(2, basis="per tc secosw sesinw logk")
    for n in (1, 2):
        for name, value in zip(names, POINT[5 * (n - 1) :][:5], strict=True):
            parameters[f"{name}{n}"] = radvel.Parameter(value=value)
    for name in ("dvdt", "curv"):
        parameters[name] = radvel.Parameter(value=trend.get(name, 0.0))
    model = radvel.RVModel(parameters, time_base=2456778)
    parts = []
    for i, name in enumerate("kja"):
        of = (x["instrument"][0] == i) & (x["present"][0] > 0.5)
        if not bool(of.any()):
            continue
        t, v, error = (x[key][0][of].double().numpy() for key in ("time", "velocity", "velocity_error"))
        part = radvel.likelihood.RVLikelihood(model, t, v, error, suffix=f"_{name}")
        part.params[f"gamma_{name}"] = radvel.Parameter(value=0.0, vary=False, linear=True)
        part.params[f"jit_{name}"] = radvel.Parameter(value=JITTERS[i])
        parts.append(part)
    composite = radvel.likelihood.CompositeLikelihood(parts)
    composite.vector.dict_to_vector()
    return float(composite.logprob())


def test_log_likelihood_is_radvels(radvel: ModuleType) -> None:
    simulator = hd164922()
    x = observed(simulator)
    got = float(simulator.log_likelihood(point(*POINT, *JITTERS), x))
    assert got == pytest.approx(radvel_likelihood(radvel, x), abs=1e-6)


def test_log_likelihood_with_a_trend_and_absent_points_is_radvels(radvel: ModuleType) -> None:
    simulator = hd164922(dvdt={"normal": [0, 1]}, curv=1e-8, reference_epoch=2456778)
    x = observed(simulator)
    x["present"][0, 40:70] = 0.0
    got = float(simulator.log_likelihood(point(*POINT, 1e-4, *JITTERS), x))
    assert got == pytest.approx(radvel_likelihood(radvel, x, dvdt=1e-4, curv=1e-8), abs=1e-6)


def test_a_missing_instrument_counts_nothing(radvel: ModuleType) -> None:
    simulator = hd164922()
    x = observed(simulator)
    x["present"][x["instrument"] == 2] = 0.0
    got = float(simulator.log_likelihood(point(*POINT, *JITTERS), x))
    assert got == pytest.approx(radvel_likelihood(radvel, x), abs=1e-6)


def test_with_one_instrument_it_is_radial_velocity() -> None:
    one = RadialVelocity(planets=[planet(*v) for v in LIMITS], jit={"uniform": [0, 10]}, design=DESIGN, instrument="j")
    several = hd164922(jit={"uniform": [0, 10]})
    x = observed(several)
    x["present"] = (x["instrument"] == 1).double()
    theta = point(*POINT, 2.9)
    expected = one.log_likelihood(theta, one.read_observation(DATA / "hd164922.h5")[0])
    torch.testing.assert_close(several.log_likelihood(theta, x), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_what_stands_in_absent_points_does_not_matter(likelihood: str) -> None:
    simulator = hd164922(design=RANDOM, instruments=["k", "j", "a"], size=60, likelihood=likelihood)
    theta = sample(prior_of(simulator), 5, generator())
    x = simulator.simulate(theta, generator=generator(1))
    absent = x["present"] < 0.5
    assert bool(absent.any())
    other = dict(x)
    for name, value in {"time": 2456000.0, "velocity": 1e4, "velocity_error": 3.0, "instrument": 2.0}.items():
        other[name] = torch.where(absent, torch.tensor(value, dtype=x[name].dtype), x[name])
    for quantity in (simulator.features, lambda v: simulator.pilot(v)[0], lambda v: simulator.log_likelihood(theta, v)):
        torch.testing.assert_close(quantity(x), quantity(other), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", ["gaussian", "student_t"])
def test_offsets_change_nothing(dtype: torch.dtype, likelihood: str) -> None:
    simulator = hd164922(likelihood=likelihood)
    x = observed(simulator)
    shifted = dict(x)
    shifted["velocity"] = x["velocity"] + torch.tensor([3e4, -200.0, 7.0]).double()[x["instrument"].long()]
    theta = point(*POINT, *JITTERS).to(dtype)
    tolerance = 1e-6 if dtype is torch.float64 else 0.05
    expected = simulator.log_likelihood(theta, x)
    torch.testing.assert_close(simulator.log_likelihood(theta, shifted), expected, atol=tolerance, rtol=0)


def test_the_offset_is_integrated_over() -> None:
    """A numerical integral over both offsets of a tiny star."""
    design = {"points": 6, "baseline": 30, "error": 1}
    circle = {"period": {"uniform": [5, 10]}, "conjunction": {"uniform": [0, 5]}, "logk": {"normal": [1, 1]}}
    simulator = MultiInstrumentVelocity(planets=[circle], jit=0.5, design=design, instruments=["a", "b"])
    theta = point(7.0, 2.0, 1.0)
    x = simulator.simulate(theta, generator=generator(4))
    gamma = torch.linspace(-40, 40, 2001, dtype=torch.float64)
    residual = x["velocity"][0] - simulator.velocity(theta, x["time"])[0]
    variance = x["velocity_error"][0].double().square() + 0.25
    total = 0.0
    for i in (0, 1):
        of = x["instrument"][0] == i
        assert bool(of.any())
        density = torch.distributions.Normal(gamma[:, None], variance[of].sqrt()).log_prob(residual[of]).sum(-1)
        total += float(torch.logsumexp(density, 0)) + math.log(80 / 2000)
    assert float(simulator.log_likelihood(theta, x)) == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("planets", [1, 2, 3])
def test_a_thousand_points_with_missing_instruments_of_one_to_three_planets(radvel: ModuleType, planets: int) -> None:
    """The density of each instrument's differences from its first point, which the flat offset leaves, in dense matrices."""
    design = {"points": [900, 1000], "baseline": 4000, "error": [1, 2], "absent": 0.3, "absent_instrument": 0.5}
    limits = (((5, 9), (0, 5)), ((40, 70), (0, 40)), ((800, 1500), (0, 800)))
    options: dict[str, Any] = {"planets": [planet(*v) for v in limits[:planets]], "jit": {"uniform": [0, 3]}}
    simulator = MultiInstrumentVelocity(**options, design=design, instruments=["k", "j", "a"])
    orbits = [(6.1, 3.0, 1.2, 0.3, -0.2), (55.0, 9.0, 1.5, -0.4, 0.1), (1111.0, 500.0, 2.0, 0.1, 0.5)][:planets]
    theta = point(*[value for orbit in orbits for value in orbit], 1.3)
    x = simulator.simulate(theta.repeat(4, 1), generator=generator(11))
    assert x["present"].shape == (4, 1000)
    used = set()
    for row in range(4):
        star = {name: values[row : row + 1] for name, values in x.items()}
        time = star["time"][0].numpy()
        model = np.zeros(1000)
        for period, conjunction, logk, secosw, sesinw in orbits:
            e, w = secosw**2 + sesinw**2, math.atan2(sesinw, secosw)
            start = radvel.orbit.timetrans_to_timeperi(conjunction, period, e, w)
            model += radvel.kepler.rv_drive(time, [period, start, e, w, math.exp(logk)], use_c_kepler_solver=False)
        residual = star["velocity"][0] - torch.from_numpy(model)
        variance = star["velocity_error"][0].double().square() + 1.3**2
        expected = 0.0
        for i in range(3):
            of = (star["instrument"][0] == i) & (star["present"][0] > 0.5)
            if int(of.sum()) < 2:  # one point says nothing but its offset
                continue
            used.add((row, i))
            r, v = residual[of], variance[of]
            normal = torch.distributions.MultivariateNormal(torch.zeros_like(r[1:]), v[1:].diag() + v[0])
            expected += float(normal.log_prob(r[1:] - r[0]))
        assert float(simulator.log_likelihood(theta, star)) == pytest.approx(expected, abs=1e-6)
    assert 4 <= len(used) < 12  # instruments are missing
    location, scale = simulator.pilot(x)
    names = [p.name for p in simulator.parameters]
    for p, orbit in enumerate(orbits, start=1):
        d = names.index(f"logk{p}")
        prior = simulator.parameters[d].prior
        assert prior is not None
        u = biject_to(prior.support).inv(torch.tensor(orbit[2]).double())
        assert bool(((location[:, d] - u).abs() < 5 * scale[:, d]).all())


def test_too_eccentric_is_impossible() -> None:
    theta = point(*POINT, *JITTERS)
    theta[0, 3] = 0.995
    assert float(hd164922().log_likelihood(theta, observed(hd164922()))) == -math.inf


# ------------------------------------------------------------ outliers


def test_student_t_of_many_degrees_of_freedom_is_gaussian() -> None:
    x = observed(hd164922())
    student = hd164922(likelihood="student_t", noise={"freedom": 1e8})
    theta = point(*POINT, *JITTERS)
    expected = hd164922().log_likelihood(theta, x)
    torch.testing.assert_close(student.log_likelihood(theta, x), expected, atol=1e-4, rtol=0)


def with_an_outlier(x: Data, shift: float) -> Data:
    velocity = x["velocity"].clone()
    velocity[0, 100] += shift
    return x | {"velocity": velocity}


def test_an_outlier_moves_a_robust_first_guess_less() -> None:
    """One velocity of 401, 100 m/s off: the orbits move by less than one of their scales, those of a least-squares fit by two."""
    moves = {}
    for likelihood in ("gaussian", "student_t", "mixture"):
        simulator = hd164922(likelihood=likelihood)
        x = observed(simulator)
        before, scale = simulator.pilot(x)
        after, _ = simulator.pilot(with_an_outlier(x, 100.0))
        moves[likelihood] = float(((after - before) / scale)[:, :10].abs().max())
    assert moves["gaussian"] > 2
    assert max(moves["student_t"], moves["mixture"]) < 0.8


def test_an_outlier_costs_a_robust_likelihood_little() -> None:
    theta = {"gaussian": point(*POINT, *JITTERS), "student_t": point(*POINT, *JITTERS)}
    theta["mixture"] = point(*POINT, *JITTERS, 0.01)
    cost = {}
    for likelihood, value in theta.items():
        simulator = hd164922(likelihood=likelihood)
        x = observed(simulator)
        both = [float(simulator.log_likelihood(value, data)) for data in (x, with_an_outlier(x, 100.0))]
        cost[likelihood] = both[0] - both[1]
    assert cost["gaussian"] > 500
    assert 0 < cost["student_t"] < 30
    assert cost["mixture"] < 0.1 * cost["gaussian"]


# ------------------------------------------------------------ the first guess


def test_the_first_guess_of_hd_164922_is_the_published_posterior() -> None:
    """radvel's own example run on these 401 velocities (its repository, example_planets/HD164922_results.tex): median and error."""
    simulator = hd164922()
    location, scale = simulator.pilot(observed(simulator))
    published = {
        "per1": (1198.4, 4.1),
        "logk1": (1.978, 0.034),
        "secosw1": (-0.232, 0.073),
        "sesinw1": (0.15, 0.12),
        "per2": (75.73, 0.0425),
        "logk2": (0.79, 0.135),
        "jit_k": (2.68, 0.375),
        "jit_j": (2.94, 0.145),
        "jit_a": (1.11, 0.415),
    }
    for d, parameter in enumerate(simulator.parameters):
        assert parameter.prior is not None
        if parameter.name not in published:
            continue
        to_theta = biject_to(parameter.prior.support)
        middle, up, down = (float(to_theta(location[0, d] + s * scale[0, d])) for s in (0, 1, -1))
        value, error = published[parameter.name]
        assert abs(middle - value) < 0.5 * error
        assert 0.6 < (up - down) / 2 / error < 1.5


def test_the_first_guess_finds_drawn_planets() -> None:
    """K above 5 m/s at 1 m/s: the truth lies within a few scales, nearly always."""
    circle = {"period": {"uniform": [20, 60]}, "conjunction": {"uniform": [0, 20]}, "logk": {"uniform": [1.6, 3]}}
    design = {"points": 60, "baseline": 900, "error": 1}
    simulator = MultiInstrumentVelocity(
        planets=[circle], jit={"uniform": [0, 2]}, design=design, instruments=["a", "b"]
    )
    theta = sample(prior_of(simulator), 100, generator(6))
    location, scale = simulator.pilot(simulator.simulate(theta, generator=generator(7)))
    u = torch.stack(
        [biject_to(p.prior.support).inv(theta[:, d]) for d, p in enumerate(simulator.parameters) if p.prior], -1
    )
    pull = ((u - location) / scale).abs()
    # conjunctions of shorter periods than the prior's range have equals a period away; periods and ln K have none
    assert float((pull[:, [0, 2]] < 4).double().mean()) > 0.97
    assert 0.5 < float(pull[:, [0, 2]].median()) < 0.9  # 0.67 for a Gaussian


def test_points_are_features_too() -> None:
    simulator = hd164922(design=RANDOM, instruments=["k", "j", "a"], size=60, inputs="points")
    theta = sample(prior_of(simulator), 3, generator())
    x = simulator.simulate(theta, generator=generator(1))
    items = simulator.features(x).unflatten(1, simulator.feature_shape)
    assert torch.equal(items[..., -1], x["present"])
    assert bool((items[x["present"] < 0.5] == 0).all())


# ------------------------------------------------------------ files, views, options


def test_views_are_folded_at_each_planet() -> None:
    simulator = hd164922()
    x = observed(simulator)
    theta = point(*POINT, *JITTERS).repeat(3, 1)
    views = simulator.predictive_views(theta, x)
    assert [v.name for v in views] == ["velocities", "planet 1", "planet 2"]
    first = views[1]
    assert float(first.abscissa.abs().max()) <= 0.5
    expected = np.interp(first.abscissa.numpy(), first.grid.numpy(), first.curves[0].numpy())
    chi2 = np.sum(((first.observed.numpy() - expected) / first.error.numpy()) ** 2)
    assert 0.75 < chi2 / 401 < 1.25  # error sqrt(2 / 401) = 0.07
    assert float(views[2].curves.abs().max()) < 2 * math.exp(POINT[7])  # the other planet is not in it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planets": []}, r"planets: expected a list of one to 3 mappings"),
        ({"planets": [planet(*LIMITS[0]) | {"period": 1200}]}, r"period is always free.*radial_velocity takes fixed"),
        ({"planets": [planet(*LIMITS[0]) | {"logk": 2}]}, r"multi_instrument_velocity: planet 1: logk is always free"),
        ({"jit": {"k": 1.0, "j": 2.0}}, r"jit: none for instrument 'a'"),
        ({"jit": EACH | {"b": 1.0}}, r"jit: no key 'b'"),
        ({"dvdt": 1.0}, r"dvdt and curv need `reference_epoch`"),
        ({"inputs": "all"}, r"inputs: expected summary or points, got 'all'"),
        ({"size": 100}, r"has 401 velocities, the simulator 100"),
        ({"instruments": ["k", "j"]}, r"instrument 'a' is not among"),
        ({"offset_scale": -1}, r"offset_scale must not be negative"),
    ],
)
def test_a_bad_option_says_what_to_change(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hd164922(**changes)
