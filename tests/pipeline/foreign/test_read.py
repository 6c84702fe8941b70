"""Every format gives the same arrays, with the units and masks that it declares; what is none of them is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from astropy.time import Time

from pipeline.errors import InputError
from pipeline.foreign.fields import Field
from pipeline.foreign.read import read_array, read_foreign

MRT = """Title: Velocities
Authors: A
Table: t
================================================================================
Byte-by-byte Description of file: t.txt
--------------------------------------------------------------------------------
   Bytes Format Units  Label  Explanations
--------------------------------------------------------------------------------
   1-  3 F3.1   d      time    time
   5-  7 F3.1   km/s   rv     ?velocity
   9-  9 A1     ---    name   star
--------------------------------------------------------------------------------
1.5 2.5 a
2.5     a
3.5 4.5 b
"""


def table() -> Table:
    rv = MaskedColumn([2.5, 0.0, 4.5], mask=[False, True, False], unit="km/s")
    return Table({"time": [1.5, 2.5, 3.5] * u.d, "rv": rv, "name": ["a", "a", "b"]}, meta={"OBJECT": "X-1"})


WRITERS: dict[str, Callable[[Path], object]] = {
    "stars.ecsv": lambda p: table().write(p, format="ascii.ecsv"),
    "stars.fits": lambda p: table().write(p, format="fits"),
    "stars.fits.gz": lambda p: table().write(p, format="fits"),
    "stars.vot": lambda p: table().write(p, format="votable"),
    "stars.txt": lambda p: p.write_text(MRT),
    "stars.csv": lambda p: p.write_text("time [d],rv [km/s],name\n1.5,2.5,a\n2.5,,a\n3.5,4.5,b\n"),
    "semicolons.csv": lambda p: p.write_text(
        "# by me, in 2026\ntime [d];rv [km/s];name\n1.5;2.5;a\n2.5;;a\n3.5;4.5;b\n"
    ),
    "spreadsheet.csv": lambda p: p.write_bytes(
        b"\xef\xbb\xbftime [d],rv [km/s],name\r\n1.5,2.5,a\r\n2.5,,a\r\n3.5,4.5,b\r\n"
    ),
    "hash.csv": lambda p: p.write_text("#time [d],rv [km/s],name\n1.5,2.5,a\n2.5,,a\n3.5,4.5,b\n"),
}


def same(field: Field, values: list, unit: str | None) -> None:
    got = np.array(field.values)
    if field.masked is not None:
        got[field.masked] = -9
    got = np.nan_to_num(got, nan=-9) if got.dtype.kind == "f" else got
    assert got.tolist() == values
    assert (None if field.unit is None else u.Unit(field.unit)) == (None if unit is None else u.Unit(unit))
    assert field.by_row


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_is_the_same_in_every_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    file = read_foreign(path)
    same(file.get("time"), [1.5, 2.5, 3.5], "d")
    same(file.get("rv"), [2.5, -9, 4.5], "km/s")
    same(file.get("name"), ["a", "a", "b"], None)
    assert file.declares_units


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("# t v\n1 2\n3 4\n", ["t", "v"]),
        ("t\tv\n1\t2\n3\t4\n", ["t", "v"]),
        ("1 2\n3 4\n", ["col1", "col2"]),
        ("1,2\n3,4\n", ["col1", "col2"]),
        (",t,v\n0,1,2\n1,3,4\n", ["col0", "t", "v"]),
    ],
)
def test_headers_of_text(text: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    file = read_foreign(tmp_path / "a.txt")
    assert [f.name for f in file.fields] == names
    assert file.fields[-1].values.tolist() == [2, 4]
    assert not file.declares_units


def test_fits_has_tables_images_and_arrays_of_any_length(tmp_path: Path) -> None:
    curves = np.empty(2, dtype=object)
    curves[:] = [np.array([1.0, 2.0]), np.array([3.0])]
    columns = [
        fits.Column("lc", "PD()", array=curves, unit="mJy"),
        fits.Column("w", "D", array=[1.0, 2.0], unit="ms**"),
    ]
    science = fits.ImageHDU(np.arange(6, dtype=">f4").reshape(2, 3), name="SCI")
    science.header["BUNIT"] = "electron/s"
    counts = fits.ImageHDU(np.array([[1, -1]], dtype="i2"), name="COUNTS")
    counts.header["BLANK"] = -1
    two = fits.BinTableHDU.from_columns([fits.Column("w", "J", array=[7, 8, 9])], name="TWO")
    packed = fits.CompImageHDU(np.ones((4, 4), dtype="f4"), name="PACKED")
    fits.HDUList(
        [fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="LC"), science, counts, two, packed]
    ).writeto(tmp_path / "a.fits")
    file = read_foreign(tmp_path / "a.fits")
    assert file.kind == "FITS table and image"
    curve = file.get("lc")
    assert curve.ragged
    assert [row.tolist() for row in curve.values] == [[1.0, 2.0], [3.0]]
    assert curve.unit == "mJy"
    assert file.get("LC/w").unit == "ms**"  # kept as it stands; refused where it is used
    with pytest.raises(InputError, match="'w' may be LC/w or TWO/w: write it in full"):
        file.get("w")
    assert file.get("SCI").values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert u.Unit(file.get("sci").unit) == u.electron / u.s
    assert file.get("COUNTS").masked.tolist() == [[False, True]]
    assert file.get("PACKED").values.shape == (4, 4)


def test_astropy_times_become_julian_dates(tmp_path: Path) -> None:
    times = Table({"date": Time(["2015-01-01", "2015-01-02T12:00:00"], scale="tdb"), "v": [1.0, 2.0]})
    for name, kind in (("a.ecsv", "ascii.ecsv"), ("a.fits", "fits")):
        times.write(tmp_path / name, format=kind)
        date = read_foreign(tmp_path / name).get("date")
        assert date.values.tolist() == [2457023.5, 2457025.0]
        assert date.unit == "d"
        assert "tdb" in date.note


def test_hdf5_datasets_by_path(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["maps/flux"] = np.ones((2, 3), dtype="f4")
        file["maps/flux"].attrs["units"] = "mJy"
        file["name"] = ["a", "b"]
        file["scalar"] = 3
        file.attrs["object"] = "X-1"
    foreign = read_foreign(tmp_path / "a.h5")
    assert [f.name for f in foreign.fields] == ["maps/flux", "name", "scalar"]
    assert foreign.get("flux").unit == "mJy"
    assert foreign.get("name").values.tolist() == ["a", "b"]
    assert foreign.get("scalar").values.tolist() == 3
    assert foreign.meta["object"] == "X-1"


def test_gwosc_strain_has_its_times(reference: Path) -> None:
    path = reference / "observations/gw150914/H-H1_LOSC_4_V2-1126259446-32.hdf5"
    file = read_foreign(path)
    assert file.kind == "GWOSC HDF5"
    assert file.meta["Detector"] == "H1"
    time, strain = file.get("time"), file.get("strain")
    assert strain.unit == ""
    with h5py.File(path) as raw:
        assert np.array_equal(strain.values, raw["strain/Strain"][:])
    assert time.unit == "s"
    assert time.values[0] == 1126259446.0
    assert time.values[-1] == 1126259478.0 - 1 / 4096
    assert np.all(np.diff(time.values) == 1 / 4096)


def test_numpy_files_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    assert read_foreign(tmp_path / "a.npy").get("a").values.shape == (2, 3)
    np.savez(tmp_path / "b.npz", flux=np.ones(3), error=np.zeros(3))
    assert [f.name for f in read_foreign(tmp_path / "b.npz").fields] == ["flux", "error"]
    np.save(tmp_path / "c.npy", np.array([(1.0, 2.0)], dtype=[("t", "f8"), ("v", "f8")]))
    assert read_foreign(tmp_path / "c.npy").get("v").by_row
    np.save(tmp_path / "d.npy", np.array([{}], dtype=object))
    with pytest.raises(InputError, match="never unpickled"):
        read_foreign(tmp_path / "d.npy")


@pytest.mark.parametrize("rows", ["3\n" + "\n".join("123456789"), "3\n1 2 3\n4 5 6\n7 8 9\n", "1 2 3\n4 5 6\n7 8 9\n"])
def test_matrices_of_text(rows: str, tmp_path: Path) -> None:
    """Covariances as supernova surveys write them, with N in front, and plain ones."""
    (tmp_path / "c.txt").write_text("# covariance\n" + rows)
    values = read_array(tmp_path / "c.txt", None).values
    assert values.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_pantheon_covariance(reference: Path) -> None:
    folder = reference / "observations/pantheon"
    values = read_array(folder / "sys_DS17f.txt", None).values
    with h5py.File(folder / "pantheon_binned.h5") as file:
        assert np.array_equal(values, file["systematic_covariance"][:])


def test_one_array_of_several_must_be_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", flux=np.ones(3), error=np.zeros(3))
    assert read_array(tmp_path / "b.npz", "error").values.tolist() == [0, 0, 0]
    with pytest.raises(InputError, match=r"Write b.npz:NAME, NAME one of flux, error"):
        read_array(tmp_path / "b.npz", None)


def test_what_is_no_data_is_one_line(tmp_path: Path) -> None:
    whole = {name: tmp_path / name for name in ("stars.fits", "stars.vot")}
    for name, path in whole.items():
        WRITERS[name](path)
    np.savez(tmp_path / "whole.npz", a=np.ones(1000))
    bad = {
        "missing.csv": (None, "no such file"),
        "empty.csv": (b"", "is empty"),
        "header.csv": (b"a,b\n", "has no rows"),
        "binary.dat": (bytes(range(256)), "not UTF-8 text"),
        "cut.fits": (whole["stars.fits"].read_bytes()[:-2000], "not a FITS file that astropy reads"),
        "cut.vot": (whole["stars.vot"].read_bytes()[:-100], "not a VOTable that astropy reads"),
        "cut.npz": ((tmp_path / "whole.npz").read_bytes()[:500], "not a NumPy file"),
        "cut.h5": (b"\x89HDF\r\n\x1a\n" + bytes(500), "not an HDF5 file"),
        "uneven.csv": (b"a,b\n1,2\n3,4,5\n", "not a table that can be read (row 2 has 3 cells, the header 2)"),
    }
    for name, (content, said) in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            read_foreign(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert said in str(error.value), (name, str(error.value))
        assert "\n" not in str(error.value)
