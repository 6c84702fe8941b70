"""Epochs and error bars of simulated velocities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simulators.observing_design import check_keys, design_from_spec, number

K2_24 = str(Path(__file__).resolve().parents[2] / "data" / "k2_24.h5")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_observation_repeats_its_epochs_and_errors() -> None:
    design = design_from_spec({"observation": K2_24})
    time, error = design.draw(3, generator=generator())
    assert time.shape == error.shape == (3, 32)
    assert time.dtype == torch.float64
    assert error.dtype == torch.float32
    assert float(time[0, 0]) == 2364.81958
    assert torch.equal(time[0], time[2])
    assert torch.equal(error[0], error[2])
    assert design.baseline == pytest.approx(2465.71074 - 2364.81958)


def test_scatter_is_log_normal_about_each_error() -> None:
    design = design_from_spec({"observation": K2_24, "error_scatter": 0.3})
    _, error = design.draw(2000, generator=generator())
    _, plain = design_from_spec({"observation": K2_24}).draw(1, generator=generator())
    logarithm = torch.log(error / plain)
    assert abs(float(logarithm.mean())) < 5 * 0.3 / 64_000**0.5
    assert abs(float(logarithm.std()) - 0.3) < 5 * 0.3 / 128_000**0.5


def test_random_epochs_are_sorted_and_fill_the_baseline() -> None:
    design = design_from_spec({"points": 20, "baseline": 100, "start": 2000, "error": 1.5})
    time, error = design.draw(500, generator=generator())
    assert bool((time.diff(dim=-1) >= 0).all())
    assert 2000 <= float(time.min()) < 2001
    assert 2099 < float(time.max()) <= 2100
    assert abs(float(time.mean()) - 2050) < 5 * 100 / 12**0.5 / 10_000**0.5
    assert float(error.log().std()) == pytest.approx(0.2, rel=0.05)  # the default scatter


def test_the_same_generator_gives_the_same_design() -> None:
    design = design_from_spec({"points": 5, "baseline": 10, "error": 1})
    for first, second in zip(
        design.draw(4, generator=generator(3)), design.draw(4, generator=generator(3)), strict=True
    ):
        assert torch.equal(first, second)
    assert not torch.equal(design.draw(4, generator=generator(3))[0], design.draw(4, generator=generator(4))[0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, r"expected \{observation: FILE\} or \{points: M"),
        ({}, r"expected \{observation: FILE\}"),
        ({"observation": K2_24, "points": 3}, r"expected \{observation: FILE\}"),
        ({"observation": "absent.csv"}, r"no file absent.csv"),
        ({"observation": K2_24, "error_scater": 0.1}, r"no key 'error_scater'; did you mean 'error_scatter'\?"),
        ({"observation": K2_24, "error_scatter": -0.1}, r"error_scatter: must not be negative"),
        ({"points": 3, "error": 1}, r"baseline is missing"),
        ({"points": 3.5, "baseline": 10, "error": 1}, r"points: expected a whole number, got 3.5"),
        ({"points": 0, "baseline": 10, "error": 1}, r"points: must be positive"),
        ({"points": 3, "baseline": -10, "error": 1}, r"baseline: must be positive, got -10"),
        ({"points": 3, "baseline": 10, "error": "small"}, r"error: expected a number, got 'small'"),
    ],
)
def test_a_bad_design_says_what_to_change(spec: dict[str, object] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        design_from_spec(spec)


def test_numbers_of_a_config() -> None:
    assert number("1e-3", "trend") == 1e-3
    for bad in (None, True, [1], float("nan")):
        with pytest.raises(ValueError, match=r"trend: expected a"):
            number(bad, "trend")
    check_keys({"a": 1}, ("a",), "planet 1")
