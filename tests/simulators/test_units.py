"""Unit strings."""

from __future__ import annotations

import pytest

from simulators.units import check_unit, conversion_factor, unit_text

ODD_UNITS = {
    "dex(cm-2)": "dex(cm⁻²)",
    "dex(cm / s2)": "dex(cm s⁻²)",
    "dex(solMass)": "dex(M☉)",
    "dex(1e-10 erg)": "dex(1×10⁻¹⁰ erg)",
    "dB(mW)": "dB(mW)",
    "mag(AB)": "mag(AB)",
    "mag(ct / s)": "mag(ct s⁻¹)",
    "dex": "dex",
    "mag / arcsec2": "mag arcsec⁻²",
    "%": "%",
    "1e-10 erg / (s cm2)": "1×10⁻¹⁰ erg s⁻¹ cm⁻²",
    "deg_C": "°C",
    "Angstrom": "Å",
    "sqrt(Hz)": "Hz¹⸍²",
    "photon / s": "ph s⁻¹",
}
"""Units that astropy knows, and what stands on a page."""


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


@pytest.mark.parametrize("unit", ODD_UNITS)
def test_every_unit_has_a_text_and_latex(unit: str) -> None:
    check_unit(unit, "parameter 'x'")
    # astropy's exponents of one half differ between versions: U+2E0D, or a solidus
    assert unit_text(unit, latex=False).replace("/", "⸍") == ODD_UNITS[unit]
    latex = unit_text(unit, latex=True)
    assert latex.startswith("$\\mathrm{")
    assert latex.endswith("}$")


def test_a_unit_that_nobody_knows_is_its_own_text() -> None:
    assert unit_text("furlong", latex=False) == unit_text("furlong", latex=True) == "furlong"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("dex(cm-2)", "dex(m-2)"), ("dex(cm / s2)", "m / s2"), ("m / s2", "dex(cm / s2)"), ("mag(AB)", "mag(ST)")],
)
def test_logarithmic_units_are_not_converted_by_a_factor(given: str, wanted: str) -> None:
    """21 dex(cm-2) is 25 dex(m-2): it was 21 times 5."""
    with pytest.raises(ValueError, match=r"cannot be converted"):
        conversion_factor(given, wanted, "column")
    assert conversion_factor(given, given, "column") == 1.0


@pytest.mark.parametrize(
    ("unit_from", "unit_to"),
    [
        ("mag(AB)", "Jy"),
        ("dex(cm/s2)", "cm/s2"),
        ("dB(mW)", "W"),
        ("Jy", "mag(AB)"),
        ("mag(Jy)", "mag(mJy)"),
        ("dex(1)", ""),
    ],
)
def test_what_is_no_factor_is_refused(unit_from: str, unit_to: str) -> None:
    """20 mag(AB) is 3.6e-5 Jy; as a factor it was 28909 Jy."""
    with pytest.raises(ValueError, match="times a factor: convert the values, and their errors, yourself"):
        conversion_factor(unit_from, unit_to, "x")


@pytest.mark.parametrize("unit", ["deg_C", "mag", "dex", "dB"])
def test_offsets_and_bare_logarithms_have_no_factor_either(unit: str) -> None:
    with pytest.raises(ValueError, match="cannot be converted"):
        conversion_factor(unit, "K" if unit == "deg_C" else "", "x")
    assert conversion_factor("dB", "mag", "x") == pytest.approx(-0.25)
    assert conversion_factor("mag(AB)", "mag(AB)", "x") == 1
