"""What must not matter, over every registered simulator.

Absent slots, marginalised constants, the order of points and units: likelihood, inputs of network
and typicality (features, pilot) and predictive p-values stay what they are, to rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.diagnostics.predictive import predictive_check
from simulators.one_form import in_one_form, masks_of
from simulators.priors import prior_of, sample
from simulators.protocol import (
    Data,
    Simulator,
    canonical,
    data_observables,
    has_likelihood,
    log_likelihood,
    network_features,
    pilot_of,
    simulate,
)
from simulators.registry import create
from tests.simulators.test_contract import CASES, FREE, NEED_DATA, PLANET, SEVERAL, VELOCITIES

N, REPLICATES = 2, 40
MASKED = [
    n for n, case in CASES.items() if case[0] in ("multi_instrument_velocity", "supernova_cosmology", "strong_lens")
]
POINTS = [n for n in CASES if n.startswith(("radial", "multi", "super")) and n != "multi_instrument_velocity_student"]
OFFSET = [n for n in POINTS if n not in ("supernovae_w0wa_student", "supernovae_outliers")]  # there it is a parameter


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(case: str) -> tuple[Simulator, Tensor, Data]:
    """A simulator, theta (N, D), and x with absent points where the simulator has a mask."""
    name, options = CASES[case]
    if name == "supernova_cosmology":
        options = options | {"design": {"missing": 0.3}}
    simulator = create(name, options)
    theta = sample(prior_of(simulator), N, stream(1))
    return simulator, theta, simulate(simulator, theta, generator=stream(2))


def p_values(simulator: Simulator, theta: Tensor, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    check = predictive_check(
        simulator, theta.expand(3, *theta.shape), x, generator=stream(3), least_replicates=REPLICATES
    )
    assert check.reason == ("",) * N
    return dict(check.p_value)


def assert_same(
    simulator: Simulator, theta: Tensor, x: Data, other: Mapping[str, Tensor], *, rtol: float = 1e-6
) -> None:
    """Everything that the pipeline makes of x, of both; ranks may differ by one."""
    read = in_one_form(simulator, other)
    if has_likelihood(simulator):
        torch.testing.assert_close(
            log_likelihood(simulator, theta, other), log_likelihood(simulator, theta, x), rtol=rtol, atol=1e-5
        )
    torch.testing.assert_close(network_features(simulator, read), network_features(simulator, x), rtol=1e-3, atol=1e-3)
    guess, again = pilot_of(simulator, x), pilot_of(simulator, read)
    if guess is not None and again is not None:
        assert float(((again[0] - guess[0]).abs() / guess[1]).max()) < 1e-3
        torch.testing.assert_close(again[1], guess[1], rtol=1e-3, atol=0)
    before, after = p_values(simulator, theta, x), p_values(simulator, theta, other)
    for name, p in before.items():
        torch.testing.assert_close(after[name], p, rtol=0, atol=2.1 / REPLICATES, equal_nan=True)


def junk(simulator: Simulator, x: Data, number: float) -> Data:
    """x with something else in every absent slot."""
    spoiled = dict(x)
    for name, mask in masks_of(simulator.observables).items():
        there = x[mask] > 0.5
        if x[name].dim() == 3 and there.dim() == 2:
            there = there[:, :, None] & there[:, None, :]
        assert not bool(there.all())
        spoiled[name] = torch.where(there, x[name], number)
    return spoiled


def test_cases_with_masks_are_all_that_declare_one() -> None:
    declaring = {
        c[0] for c in CASES.values() if c[0] not in (*NEED_DATA, "lens_subhalos") and masks_of(create(*c).observables)
    }
    assert declaring == {CASES[n][0] for n in MASKED}


@pytest.mark.parametrize("case", [*MASKED, "lens_subhalos"])
def test_what_stands_in_absent_slots_changes_nothing(case: str) -> None:
    simulator, theta, x = drawn(case)
    for number in (46.0, math.nan):
        spoiled = junk(simulator, x, number)
        assert any(not torch.equal(spoiled[k], x[k]) for k in x)
        read = in_one_form(simulator, spoiled)
        assert all(torch.equal(read[k], x[k]) for k in x)
    assert_same(simulator, theta, x, junk(simulator, x, 46.0))


@pytest.mark.parametrize("case", OFFSET)
def test_a_constant_that_the_likelihood_marginalises_changes_nothing(case: str) -> None:
    """-33 km/s, of each instrument by itself; magnitudes for distance moduli."""
    simulator, theta, x = drawn(case)
    name = data_observables(simulator)[0].name
    constant = torch.tensor(-19.3 if name == "magnitude" else -33_000.0, dtype=torch.float64)
    if "instrument" in x:
        constant = constant * (1 + x["instrument"])
    moved = x | {name: x[name] + constant}
    assert_same(simulator, theta, x, moved)
    assert float((canonical(simulator, moved)[name] - canonical(simulator, x)[name]).abs().max()) < 1e-9


@pytest.mark.parametrize("case", POINTS)
def test_the_order_of_points_changes_nothing(case: str) -> None:
    simulator, theta, x = drawn(case)
    names = simulator.exchangeable  # pyright: ignore[reportAttributeAccessIssue]
    size = x[names[0]].shape[1]
    order = torch.randperm(size, generator=stream(5))
    turned = dict(x)
    for name in names:
        both = x[name].dim() == 3
        turned[name] = x[name][:, order][:, :, order] if both else x[name][:, order]
    assert set(names) == set(x)
    read = in_one_form(simulator, turned)
    assert all(torch.equal(read[k], x[k]) for k in x)
    assert_same(simulator, theta, x, turned)


def test_points_at_one_time_come_in_one_order() -> None:
    """Two instruments in the same night: ties are broken by the other observables."""
    simulator, _, x = drawn("multi_instrument_velocity")
    tied = x | {"time": x["time"].round(decimals=-1)}
    first = in_one_form(simulator, tied)
    order = torch.randperm(x["time"].shape[1], generator=stream(6))
    again = in_one_form(simulator, {k: v[:, order] for k, v in tied.items()})
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert bool((first["time"].diff(dim=1)[:, :20] == 0).any())


def shifted(options: Any, days: float) -> Any:
    """Options of a velocity simulator whose times are counted from another day."""
    if isinstance(options, list):
        return [shifted(o, days) for o in options]
    moved = copy.deepcopy(options)
    for key, value in options.items():
        if key in ("conjunction", "start", "reference_epoch"):
            moved[key] = {"uniform": [v + days for v in value["uniform"]]} if isinstance(value, dict) else value + days
        elif isinstance(value, (dict, list)) and key in ("planets", "design"):
            moved[key] = shifted(value, days)
    return moved


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("radial_velocity", VELOCITIES | {"planets": [PLANET], "dvdt": {"normal": [0, 1]}, "reference_epoch": 2400}),
        ("multi_instrument_velocity", SEVERAL | {"planets": [FREE, FREE | {"period": {"uniform": [3, 7]}}]}),
    ],
)
def test_the_day_from_which_times_are_counted_changes_nothing(name: str, options: dict[str, Any]) -> None:
    """Julian dates have steps of 4.7e-10 d: velocities of 10 m/s at 3 d are then good to 1e-8 m/s."""
    simulator = create(name, options)
    theta = sample(prior_of(simulator), N, stream(1))
    x = simulate(simulator, theta, generator=stream(2))
    julian = create(name, shifted(options, 2_450_000.0))
    moved = theta.clone()
    for d, parameter in enumerate(simulator.parameters):
        if parameter.name.startswith("tc"):
            moved[:, d] += 2_450_000.0
    later = x | {"time": x["time"] + 2_450_000.0}
    torch.testing.assert_close(
        log_likelihood(julian, moved, later), log_likelihood(simulator, theta, x), rtol=1e-6, atol=1e-5
    )
    torch.testing.assert_close(network_features(julian, later), network_features(simulator, x), rtol=1e-3, atol=1e-3)
    before, after = p_values(simulator, theta, x), p_values(julian, moved, later)
    for key, p in before.items():
        torch.testing.assert_close(after[key], p, rtol=0, atol=2.1 / REPLICATES)


def test_the_unit_of_an_image_changes_its_likelihood_by_a_constant() -> None:
    """Ten times the brightness, noise and image: log L less n log 10, to the float32 of images."""
    simulator, theta, x = drawn("strong_lens")
    brighter = theta.clone()
    brighter[:, [p.name for p in simulator.parameters].index("source_brightness")] *= 10
    scaled = x | {"image": 10 * x["image"], "noise": 10 * x["noise"]}
    constant = (x["mask"] > 0).sum((1, 2)) * math.log(10)
    expected = log_likelihood(simulator, theta, x) - constant
    torch.testing.assert_close(log_likelihood(simulator, brighter, scaled), expected, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(
        network_features(simulator, scaled), network_features(simulator, x), rtol=1e-5, atol=1e-5
    )
