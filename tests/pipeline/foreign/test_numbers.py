"""Units: those of the file or those given, converted, never guessed and never contradicted in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.foreign.fields import Field, ForeignFile
from pipeline.foreign.numbers import Wanted, numbers_of, wanted
from simulators.protocol import Observable

VELOCITY = Observable("velocity", (3,), "m / s")
REDSHIFT = Observable("redshift", (3,))


def one(values: object, unit: str | None = None, **rest: object) -> ForeignFile:
    return ForeignFile(Path("a.csv"), "CSV", (Field("rv", np.asarray(values), unit, by_row=True, **rest),))  # pyright: ignore[reportArgumentType]


def got(file: ForeignFile, want: str = "rv", observable: Observable = VELOCITY, **rest: object) -> list:
    return numbers_of(file, wanted(want, "x"), observable, **rest).values.tolist()  # pyright: ignore[reportArgumentType]


def refused(file: ForeignFile, want: str = "rv", observable: Observable = VELOCITY, **rest: object) -> str:
    with pytest.raises(InputError) as error:
        got(file, want, observable, **rest)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rv", Wanted("rv", None)),
        ("rv[km/s]", Wanted("rv", "km/s")),
        (" my rv [ m s-1 ] ", Wanted("my rv", "m s-1")),
        ("rv[]", Wanted("rv", "")),
        ("rv[km/s!]", Wanted("rv", "km/s", insist=True)),
        ("[Fe/H]", Wanted("[Fe/H]", None)),
        ("[Fe/H][dex]", Wanted("[Fe/H]", "dex")),
    ],
)
def test_what_is_wanted(text: str, expected: Wanted) -> None:
    assert wanted(text, "x") == expected


def test_units_of_the_file_are_converted() -> None:
    assert got(one([1.0, 2.0], "km / s")) == [1000.0, 2000.0]
    assert got(one([1, 2], "m / s")) == [1.0, 2.0]
    assert got(one([50.0], "percent"), observable=REDSHIFT) == [0.5]
    assert got(one([1.0], "mag2"), observable=Observable("c", (1,), "mag2")) == [1.0]


def test_units_given_are_converted() -> None:
    assert got(one([1.0]), "rv[km/s]") == [1000.0]
    assert got(one([1.0], "km / s"), "rv[km s-1]") == [1000.0]  # the same unit in other words
    assert got(one([1.0], "furlong"), "rv[km/s]") == [1000.0]  # what astropy does not know contradicts nothing
    assert got(one([1.0], "km / s"), "rv[m/s!]") == [1.0]
    assert got(one([1.0]), observable=REDSHIFT) == [1.0]


def test_units_are_never_guessed() -> None:
    assert refused(one([1.0])) == (
        "a.csv: rv: no unit is declared; give it in brackets, such as --column 'velocity=rv[m / s]'"
    )
    assert "the file declares 'km / s', the command 'm/s'" in refused(one([1.0], "km / s"), "rv[m/s]")
    assert "declares the unit 'furlong', which astropy does not know" in refused(one([1.0], "furlong"))
    assert "unit 'd' cannot be converted to 'm / s'" in refused(one([1.0], "d"))
    assert "cannot be converted" in refused(one([1.0], "km / s"), observable=REDSHIFT)
    assert "'furlong' is not an astropy unit" in refused(one([1.0]), "rv[furlong]")
    assert "cannot be converted" in refused(one([1.0], "mag(AB)"))


def test_missing_values_are_nan() -> None:
    masked = one([1, 2], "m / s", masked=np.array([False, True]))
    assert np.array_equal(got(masked), [1.0, np.nan], equal_nan=True)


def test_text_is_refused_with_its_row_or_coded() -> None:
    assert "a.csv: rv, row 2: expected a number, got '\\\\nodata'" in refused(one(["1.5", "\\nodata"], "m / s"))
    assert got(one(["1.5", "2"], "m / s")) == [1.5, 2.0]
    assert got(one(["j", "k"]), codes=("k", "j")) == [1.0, 0.0]
    assert "'j' is not among the codes k" in refused(one(["j", "k"]), codes=("k",))


def test_elements_from_several_columns() -> None:
    columns = tuple(Field(f"f{i}", np.array([i, 10.0 * i]), "m / s", by_row=True) for i in range(3))
    text = Field("f_name", np.array(["a", "b"]), by_row=True)
    file = ForeignFile(Path("a.csv"), "CSV", (*columns, text))
    for want in ("f0,f1,f2", "f0, f1, f2", "f*"):
        assert got(file, want) == [[0.0, 1.0, 2.0], [0.0, 10.0, 20.0]]
    assert "no column matches 'g*'" in refused(file, "g*")
    assert "no column or array 'g'" in refused(file, "f0,g")
    assert "no column or array 'f_nam'; did you mean 'f_name'" in refused(file, "f_nam")


def test_complex_columns_are_refused_and_not_halved() -> None:
    assert "is complex, expected real numbers" in refused(one([1 + 2j, 0, 1], "m / s"))


def test_an_inverse_covariance_is_known_by_its_unit() -> None:
    covariance = np.array([[2.0, 1.0], [1.0, 3.0]])
    wants = Observable("covariance", (2, 2), "mag2", role="context")
    for given, want in ((None, "rv[1/mag2]"), ("mag-2", "rv")):
        file = ForeignFile(Path("a"), "text", (Field("rv", np.linalg.inv(covariance), given),))
        np.testing.assert_allclose(numbers_of(file, wanted(want, "x"), wants).values, covariance, rtol=1e-14)
    milli = ForeignFile(Path("a"), "text", (Field("rv", np.linalg.inv(covariance) * 1e-6, "mmag-2"),))
    np.testing.assert_allclose(numbers_of(milli, wanted("rv", "x"), wants).values, covariance, rtol=1e-12)
    singular = ForeignFile(Path("a"), "text", (Field("rv", np.ones((2, 2)), "mag-2"),))
    with pytest.raises(InputError, match="cannot be inverted"):
        numbers_of(singular, wanted("rv", "x"), wants)


@pytest.mark.parametrize("word", ["1_5", "1e", "0x10", "1,234.5", "1,5", "１５", "NA"])
def test_words_that_are_no_numbers(word: str) -> None:
    assert f"row 2: expected a number, got {word!r}" in refused(one(["1", word], "m / s"))
