"""Units as strings, understood by astropy. Imported lazily: astropy costs start-up time."""

from __future__ import annotations

from typing import Any


def check_unit(unit: str, what: str) -> None:
    """Raise ValueError if `unit` is not an astropy unit string; "" is dimensionless."""
    if unit == "":
        return
    from astropy import units

    try:
        units.Unit(unit)
    except ValueError as error:
        raise ValueError(f"{what}: {unit!r} is not an astropy unit string ({error})") from None


def parse_unit(unit: str) -> Any:
    """The astropy unit of a string; None where astropy does not know it. "" is dimensionless.

    >>> parse_unit("km/s") == parse_unit("km s-1"), parse_unit("furlong")
    (True, None)
    """
    from astropy import units

    try:
        return units.Unit(unit)
    except (ValueError, TypeError):
        return None


def conversion_factor(unit_from: str, unit_to: str, what: str) -> float:
    """Factor by which values in `unit_from` are multiplied to be in `unit_to`.

    >>> conversion_factor("km / s", "m / s", "velocity")
    1000.0

    Raises:
        ValueError: the units are not of the same physical kind, or related by more than a factor: 20 mag(AB) is 3.6e-5 Jy,
            but no factor takes errors and differences along.
    """
    from astropy import units

    check_unit(unit_from, what)
    try:
        converted: Any = [units.Unit(unit_from).to(units.Unit(unit_to), value) for value in (1.0, 2.0, 4.0)]
        one, two, four = map(float, converted)
    except (units.UnitConversionError, units.UnitTypeError):
        raise ValueError(f"{what}: unit {unit_from!r} cannot be converted to {unit_to!r}") from None
    if one == 0 or two != 2 * one or four != 4 * one:
        raise ValueError(
            f"{what}: {unit_from!r} is not {unit_to!r} times a factor: convert the values, and their errors, yourself"
        )
    return one
