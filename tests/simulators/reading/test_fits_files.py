"""FITS: what is missing is known by the stored number; every row is scaled; sums that do not fit are found."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time

from simulators.errors import InputError
from simulators.reading.fits_columns import FitsColumn, scaled
from simulators.reading.fits_files import read_fits

TYPES = {"B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}


def table(path: Path, form: str, raw: np.ndarray, **cards: Any) -> Path:
    """One column `y` of stored numbers, with cards such as TNULL=-999."""
    hdu = fits.BinTableHDU.from_columns([fits.Column("y", form, array=raw, unit="adu")])
    for card, value in cards.items():
        hdu.header[f"{card}1"] = value
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, overwrite=True)
    return path


def column(path: Path) -> FitsColumn:
    return read_fits(path).tables[0].columns[0]


def numbers(found: FitsColumn) -> list[float]:
    values = np.array(found.values, dtype=np.float64)
    if found.mask is not None:
        values[found.mask] = np.nan
    return values.tolist()


nan = float("nan")


@pytest.mark.parametrize(
    ("form", "raw", "cards", "expected"),
    [
        ("I", [100, -999, 300], {"TSCAL": 0.01, "TZERO": 5.0, "TNULL": -999}, [6.0, nan, 8.0]),
        ("I", [100, 200, 300], {"TSCAL": 0.01, "TZERO": 5.0, "TNULL": 7}, [6.0, 7.0, 8.0]),  # 7 is no stored number
        ("J", [1, 2, 3], {"TSCAL": 2.0, "TNULL": 2}, [2.0, nan, 6.0]),
        ("I", [-32761, -32768, -32468], {"TZERO": 32768, "TNULL": -32768}, [7, nan, 300]),
        ("J", [-(2**31) + 5, 0], {"TZERO": 2**31, "TNULL": 0}, [5, nan]),
        ("K", [-(2**63) + 5, -(2**63) + 6], {"TZERO": 2**63, "TNULL": -(2**63) + 6}, [5, nan]),
        ("B", [0, 128, 255], {"TZERO": -128, "TNULL": 255}, [-128, 0, nan]),
        ("E", [1.0, 2.0], {"TSCAL": 10.0, "TZERO": 1.0}, [11.0, 21.0]),
        ("D", [1.0, nan], {}, [1.0, nan]),
        ("2I", [[1, -1], [3, 4]], {"TSCAL": 0.5, "TNULL": -1}, [[0.5, nan], [1.5, 2.0]]),
    ],
)
def test_stored_numbers(form: str, raw: Any, cards: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    path = table(tmp_path / "a.fits", form, np.zeros(len(raw)) if form[-1] != "2I" else raw)
    bits = np.array(raw, dtype=TYPES[form[-1]])
    hdu = fits.BinTableHDU.from_columns([fits.Column("y", form, array=np.zeros(bits.shape))])
    header = hdu.header
    header["TUNIT1"] = "adu"
    for card, value in cards.items():
        header[f"{card}1"] = value
    body = bits.tobytes()
    path.write_bytes(
        fits.PrimaryHDU().header.tostring().encode() + header.tostring().encode() + body + bytes(-len(body) % 2880)
    )
    found = column(path)
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-15)
    assert found.unit == "adu"


def test_a_null_that_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.fits", "I", np.array([1, 2]), TZERO=32768, TNULL=65535)
    with pytest.raises(InputError, match="its value for missing numbers, 65535, is none that is stored in 16 bits"):
        column(path)


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"TZERO": 5.0, "TSCAL": 0.1}, [[6.0, 7.0], [8.0, 9.0, 10.0], [11.0]]),
        ({"TZERO": 32768}, [[32778, 32788], [32798, 32808, 32818], [32828]]),
        ({"TNULL": 40}, [[10, 20], [30, nan, 50], [60]]),
        ({"TNULL": 40, "TSCAL": 0.1}, [[1, 2], [3, nan, 5], [6]]),
    ],
)
@pytest.mark.parametrize("letter", ["P", "Q"])
def test_arrays_of_any_length_in_every_row(letter: str, cards: Any, expected: Any, tmp_path: Path) -> None:
    arrays = np.empty(3, dtype=object)
    arrays[:] = [np.array([10, 20], "i2"), np.array([30, 40, 50], "i2"), np.array([60], "i2")]
    found = column(table(tmp_path / "a.fits", f"{letter}I()", arrays, **cards))
    for got, want in zip(found.values, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-15)


def test_text_logical_bits_and_complex(tmp_path: Path) -> None:
    columns = [
        fits.Column("name", "5A", array=["007", "Boo"]),
        fits.Column("good", "L", array=[True, False]),
        fits.Column("bits", "3X", array=np.array([[1, 0, 1], [0, 0, 1]], dtype=bool)),
        fits.Column("grid", "6E", array=np.arange(12.0).reshape(2, 6), dim="(3,2)"),
        fits.Column("z", "C", array=[1 + 2j, 3j]),
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(tmp_path / "a.fits")
    found = {c.name: c.values for c in read_fits(tmp_path / "a.fits").tables[0].columns}
    assert found["name"].tolist() == ["007", "Boo"]
    assert found["good"].tolist() == [True, False]
    assert found["bits"].tolist() == [[True, False, True], [False, False, True]]
    assert found["grid"].tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert found["z"].tolist() == [1 + 2j, 3j]


def test_ascii_tables_compare_nulls_as_text(tmp_path: Path) -> None:
    columns = [
        fits.Column("y", "F8.3", array=[1.5, 2.5, 3.5], null="-9"),
        fits.Column("n", "A3", array=["a", "b", "c"]),
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.TableHDU.from_columns(columns)]).writeto(tmp_path / "a.fits")
    raw = (tmp_path / "a.fits").read_bytes()
    (tmp_path / "a.fits").write_bytes(raw.replace(b"   2.500", b"-9      "))
    np.testing.assert_array_equal(numbers(column(tmp_path / "a.fits")), [1.5, nan, 3.5])


def test_pixels(tmp_path: Path) -> None:
    """Stored as 16 bits with BZERO for unsigned numbers; BLANK is the stored number of a pixel without a value."""
    image = fits.PrimaryHDU(np.array([[5, 0, 8]], dtype=np.uint16))
    image.header["BLANK"] = -32768
    image.header["BUNIT"] = "adu"
    image.writeto(tmp_path / "a.fits")
    packed = fits.CompImageHDU(np.array([[5, -1, 8]], dtype="i2"), name="PACKED")
    packed.header["BLANK"] = -1
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "b.fits")
    for name in ("a.fits", "b.fits"):
        found = read_fits(tmp_path / name).images[0]
        assert found.mask is not None
        assert found.mask.tolist() == [[False, True, False]]
        assert found.values[0, [0, 2]].tolist() == [5, 8]


def test_unsigned_64_bits_stay_exact() -> None:
    raw = np.array([-(2**63) + 1, 2**63 - 1], dtype=">i8")
    assert scaled(raw, 1, 2**63, None)[0].tolist() == [1, 2**64 - 1]
    assert scaled(np.array([3], dtype=">i4"), 1, 0.5, None)[0].tolist() == [3.5]


def test_extensions_of_one_name_have_their_version(tmp_path: Path) -> None:
    hdus = [fits.ImageHDU(np.full((1, 2), float(v)), name="SCI", ver=v) for v in (1, 2)]
    fits.HDUList([fits.PrimaryHDU(), *hdus, fits.ImageHDU(np.zeros(2), name="ERR", ver=3)]).writeto(tmp_path / "a.fits")
    found = {image.name: image.values.tolist() for image in read_fits(tmp_path / "a.fits").images}
    assert found == {"SCI,1": [[1.0, 1.0]], "SCI,2": [[2.0, 2.0]], "ERR": [0.0, 0.0]}


def test_cards_on_which_extensions_differ_are_left_out(tmp_path: Path) -> None:
    hdus = [fits.ImageHDU(np.zeros(2)) for _ in range(2)]
    for hdu, target in zip(hdus, "AB", strict=True):
        hdu.header["OBJECT"] = target
        hdu.header["FILTER"] = "g"
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits")
    cards = read_fits(tmp_path / "a.fits").cards
    assert "OBJECT" not in cards
    assert cards["FILTER"] == "g"


def test_sums_are_compared(tmp_path: Path) -> None:
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.arange(100.0), name="SCI")])
    hdus.writeto(tmp_path / "a.fits", checksum=True)
    assert len(read_fits(tmp_path / "a.fits").images) == 1
    whole = (tmp_path / "a.fits").read_bytes()
    at = whole.rindex(struct.pack(">d", 99.0))
    for place, said in ((at, "DATASUM"), (whole.index(b"EXTNAME = 'SCI") + 12, "CHECKSUM")):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / "b.fits").write_bytes(damaged)
        with pytest.raises(InputError, match=f"is damaged.*{said}"):
            read_fits(tmp_path / "b.fits")


def test_times_as_two_numbers(tmp_path: Path) -> None:
    from astropy.table import Table

    Table({"date": Time(["2015-01-01T06:00:00"], scale="tdb")}).write(tmp_path / "a.fits")
    found = column(tmp_path / "a.fits")
    assert found.values.tolist() == [2457023.75]
    assert (found.unit, found.time_scale) == ("d", "tdb")


def test_under_any_suffix(tmp_path: Path) -> None:
    path = table(tmp_path / "a.fits", "D", np.array([1.0, 2.0]))
    (tmp_path / "b.data").write_bytes(gzip.compress(path.read_bytes()))
    assert column(tmp_path / "b.data").values.tolist() == [1, 2]


def test_headers_that_ask_for_too_much(tmp_path: Path) -> None:
    primary = fits.PrimaryHDU().header.tostring().encode()
    rows = fits.BinTableHDU.from_columns([fits.Column("y", "PD()", array=np.array([np.zeros(9)], dtype=object))])
    header = rows.header.copy()
    header["NAXIS2"], header["PCOUNT"] = 2000, 800_000
    body = np.tile(np.array([[100_000, 0]], ">i4"), (2000, 1)).tobytes() + bytes(800_000)  # all rows, the same 800 kB
    (tmp_path / "a.fits").write_bytes(primary + header.tostring().encode() + body + bytes(-len(body) % 2880))
    with pytest.raises(InputError, match="column y would take 1.6 GB"):
        read_fits(tmp_path / "a.fits")
    empty = gzip.compress(primary + fits.ImageHDU().header.tostring().encode() * 2000)
    (tmp_path / "b.fits.gz").write_bytes(empty)
    with pytest.raises(InputError, match="its 2000 extensions would take"):
        read_fits(tmp_path / "b.fits.gz")
    image = fits.CompImageHDU(np.zeros((10, 10), "i4"))
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "c.fits")
    raw = (tmp_path / "c.fits").read_bytes()
    grown = raw.replace(b"ZNAXIS1 =                   10", b"ZNAXIS1 =             99999999")
    assert grown != raw
    (tmp_path / "c.fits").write_bytes(grown)
    with pytest.raises(InputError, match=r"\(10, 99999999\) would take 8 GB"):
        read_fits(tmp_path / "c.fits")
