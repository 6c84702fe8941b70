"""Radial velocities against radvel, plain NumPy, and brute-force marginalisation of the offset."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simulators.priors import IndependentPrior, prior_of, sample
from simulators.protocol import Data, pilot_of
from simulators.radial_velocity import RadialVelocity

DATA = Path(__file__).resolve().parents[2] / "data"
EPHEMERIDES = ((20.885258, 2072.79438), (42.363011, 2082.62516))
LOG_K = {"normal": [math.log(5), 10]}
POINT = (1.5, 1.3, -0.03, 0.002, 2.2)  # near the posterior mean of K2-24
RANDOM_DESIGN = {"points": 24, "baseline": 120, "start": 2360, "error": 1.5, "error_scatter": 0.2}


@pytest.fixture(scope="module")
def radvel() -> ModuleType:
    """radvel, which warns on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("radvel", reason="radvel is the oracle of velocities")


def k2_24(**changes: Any) -> RadialVelocity:
    """K2-24 as in radvel's tutorial, some options changed."""
    planets = [{"period": period, "conjunction": conjunction, "logk": LOG_K} for period, conjunction in EPHEMERIDES]
    options: dict[str, Any] = {
        "planets": planets,
        "dvdt": {"normal": [0, 1]},
        "curv": {"normal": [0, 0.1]},
        "reference_epoch": 2420,
        "jit": {"normal": [math.log(3), 0.5]},
        "design": {"observation": str(DATA / "k2_24.h5")},
    }
    return RadialVelocity(**(options | changes))


def eccentric(**changes: Any) -> RadialVelocity:
    """Two planets: one with every orbital parameter free, one circular with fixed ephemeris."""
    free = {
        "period": {"normal": [20.9, 0.1]},
        "conjunction": {"normal": [2072.8, 0.3]},
        "logk": {"normal": [1.6, 1]},
        "secosw": {"uniform": [-1, 1]},
        "sesinw": {"uniform": [-1, 1]},
    }
    fixed = {"period": EPHEMERIDES[1][0], "conjunction": EPHEMERIDES[1][1], "logk": LOG_K}
    return k2_24(**({"planets": [free, fixed], "design": RANDOM_DESIGN} | changes))


def observed(simulator: RadialVelocity) -> Data:
    """The velocities of K2-24, one row."""
    return simulator.read_observation(DATA / "k2_24.h5")[0]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def point(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# ------------------------------------------------------------ parameters and options


def test_parameters_are_those_with_a_prior_in_order() -> None:
    assert [p.name for p in k2_24().parameters] == ["logk1", "logk2", "dvdt", "curv", "jit"]
    names = [p.name for p in eccentric().parameters]
    assert names == ["per1", "tc1", "logk1", "secosw1", "sesinw1", "logk2", "dvdt", "curv", "jit"]
    assert [p.unit for p in k2_24().parameters] == ["", "", "m / (s d)", "m / (s d2)", "m / s"]


def test_observables_say_what_is_drawn_against_what() -> None:
    velocity = next(o for o in k2_24().observables if o.name == "velocity")
    assert (velocity.shape, velocity.against, velocity.error) == ((32,), "time", "velocity_error")
    assert [o.role for o in k2_24().observables] == ["context", "context", "data"]


PLANET = {"period": 10, "conjunction": 3, "logk": LOG_K}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planets": [], "dvdt": 0, "curv": 0}, r"no planets and no trend"),
        ({"planets": PLANET}, r"planets: expected a list of mappings"),
        ({"planets": [7]}, r"planet 1: expected a mapping with period, conjunction, logk, got 7"),
        ({"planets": [PLANET | {"perod": 3}]}, r"planet 1: no key 'perod'; did you mean 'period'\?"),
        ({"planets": [PLANET, {"period": 10, "logk": LOG_K}]}, r"planet 2: conjunction is missing"),
        ({"planets": [PLANET | {"period": -10}]}, r"planet 1: period must be positive, got -10"),
        (
            {"planets": [PLANET | {"period": {"normal": [10, 5]}}]},
            r"period must be positive.*use log_normal or uniform",
        ),
        ({"planets": [PLANET | {"logk": 1.5}]}, r"logk is always free: give a prior"),
        ({"planets": [PLANET | {"secosw": 0.1}]}, r"secosw and sesinw belong together"),
        ({"planets": [PLANET | {"secosw": 0.9, "sesinw": 0.9}]}, r"must be below 0.99, got 1.62"),
        ({"planets": [PLANET | {"period": {"gauss": [1, 2]}}]}, r"per1: unknown distribution 'gauss'"),
        ({"reference_epoch": None}, r"dvdt and curv need `reference_epoch`"),
        ({"offset_scale": -1}, r"offset_scale must not be negative, got -1"),
        ({"jit": "much"}, r"jit: expected a number, got 'much'"),
        ({"design": None}, r"design: expected \{observation: FILE\}"),
        ({"design": {"observation": str(DATA / "hd164922.h5")}}, r"3 instruments \(a, j, k\).*option instrument"),
    ],
)
def test_a_bad_option_says_what_to_change(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        k2_24(**changes)


def test_nothing_free_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nothing is free"):
        RadialVelocity(dvdt=1.0, reference_epoch=0.0, design=RANDOM_DESIGN)


def test_an_instrument_is_selected() -> None:
    simulator = k2_24(design={"observation": str(DATA / "hd164922.h5")}, instrument="a")
    assert simulator.design.points == 73
    x, ids = simulator.read_observation(DATA / "hd164922.h5")
    assert x["velocity"].shape == (1, 73)
    assert ids == ["hd164922"]


def test_an_observation_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 32 velocities, the simulator's design 24: set design"):
        eccentric().read_observation(DATA / "k2_24.h5")


# ------------------------------------------------------------ the model


def radvel_parameters(radvel: ModuleType, planets: list[dict[str, float]], **others: float) -> Any:
    """radvel's parameters in the basis of this simulator."""
    parameters = radvel.Parameters(len(planets), basis="per tc secosw sesinw logk")
    for n, planet in enumerate(planets, start=1):
        for name, value in planet.items():
            parameters[f"{name}{n}"] = radvel.Parameter(value=value)
    for name, value in others.items():
        parameters[name] = radvel.Parameter(value=value)
    return parameters


ECCENTRIC_POINTS = (
    (20.9, 2072.8, 1.5, 0.0, 0.0),
    (21.0, 2072.1, 1.7, 0.5, -0.3),
    (20.8, 2073.0, 1.2, -0.7, 0.6),
    (20.9, 2072.8, 1.9, 0.0, -0.9),
    (20.9, 2072.8, 1.9, -0.95, 0.2),
)


@pytest.mark.parametrize("elements", ECCENTRIC_POINTS)
def test_velocity_agrees_with_radvel(radvel: ModuleType, elements: tuple[float, ...]) -> None:
    period, conjunction, logk, secosw, sesinw = elements
    first = {"per": period, "tc": conjunction, "secosw": secosw, "sesinw": sesinw, "logk": logk}
    second = {"per": EPHEMERIDES[1][0], "tc": EPHEMERIDES[1][1], "secosw": 0.0, "sesinw": 0.0, "logk": 1.3}
    parameters = radvel_parameters(radvel, [first, second], dvdt=-0.03, curv=0.002)
    t = np.linspace(2300.0, 2600.0, 500)
    expected = radvel.RVModel(parameters, time_base=2420)(t)
    theta = point(*elements, 1.3, -0.03, 0.002, 2.0)
    got = eccentric().velocity(theta, torch.from_numpy(t)[None])[0].numpy()
    assert np.abs(got - expected).max() < 1e-8


def test_log_likelihood_is_radvels(radvel: ModuleType) -> None:
    """radvel's likelihood with its own analytic offset, at the real velocities."""
    simulator = k2_24()
    x = observed(simulator)
    planets = [
        {"per": p, "tc": c, "secosw": 0.0, "sesinw": 0.0, "logk": k}
        for (p, c), k in zip(EPHEMERIDES, POINT[:2], strict=True)
    ]
    parameters = radvel_parameters(radvel, planets, dvdt=POINT[2], curv=POINT[3])
    t, v, error = (x[name][0].double().numpy() for name in ("time", "velocity", "velocity_error"))
    likelihood = radvel.likelihood.RVLikelihood(radvel.RVModel(parameters, time_base=2420), t, v, error)
    likelihood.params["gamma"] = radvel.Parameter(value=0.0, vary=False, linear=True)
    likelihood.params["jit"] = radvel.Parameter(value=POINT[4])
    likelihood.vector.dict_to_vector()
    assert float(simulator.log_likelihood(point(*POINT), x)) == pytest.approx(likelihood.logprob(), abs=1e-8)


def test_log_likelihood_of_k2_24_is_that_of_plain_numpy() -> None:
    simulator = k2_24()
    x = observed(simulator)
    t, v, error = (x[name][0].double().numpy() for name in ("time", "velocity", "velocity_error"))
    model = POINT[2] * (t - 2420) + POINT[3] * (t - 2420) ** 2
    for (period, conjunction), logk in zip(EPHEMERIDES, POINT[:2], strict=True):
        model = model - np.exp(logk) * np.sin(2 * np.pi * (t - conjunction) / period)
    s2, r = error**2 + POINT[4] ** 2, v - model
    chi2 = (r**2 / s2).sum() - (r / s2).sum() ** 2 / (1 / s2).sum()
    expected = -0.5 * chi2 - 0.5 * np.log(2 * np.pi * s2).sum() + 0.5 * np.log(2 * np.pi / (1 / s2).sum())
    assert float(simulator.log_likelihood(point(*POINT), x)) == pytest.approx(expected, abs=1e-9)
    assert float(simulator.log_likelihood(point(*POINT).float(), x)) == pytest.approx(expected, abs=1e-3)


def test_offset_is_marginalised_as_by_quadrature() -> None:
    simulator = k2_24()
    x = observed(simulator)
    theta = point(1.2, 1.0, 0.01, 0.001, -1.5)
    residual = x["velocity"] - simulator.velocity(theta, x["time"])
    sigma = (x["velocity_error"].double().square() + 1.5**2).sqrt()
    gamma = torch.linspace(-40, 40, 40_001, dtype=torch.float64)[:, None]
    log_integrand = torch.distributions.Normal(gamma, sigma).log_prob(residual).sum(-1)
    expected = torch.logsumexp(log_integrand, 0) + math.log(80 / 40_000)
    torch.testing.assert_close(simulator.log_likelihood(theta, x)[0], expected, rtol=0, atol=1e-9)


def test_sign_of_jitter_has_no_meaning() -> None:
    simulator = k2_24()
    x = observed(simulator)
    positive, negative = point(*POINT), point(*POINT[:4], -POINT[4])
    assert torch.equal(simulator.log_likelihood(positive, x), simulator.log_likelihood(negative, x))


@pytest.mark.parametrize("shift", [1e3, 1e5])
def test_a_shift_of_all_velocities_changes_nothing(shift: float) -> None:
    simulator = k2_24()
    x = observed(simulator)
    shifted = x | {"velocity": x["velocity"] + shift}
    for theta in (point(*POINT), point(*POINT).float()):
        torch.testing.assert_close(
            simulator.log_likelihood(theta, shifted), simulator.log_likelihood(theta, x), rtol=1e-6, atol=1e-9
        )
    torch.testing.assert_close(simulator.features(shifted), simulator.features(x), rtol=0, atol=1e-9)


# ------------------------------------------------------------ gradients and shapes


@pytest.mark.parametrize("elements", [ECCENTRIC_POINTS[1], ECCENTRIC_POINTS[2], ECCENTRIC_POINTS[4]])
def test_gradient_of_the_likelihood_matches_finite_differences(elements: tuple[float, ...]) -> None:
    simulator = eccentric()
    theta = point(*elements, *POINT[1:]).requires_grad_()
    x = simulator.simulate(theta.detach(), generator=generator())
    assert torch.autograd.gradcheck(lambda t: simulator.log_likelihood(t, x), (theta,), eps=1e-7, atol=2e-4, rtol=1e-4)


def test_eccentricities_beyond_the_bound_are_excluded_without_nan() -> None:
    simulator = eccentric()
    inside = (*ECCENTRIC_POINTS[1], *POINT[1:])
    beyond = [(*inside[:3], secosw, sesinw, *inside[5:]) for secosw, sesinw in ((1.0, 0.0), (0.7, -0.75), (3.0, 4.0))]
    origin = (*inside[:3], 0.0, 0.0, *inside[5:])
    theta = torch.tensor([inside, *beyond, origin], dtype=torch.float64, requires_grad=True)
    x = simulator.simulate(theta.detach(), generator=generator())
    assert all(bool(v.isfinite().all()) for v in x.values())
    log_likelihood = simulator.log_likelihood(theta, x)
    assert log_likelihood.isfinite().tolist() == [True, False, False, False, True]
    assert bool((log_likelihood[1:4] == -torch.inf).all())
    (gradient,) = torch.autograd.grad(log_likelihood.sum(), theta)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[1:4] == 0).all())
    assert bool((gradient[0] != 0).all())


def test_leading_dimensions_of_theta_are_draws() -> None:
    simulator = eccentric()
    x = simulator.simulate(sample(prior_of(simulator), 4, generator()), generator=generator(1))
    theta = 0.5 * torch.tensor([(*ECCENTRIC_POINTS[1], *POINT[1:])], dtype=torch.float64)
    theta = theta * (1 + 0.01 * torch.randn(3, 4, 9, dtype=torch.float64, generator=generator(2)))
    together = simulator.log_likelihood(theta, x)
    assert together.shape == (3, 4)
    for k in range(3):
        for n in range(4):
            row = {name: values[n : n + 1] for name, values in x.items()}
            torch.testing.assert_close(simulator.log_likelihood(theta[k, n : n + 1], row)[0], together[k, n])


def test_times_of_julian_dates_keep_their_phase_in_float32() -> None:
    """At 2,457,000 d float32 has steps of a quarter of a day: the phase must be computed before the cast."""
    planets = [{"period": 3.7, "conjunction": 2456999.3, "logk": LOG_K}]
    simulator = RadialVelocity(planets=planets, design={"points": 9, "baseline": 50, "start": 2457000, "error": 1})
    time, _ = simulator.design.draw(1, generator=generator())
    exact = simulator.velocity(point(1.0), time)
    torch.testing.assert_close(simulator.velocity(point(1.0).float(), time).double(), exact, rtol=0, atol=1e-5)


# ------------------------------------------------------------ simulations


def test_simulated_residuals_have_the_stated_mean_and_scatter() -> None:
    simulator = eccentric(offset_scale=3.0)
    theta = point(*ECCENTRIC_POINTS[1], *POINT[1:]).expand(2000, -1)
    x = simulator.simulate(theta, generator=generator())
    assert x["time"].unique(dim=0).shape[0] == 2000  # every star has epochs of its own
    residual = x["velocity"] - simulator.velocity(theta, x["time"])
    gamma = residual.mean(-1)
    sigma = (x["velocity_error"].double().square() + POINT[4] ** 2).sqrt()
    expected = (3.0**2 + float(sigma.square().mean()) / 24) ** 0.5
    assert abs(float(gamma.mean())) < 5 * expected / 2000**0.5
    assert abs(float(gamma.std()) / expected - 1) < 5 / 4000**0.5
    pull = (residual - gamma[:, None]) / sigma * (24 / 23) ** 0.5
    assert abs(float(pull.square().mean()) - 1) < 5 * (2 / (2000 * 23)) ** 0.5


def test_offset_scale_changes_no_input_of_the_network() -> None:
    near, far = eccentric(offset_scale=0.0), eccentric(offset_scale=50.0)
    theta = sample(prior_of(near), 5, generator())
    theta[:, 3:5] *= 0.5
    x_near, x_far = (s.simulate(theta, generator=generator(1)) for s in (near, far))
    assert float((x_near["velocity"] - x_far["velocity"]).abs().min()) > 0
    torch.testing.assert_close(near.features(x_near), far.features(x_far), rtol=0, atol=1e-6)


def test_given_context_is_used_as_it_is() -> None:
    simulator = k2_24()
    x = observed(simulator)
    context = {name: x[name].expand(6, -1) for name in ("time", "velocity_error")}
    drawn = simulator.simulate(point(*POINT).expand(6, -1), context, generator=generator())
    assert torch.equal(drawn["time"], context["time"])
    assert torch.equal(drawn["velocity_error"], context["velocity_error"])
    default = simulator.simulate(point(*POINT).expand(6, -1), generator=generator())
    assert torch.equal(drawn["velocity"], default["velocity"])  # the design is that observation


def test_model_curve_passes_through_the_data() -> None:
    """On the epochs themselves the curve has the data's weighted mean, whatever the offset."""
    simulator = k2_24()
    x = observed(simulator)
    x["velocity"] = x["velocity"] + 300.0
    theta = torch.cat([point(*POINT), point(0.5, 0.2, 0.0, 0.0, 1.0)])
    curve = simulator.model_curve(theta, x, x["time"][0])
    assert curve.shape == (2, 32)
    for k in range(2):
        weight = 1 / (x["velocity_error"][0].double().square() + theta[k, 4] ** 2)
        assert abs(float((weight * (x["velocity"][0] - curve[k])).sum() / weight.sum())) < 1e-9
    assert simulator.model_curve(theta, x, torch.linspace(2360, 2480, 7)).shape == (2, 7)


# ------------------------------------------------------------ features


def standard_errors(simulator: RadialVelocity, x: Data, row: int = 0) -> np.ndarray:
    """Standard errors of the linear model of a two-planet case by plain NumPy: offset, two sines, trend, curvature."""
    t, error = (x[name][row].double().numpy() for name in ("time", "velocity_error"))
    s, span = t - simulator.reference_epoch, simulator.design.baseline
    columns = [np.ones_like(t), *(-np.sin(2 * np.pi * (t - c) / p) for p, c in EPHEMERIDES), s / span, (s / span) ** 2]
    weighted = np.stack(columns, 1) / np.hypot(error, simulator._typical_jitter())[:, None]
    return np.sqrt(np.diag(np.linalg.inv(weighted.T @ weighted)))


def drifted(simulator: RadialVelocity, x: Data, *, offset: float = 0.0, dvdt: float = 0.0, curv: float = 0.0) -> Data:
    """x with an offset (m/s), a trend (m/s/d) and a curvature (m/s/d^2) added."""
    elapsed = x["time"] - simulator.reference_epoch
    return x | {"velocity": x["velocity"] + offset + dvdt * elapsed + curv * elapsed.square()}


def test_features_carry_the_significance_of_a_noiseless_signal() -> None:
    """z = K / (0.3 standard errors): a fit without residuals is no better than one of rms 0.3."""
    simulator = k2_24(offset_scale=0.0, jit=0.0)
    theta = torch.tensor([[2.0, -30.0, 0.1, 0.0], [-30.0, 3.0, 0.0, 0.002]], dtype=torch.float64)
    x = simulator.simulate(theta, generator=generator())
    x["velocity"] = simulator.velocity(theta, x["time"])
    error = standard_errors(simulator, x)
    z = np.diag([math.exp(2), math.exp(3)]) / (0.3 * error[1:3])
    features = simulator.features(x)
    torch.testing.assert_close(features[:, :2].sinh(), torch.from_numpy(z), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(features[:, 2:4], torch.from_numpy(z.clip(-3, 8)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(features[:, 4].exp(), torch.full((2,), 1e-6, dtype=torch.float64))  # no residuals
    assert float(features[:, 5:].abs().max()) < 1e-5


def test_features_of_noise_are_its_scatter() -> None:
    """At the expected jitter the reduced rms is one, and what a planet's orbit shows is a t-distributed z."""
    simulator = k2_24(jit=2.0, offset_scale=100.0)
    theta = torch.tensor([[-30.0, -30.0, 0.3, 0.01]], dtype=torch.float64).expand(2000, -1)
    features = simulator.features(simulator.simulate(theta, generator=generator()))
    freedom = 32 - 5
    assert abs(float((2 * features[:, 4]).exp().mean()) - 1) < 5 * (2 / (freedom * 2000)) ** 0.5
    z = features[:, :2].sinh()
    assert abs(float(z.square().mean()) / (freedom / (freedom - 2)) - 1) < 5 * (2.3 / 4000) ** 0.5
    assert abs(float(z.mean())) < 5 / 4000**0.5


@pytest.mark.parametrize("make", [k2_24, eccentric])
def test_features_are_blind_to_offset_trend_and_curvature(make: Callable[[], RadialVelocity]) -> None:
    simulator = make()
    theta = sample(prior_of(simulator), 5, generator())
    theta[:, [p.name.startswith("logk") for p in simulator.parameters]] = 1.5
    x = simulator.simulate(theta, generator=generator(1))
    features = simulator.features(x)
    for change in ({"offset": 3e4}, {"dvdt": 2.0}, {"curv": -0.05}, {"offset": -9.0, "dvdt": 0.1, "curv": 0.01}):
        torch.testing.assert_close(simulator.features(drifted(simulator, x, **change)), features, rtol=1e-6, atol=1e-6)


def test_features_see_a_trend_that_the_model_has_not() -> None:
    simulator = k2_24(dvdt=0.0, curv=0.0)
    x = simulator.simulate(point(1.5, 1.3, 2.0), generator=generator())
    features = simulator.features(x)
    torch.testing.assert_close(simulator.features(drifted(simulator, x, offset=500.0)), features, rtol=1e-6, atol=1e-6)
    assert float((simulator.features(drifted(simulator, x, dvdt=0.5)) - features).abs().max()) > 0.1


def test_a_fixed_trend_is_taken_out() -> None:
    free, fixed = k2_24(dvdt=0.0, curv=0.0), k2_24(dvdt=0.4, curv=-0.01)
    x = free.simulate(point(1.5, 1.3, 2.0), generator=generator())
    with_trend = drifted(free, x, dvdt=0.4, curv=-0.01)
    torch.testing.assert_close(fixed.features(with_trend), free.features(x), rtol=1e-6, atol=1e-6)
    for got, expected in zip(fixed.pilot(with_trend), free.pilot(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_features_are_of_order_one_over_the_prior() -> None:
    """logk ~ N(1.6, 10) spans twenty decades in K: asinh brings them to tens."""
    for simulator in (
        k2_24(),
        eccentric(),
        k2_24(design={"observation": str(DATA / "k2_24.h5"), "error_scatter": 0.2}),
    ):
        theta = sample(prior_of(simulator), 400, generator())
        features = simulator.features(simulator.simulate(theta, generator=generator(1)))
        assert bool(features.isfinite().all())
        assert float(features.abs().max()) < 60
    assert k2_24().features(observed(k2_24())).shape == (1, 2 + 2 + 1 + 32)
    scattered = k2_24(design={"observation": str(DATA / "k2_24.h5"), "error_scatter": 0.2})
    assert scattered.features(observed(scattered)).shape == (1, 2 + 2 + 1 + 32 + 32)  # and the error bars
    x = eccentric().simulate(sample(prior_of(eccentric()), 1, generator()), generator=generator())
    assert eccentric().features(x).shape == (1, 1 + 1 + 1 + 24 + 24 + 24 + 3)  # and epochs, and errors of amplitudes


# ------------------------------------------------------------ pilot


def index_of(simulator: RadialVelocity, *names: str) -> list[int]:
    """Components of theta by name."""
    return [[p.name for p in simulator.parameters].index(name) for name in names]


def noiseless(simulator: RadialVelocity, **values: float) -> Data:
    """One row without noise; parameters that are not named have the median of their prior."""
    prior = prior_of(simulator)
    assert isinstance(prior, IndependentPrior)
    theta = prior.icdf(torch.full((1, len(simulator.parameters)), 0.5, dtype=torch.float64))
    for name, value in values.items():
        theta[:, index_of(simulator, name)] = value
    x = simulator.simulate(theta, generator=generator())
    return x | {"velocity": simulator.velocity(theta, x["time"])}


PLANETS = [{"period": period, "conjunction": conjunction, "logk": LOG_K} for period, conjunction in EPHEMERIDES]
FIXED_SHAPE = {"secosw": 0.3, "sesinw": -0.2}
FREE_SHAPE = {"secosw": {"uniform": [-0.7, 0.7]}, "sesinw": {"uniform": [-0.7, 0.7]}}
PILOTED: dict[str, dict[str, Any]] = {
    "two_planets": {},
    "one_planet": {"planets": PLANETS[:1]},
    "no_trend": {"dvdt": 0.0, "curv": 0.0, "reference_epoch": None},
    "curvature_alone": {"dvdt": 0.5},
    "fixed_jitter": {"jit": 2.0},
    "eccentric": {"planets": [PLANETS[0] | FREE_SHAPE, PLANETS[1]]},
    "fixed_eccentricity": {"planets": [PLANETS[0] | FIXED_SHAPE, PLANETS[1]]},
    "free_period": {"planets": [PLANETS[0] | {"period": {"normal": [20.9, 0.1]}}, PLANETS[1]]},
    "free_conjunction": {"planets": [PLANETS[0], PLANETS[1] | {"conjunction": {"uniform": [2081, 2083]}}]},
    "uniform_logk": {"planets": [PLANETS[0] | {"logk": {"uniform": [-3, 6]}}, PLANETS[1]]},
    "uniform_jitter": {"jit": {"uniform": [0, 10]}},
    "random_epochs": {"design": RANDOM_DESIGN},
    "few_points": {"design": RANDOM_DESIGN | {"points": 4}},
}
FOUND: dict[str, tuple[str, ...]] = {
    "two_planets": ("logk1", "logk2", "dvdt", "curv", "jit"),
    "one_planet": ("logk1", "dvdt", "curv", "jit"),
    "no_trend": ("logk1", "logk2", "jit"),
    "curvature_alone": ("logk1", "logk2", "curv", "jit"),
    "fixed_jitter": ("logk1", "logk2", "dvdt", "curv"),
    "eccentric": ("logk2", "dvdt", "curv", "jit"),
    "fixed_eccentricity": ("logk2", "dvdt", "curv", "jit"),
    "free_period": ("logk2", "dvdt", "curv", "jit"),
    "free_conjunction": ("logk1", "dvdt", "curv", "jit"),
    "uniform_logk": ("logk2", "dvdt", "curv", "jit"),
    "uniform_jitter": ("logk1", "logk2", "dvdt", "curv"),
    "random_epochs": ("logk1", "logk2", "dvdt", "curv", "jit"),
    "few_points": ("logk1", "logk2", "dvdt", "curv", "jit"),
}


@pytest.mark.parametrize("case", PILOTED)
def test_pilot_speaks_of_what_is_linear_and_real_and_of_nothing_else(case: str) -> None:
    """Over the whole prior, signals far below the noise and far above it: finite, and 0 and 1 where it says nothing."""
    simulator = k2_24(**PILOTED[case])
    x = simulator.simulate(sample(prior_of(simulator), 400, generator()), generator=generator(1))
    guess = pilot_of(simulator, x)  # checks that it is finite, and that scales are positive
    assert guess is not None
    location, scale = guess
    known = torch.zeros(len(simulator.parameters), dtype=torch.bool)
    known[index_of(simulator, *FOUND[case])] = True
    assert bool((location[:, ~known] == 0).all())
    assert bool((scale[:, ~known] == 1).all())
    assert bool((location[:, known].std(0) > 0).all())
    assert (
        float(scale[:, index_of(simulator, *(n for n in FOUND[case] if "logk" in n))].max()) <= 1
    )  # error / max(a, error)


@pytest.mark.parametrize(
    "case", [name for name in PILOTED if name not in ("free_period", "free_conjunction", "few_points")]
)
def test_pilot_of_a_noiseless_signal_is_the_truth(case: str) -> None:
    simulator = k2_24(**PILOTED[case])
    truth = {"logk1": 2.0, "logk2": 2.5, "dvdt": -0.3, "curv": 0.02}
    if "eccentric" in case:  # harmonics beyond the second leak into the neighbour
        truth["logk1"] = -20.0
    values = {name: value for name, value in truth.items() if name in {p.name for p in simulator.parameters}}
    location, scale = simulator.pilot(noiseless(simulator, **values))
    for name in FOUND[case]:
        if name != "jit":
            (index,) = index_of(simulator, name)
            assert float(location[0, index]) == pytest.approx(values[name], abs=1e-7)
            assert 0 < float(scale[0, index]) < 0.2


def test_pilot_is_within_its_scale_of_the_truth() -> None:
    """Pulls of 2,000 stars with strong signals have mean zero and width one; t-distributed, 27 degrees of freedom."""
    simulator = k2_24(planets=PLANETS)
    theta = point(4.0, 3.7, -0.3, 0.02, 1.2).expand(2000, -1)
    location, scale = simulator.pilot(simulator.simulate(theta, generator=generator()))
    pull = (theta - location) / scale
    width = (27 / 25) ** 0.5
    assert float((pull[:, :4].mean(0) / width).abs().max()) < 5 / 2000**0.5 + 0.05  # 0.05: of the logarithm of K
    assert float((pull[:, :4].std(0) / width - 1).abs().max()) < 5 * (2.3 / 4 / 2000) ** 0.5 + 0.03
    many = k2_24(design=RANDOM_DESIGN | {"points": 600, "error_scatter": 0.0})  # moments want more than 32 points
    theta = point(4.0, 3.7, -0.3, 0.02, 1.2).expand(500, -1)
    location, scale = many.pilot(many.simulate(theta, generator=generator()))
    pull = ((theta - location) / scale)[:, 4]
    assert abs(float(pull.mean())) < 5 / 500**0.5 + 0.05
    assert abs(float(pull.std()) - 1) < 5 / 1000**0.5 + 0.05


def test_pilot_of_a_negative_amplitude_is_its_error() -> None:
    """A planet that moves its star the wrong way has K < error: ln K = ln error +- 1."""
    simulator = k2_24(jit=2.0)
    x = noiseless(simulator, logk1=-30.0, logk2=-30.0)
    for period, conjunction in EPHEMERIDES:
        x["velocity"] = x["velocity"] + 20 * torch.sin(2 * torch.pi * (x["time"] - conjunction) / period)
    location, scale = simulator.pilot(x)
    error = 0.3 * standard_errors(simulator, x)[1:3]
    torch.testing.assert_close(location[0, :2].exp(), torch.from_numpy(error), rtol=1e-5, atol=0)
    assert scale[0, :2].tolist() == [1.0, 1.0]


def test_pilot_is_blind_to_the_offset_and_follows_the_trend() -> None:
    simulator = k2_24()
    x = observed(simulator)
    location, scale = simulator.pilot(x)
    moved = simulator.pilot(drifted(simulator, x, offset=5e4, dvdt=0.7, curv=-0.03))
    change = point(0, 0, 0.7, -0.03, 0)
    torch.testing.assert_close(moved[0], location + change, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(moved[1], scale, rtol=1e-6, atol=0)


# ------------------------------------------------------------ evidence


def test_evidence_of_k2_24_is_the_published_one() -> None:
    """ln Z = -103.349 +- 0.001 by importance sampling; published -103.33 +- 0.01 (nautilus, radvel's tutorial)."""
    simulator = k2_24()
    x, prior = observed(simulator), prior_of(simulator)

    def log_joint(theta: Tensor) -> Tensor:
        return simulator.log_likelihood(theta[..., None, :], x)[..., 0] + prior.log_prob(theta)

    mode = point(*POINT)[0].requires_grad_()
    optimizer = torch.optim.LBFGS([mode], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -log_joint(mode)
        loss.backward()
        return loss

    optimizer.step(closure)
    precision = -torch.as_tensor(torch.autograd.functional.hessian(log_joint, mode.detach()))
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    count, freedom = 200_000, 4  # multivariate t: tails heavier than the posterior's
    normal = torch.randn(count, 5, dtype=torch.float64, generator=generator())
    chi2 = torch.randn(count, freedom, dtype=torch.float64, generator=generator(1)).square().sum(-1, keepdim=True)
    standard = normal / (chi2 / freedom).sqrt()
    log_q = (
        math.lgamma((freedom + 5) / 2)
        - math.lgamma(freedom / 2)
        - 2.5 * math.log(freedom * math.pi)
        - float(factor.diagonal().log().sum())
        - (freedom + 5) / 2 * torch.log1p(standard.square().sum(-1) / freedom)
    )
    with torch.no_grad():
        log_weight = log_joint(mode.detach() + standard @ factor.mT) - log_q
    log_evidence = float(torch.logsumexp(log_weight, 0)) - math.log(count)
    assert log_evidence == pytest.approx(-103.349, abs=0.01)
