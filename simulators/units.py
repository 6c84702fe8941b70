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
    given, wanted = units.Unit(unit_from), units.Unit(unit_to)
    if given == wanted:
        return 1.0
    refused = f"{what}: unit {unit_from!r} cannot be converted to {unit_to!r}"
    try:
        converted: Any = [given.to(wanted, value) for value in (1.0, 2.0, 4.0)]
        one, two, four = map(float, converted)
    except (units.UnitConversionError, units.UnitTypeError):
        raise ValueError(refused) from None
    if one == 0 or two != 2 * one or four != 4 * one:
        raise ValueError(f"{refused}: it is not that times a factor: convert the values, and their errors, yourself")
    return one


def unit_text(unit: str, *, latex: bool) -> str:
    r"""A unit string as text: LaTeX for figures, Unicode for pages; "" for dimensionless, itself where astropy does not know it.

    >>> unit_text("m / (s d)", latex=False), unit_text("dex(cm-2)", latex=False), unit_text("", latex=True)
    ('m d⁻¹ s⁻¹', 'dex(cm⁻²)', '')
    """
    parsed = parse_unit(unit) if unit else None
    if parsed is None:
        return unit.replace("$", r"\$") if latex else unit
    if latex:
        return parsed.to_string("latex_inline")
    if _is_logarithmic(parsed):  # their to_string takes other options, which differ from one to the next
        return f"{parsed.function_unit}({parsed.physical_unit.to_string('unicode', fraction=False)})"
    return parsed.to_string("unicode", fraction=False)


def _is_logarithmic(unit: Any) -> bool:
    """Whether a unit is a function of a physical one, such as dex(cm-2) or mag(AB)."""
    from astropy.units.function import FunctionUnitBase

    return isinstance(unit, FunctionUnitBase)
