"""Designs with absent points and absent instruments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from simulators.velocity_design import arrays_of, velocity_design
from simulators.velocity_files import read_all_velocities

DATA = Path(__file__).resolve().parents[2] / "data"
RANDOM = {"points": [20, 60], "baseline": [300, 900], "start": 100, "error": [1, 3]}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_design_of_an_observation_is_its_epochs() -> None:
    design = velocity_design({"observation": str(DATA / "hd164922.h5")}, size=None, instruments=None)
    table = read_all_velocities(DATA / "hd164922.h5")
    assert (design.size, design.instruments) == (401, ("k", "j", "a"))
    x = design.draw(2, generator=generator())
    assert np.array_equal(x["time"][1].numpy(), table.time)
    assert [int((x["instrument"][0] == i).sum()) for i in range(3)] == [52, 276, 73]
    assert bool((x["present"] == 1).all())


def test_a_longer_array_has_absent_points() -> None:
    design = velocity_design({"observation": str(DATA / "hd164922.h5")}, size=500, instruments=["a", "j", "k", "x"])
    x = design.draw(1, generator=generator())
    assert int(x["present"].sum()) == 401
    assert [int((x["instrument"][0, :401] == i).sum()) for i in range(4)] == [73, 276, 52, 0]
    assert bool((x["velocity_error"] > 0).all())


def test_a_star_drawn_anew_is_within_its_limits() -> None:
    design = velocity_design(RANDOM, size=70, instruments=["a", "b", "c"])
    x = design.draw(400, generator=generator())
    count = x["present"].sum(1)
    assert (int(count.min()), int(count.max())) == (20, 60)
    there = x["present"] > 0.5
    span = torch.where(there, x["time"], 100.0).amax(1) - 100
    assert 150 < float(span.min()) < float(span.max()) < 900
    error = x["velocity_error"][there]
    assert 0.99 < float(error.min()) < float(error.max()) < 3.01
    assert set(x["instrument"][there].tolist()) == {0.0, 1.0, 2.0}


def test_points_and_instruments_go_missing() -> None:
    spec = {"observation": str(DATA / "hd164922.h5"), "absent": 0.5, "absent_instrument": 0.4}
    design = velocity_design(spec, size=None, instruments=None)
    x = design.draw(500, generator=generator())
    of = [((x["instrument"] == i) & (x["present"] > 0.5)).sum(1) for i in range(3)]
    missing = torch.stack([n == 0 for n in of], 1).double()
    # absent with 0.4, unless it is the one of three that stays: 0.4 * 2 / 3, error 0.012
    assert abs(float(missing.mean()) - 0.4 * 2 / 3) < 0.05
    assert float(missing.sum(1).max()) <= 2
    assert bool((x["present"].sum(1) > 1).all())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, r"expected \{observation: FILE\}"),
        (RANDOM | {"point": 3}, r"no key 'point'; did you mean 'points'"),
        ({"points": 3, "error": 1}, r"baseline is missing"),
        (RANDOM | {"points": [20, 90]}, r"whole numbers up to the option size"),
        (RANDOM | {"baseline": [900, 300]}, r"expected \[low, high\] in order"),
        (RANDOM | {"absent": 1}, r"absent: expected a number from 0 to below 1, got 1"),
    ],
)
def test_a_bad_design_says_what_to_change(spec: dict[str, object] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        velocity_design(spec, size=70, instruments=["a"])


def test_a_table_that_does_not_fit_is_refused() -> None:
    table = read_all_velocities(DATA / "hd164922.h5")
    with pytest.raises(ValueError, match=r"has 401 velocities, the simulator 100: set its option size to 401"):
        arrays_of(table, ["k", "j", "a"], 100, "file")
    with pytest.raises(ValueError, match=r"instrument 'a' is not among the option instruments: \[k, j\]"):
        arrays_of(table, ["k", "j"], 500, "file")
