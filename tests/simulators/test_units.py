"""Unit strings."""

from __future__ import annotations

import pytest

from simulators.units import check_unit, conversion_factor


@pytest.mark.parametrize("unit", ["", "m / s", "m / (s d)", "m / (s d2)", "Mpc", "mag"])
def test_astropy_strings_and_the_empty_one_are_units(unit: str) -> None:
    check_unit(unit, "parameter 'x'")


def test_a_bad_unit_is_named_with_what_has_it() -> None:
    with pytest.raises(ValueError, match=r"parameter 'k': 'meterz per sec' is not an astropy unit string"):
        check_unit("meterz per sec", "parameter 'k'")


def test_conversion_is_a_factor() -> None:
    assert conversion_factor("km / s", "m / s", "v") == pytest.approx(1000.0)
    assert conversion_factor("h", "d", "t") == pytest.approx(1 / 24)


def test_units_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"velocity: unit 'd' cannot be converted to 'm / s'"):
        conversion_factor("d", "m / s", "velocity")
