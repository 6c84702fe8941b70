"""Candidates of a star: every alias that could matter, whatever peak is the highest."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.problems.aliases import FILE, OPTIONS, TRUTH, Modes, alias_star, modes_of, write_star
from pipeline.store import hdf5_content_digest
from simulators.multi_instrument_velocity import MultiInstrumentVelocity
from simulators.protocol import candidates_of, log_likelihood
from simulators.radial_velocity import RadialVelocity

TRUE, WRONG = 4.7590, 4.8184
"""Two periods that hold 0.47 and 0.50 of the posterior of the star of docs/velocities.md (d)."""


@cache
def modes() -> Modes:
    return modes_of(*alias_star(), draws=20_000)


def with_conjunction(spec: dict[str, list[float]]) -> MultiInstrumentVelocity:
    options = copy.deepcopy(OPTIONS)
    options["planets"][0]["conjunction"] = spec
    return MultiInstrumentVelocity(**options)


def test_the_shipped_star_is_what_the_script_writes(tmp_path: Path) -> None:
    shipped = Path(__file__).resolve().parents[2] / "data" / FILE
    assert hdf5_content_digest(write_star(tmp_path)) == hdf5_content_digest(shipped)


def test_both_aliases_are_candidates_and_hold_half_of_the_posterior_each() -> None:
    simulator, x = alias_star()
    theta = candidates_of(simulator, x)
    assert theta is not None
    # 2 nats: what the fit's own jitter, and a conjunction moved inwards, may cost
    fit = log_likelihood(simulator, theta[:, None], x)[:, 0]
    for period in (TRUE, WRONG):
        near = (theta[:, 0] - period).abs() < 0.002
        assert bool(near.any())
        assert float(fit[near].max()) > float(fit.max()) - 2
    found = modes()
    # standard error of a share at an ESS of 20,000 x 0.1: 0.011
    assert float(found.mass[0] + found.mass[1]) > 0.9
    assert sorted(round(float(p), 3) for p in found.theta[:2, 0]) == pytest.approx([TRUE, WRONG], abs=1e-3)
    assert bool((found.mass[:2] > 0.4).all())
    assert found.log_evidence == pytest.approx(-152.81, abs=5 * found.error + 0.02)


@pytest.mark.parametrize("seed", range(5))
def test_the_truth_is_a_candidate_whatever_the_noise_makes_of_the_peaks(seed: int) -> None:
    simulator, x = alias_star(seed)
    theta = candidates_of(simulator, x)
    assert theta is not None
    assert len(theta) <= 64
    near = (theta[:, 0] - TRUTH["per1"]).abs() < 0.004  # 0.5 / span = 0.003 d
    assert bool((near & ((theta[:, 3] - TRUTH["per2"]).abs() < 0.1)).any())


def test_a_conjunction_that_its_prior_allows_in_several_orbits_is_a_candidate_in_each() -> None:
    _, x = alias_star()
    theta = candidates_of(with_conjunction({"uniform": [2458320, 2458335]}), x)
    assert theta is not None
    of_truth = theta[(theta[:, 0] - TRUE).abs() < 0.001, 1]
    for turn in (-1, 0, 1):  # the third of 15 d
        assert float((of_truth - (2458325.49 + turn * TRUE)).abs().min()) < 0.3


def test_a_conjunction_near_the_edge_of_its_prior_has_a_candidate_at_either_end() -> None:
    _, x = alias_star()
    low = 2458325.49 - TRUE + 0.1  # so that the next orbit's is a tenth of a day below the upper end
    theta = candidates_of(with_conjunction({"uniform": [low, low + TRUE]}), x)
    assert theta is not None
    of_truth = theta[(theta[:, 0] - TRUE).abs() < 0.001, 1]
    assert float(of_truth.min()) < low + 0.1
    assert float(of_truth.max()) > low + TRUE - 0.3


def test_a_conjunction_known_from_transits_enters_the_first_guess() -> None:
    """Issue: N(2458325.5386, 0.0011) left both ends of the fit at one end of the prior: 3.7 sigma off, scale 1e-7."""
    _, x = alias_star()
    location, scale = with_conjunction({"normal": [2458325.5386, 0.0011]}).pilot(x)
    assert float(location[0, 1]) == pytest.approx(2458325.5386, abs=0.0011)
    assert float(scale[0, 1]) == pytest.approx(0.0011, rel=0.01)
    location, scale = with_conjunction({"uniform": [2458325.537, 2458325.54]}).pilot(x)
    assert float(location[0, 1]) == pytest.approx(0.0, abs=1.0)  # u of the middle
    assert float(scale[0, 1]) > 1
    free, _ = alias_star()
    wide, _ = with_conjunction({"normal": [2458325.5, 30.0]}).pilot(x)
    # a prior 200 times wider than the fit moves the other parameters by 1 / 40,000 of what is between them
    assert float((wide - free.pilot(x)[0])[0, [0, 2, 3]].abs().max()) < 1e-3


def test_one_instrument_with_a_fixed_and_a_free_ephemeris_has_candidates() -> None:
    _, x = alias_star()
    planets: list[Any] = [
        {
            "period": {"uniform": [4.6, 4.95]},
            "conjunction": {"uniform": [2458323.2, 2458327.8]},
            "logk": {"normal": [1, 2]},
        },
        {"period": TRUTH["per2"], "conjunction": TRUTH["tc2"], "logk": {"normal": [1, 2]}},
    ]
    options: dict[str, Any] = {"jit": {"normal": [1, 0.5]}, "dvdt": {"normal": [0, 0.01]}, "reference_epoch": 2458000}
    design = {"points": 70, "baseline": 3652, "start": 2456500, "error": 1.5}
    star = {name: x[name] for name in ("time", "velocity", "velocity_error")}
    theta = candidates_of(RadialVelocity(planets=planets, design=design, **options), star)
    assert theta is not None
    assert theta.shape[1] == 6
    for period in (TRUE, WRONG):
        near = theta[(theta[:, 0] - period).abs() < 0.003]
        assert len(near)
        assert float(near[0, 3]) == pytest.approx(math.log(3.0), abs=0.3)
    fixed = RadialVelocity(planets=planets[1:], design=design, **options)
    none = candidates_of(fixed, star)
    assert none is not None
    assert none.shape == (0, 3)


def test_three_eccentric_planets_with_outliers_have_candidates_with_densities() -> None:
    eccentric = {"secosw": {"uniform": [-1, 1]}, "sesinw": {"uniform": [-1, 1]}, "logk": {"uniform": [-1, 3]}}
    planets = [
        {"period": {"uniform": period}, "conjunction": {"uniform": [0, period[0]]}} | eccentric
        for period in ([5, 6], [20, 25], [90, 120])
    ]
    simulator = MultiInstrumentVelocity(
        planets=planets,
        jit={"uniform": [0, 5]},
        likelihood="student_t",
        noise={"freedom": {"uniform": [2, 20]}},
        instruments=["a", "b"],
        design={"points": [40, 60], "baseline": 900, "error": 1},
    )
    theta = torch.tensor([[5.5, 2, 1.5, 0.3, 0.1, 22, 5, 1.5, 0, 0, 100, 30, 2, -0.3, 0.2, 1, 4]], dtype=torch.float64)
    x = simulator.simulate(theta, generator=torch.Generator().manual_seed(2))
    found = candidates_of(simulator, x)
    assert found is not None
    assert bool(log_likelihood(simulator, found[:, None], x).isfinite().all())
