"""HDF5 and netCDF-4: what lies beside the wanted array does not matter, and packed numbers are unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table
from astropy.time import Time

from pipeline.errors import InputError
from pipeline.foreign.fields import Field
from pipeline.foreign.hdf5 import unpacked
from pipeline.foreign.read import read_foreign

nan = float("nan")


def numbers(field: Field) -> list[Any]:
    values = np.array(field.values, dtype=np.float64)
    if field.masked is not None:
        values[field.masked] = nan
    return values.tolist()


def test_types_beside_the_wanted_one(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["y"] = [1.0, 2.0]
        file["y"].attrs["unit"] = "adu"
        file.create_dataset("refs", data=np.array([file["y"].ref], dtype=h5py.ref_dtype))
        file["latin"] = np.array(["Boötes".encode("latin-1"), b"x"])
        file.create_dataset("words", data=["a", "ß"], dtype=h5py.string_dtype())
        ragged = file.create_dataset("ragged", (2,), dtype=h5py.vlen_dtype(np.dtype("f4")))
        ragged[0], ragged[1] = [1.0, 2.0], [3.0]
        file.create_dataset("opaque", data=np.zeros(2, dtype="V3"))
        file["complex"] = np.array([1j])
        file["empty"] = h5py.Empty("f4")
        file["single"] = 3.5
        file["text"] = "one"
        file["kind"] = np.dtype("f4")
    foreign = read_foreign(path)
    assert foreign.get("y").values.tolist() == [1, 2]
    assert foreign.get("latin").values.tolist() == ["Boötes", "x"]
    assert foreign.get("words").values.tolist() == ["a", "ß"]
    assert foreign.get("ragged").ragged
    assert [row.tolist() for row in foreign.get("ragged").values] == [[1, 2], [3]]
    assert foreign.get("single").values.tolist() == 3.5
    assert foreign.get("text").values.tolist() == "one"
    assert foreign.note == "not read, of other types: complex, opaque, refs"


@pytest.mark.parametrize("suffix", ["meta", "plain"])
def test_tables_are_columns(suffix: str, tmp_path: Path) -> None:
    rv = MaskedColumn([2.5, 0.0], mask=[False, True], unit="km/s")
    table = Table({"rv": rv, "name": ["007", "7"], "n": [1, 2]})
    table["date"] = Time([2457000.0, 2457000.5], format="jd", scale="tdb")
    if suffix == "meta":
        table.write(tmp_path / "a.h5", path="stars/all", serialize_meta=True)
    else:
        rows = np.array([(2.5, b"007", 1), (nan, b"7", 2)], dtype=[("rv", "f8"), ("name", "S3"), ("n", "i4")])
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["stars/all"] = rows
    foreign = read_foreign(tmp_path / "a.h5")
    found = foreign.get("rv")
    assert found.name == "stars/all/rv"
    assert found.by_row
    np.testing.assert_array_equal(numbers(found), [2.5, nan])
    assert foreign.get("name").values.tolist() == ["007", "7"]
    assert foreign.get("n").values.tolist() == [1, 2]
    if suffix == "meta":
        assert u.Unit(found.unit) == u.km / u.s
        assert foreign.get("date").values.tolist() == [2457000.0, 2457000.5]


@pytest.mark.parametrize(
    ("packed", "attributes", "expected"),
    [
        (
            np.array([100, 200, -32768], "i2"),
            {"scale_factor": 0.01, "add_offset": 5.0, "_FillValue": np.int16(-32768)},
            [6, 7, nan],
        ),
        (np.array([1.0, -999.0]), {"_FillValue": -999.0}, [1, nan]),
        (np.array([1.0, -999.0, -998.0]), {"missing_value": np.array([-999.0, -998.0])}, [1, nan, nan]),
        (np.array([0.1, 1e20], "f4"), {"missing_value": 1e20}, [np.float32(0.1), nan]),  # 1e20 in single precision
        (np.array([1, -1], "i1"), {"_Unsigned": "true", "scale_factor": 2.0}, [2, 510]),
        (np.array([1, -1], "i1"), {"_Unsigned": b"true", "_FillValue": np.int8(-1)}, [1, nan]),
        (np.array([5, 50, 500], "i2"), {"valid_range": np.array([10, 100], "i2"), "scale_factor": 0.5}, [nan, 25, nan]),
        (np.array([5, 50, 500], "i2"), {"valid_min": 10.0, "scale_factor": 0.5}, [nan, 25, 250]),  # of unpacked numbers
        (np.array([5, 50, 500], "i2"), {"valid_max": np.int16(100)}, [5, 50, nan]),
        (np.array([1, 2], "i2"), {"add_offset": np.array([1.5])}, [2.5, 3.5]),
        (np.array([7, 200], "u1"), {"_FillValue": np.uint8(200), "scale_factor": 0.1}, [0.7, nan]),
    ],
)
def test_packed_numbers(packed: np.ndarray, attributes: dict[str, Any], expected: list[float], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["y"] = packed
        file["y"].attrs.update(attributes)
    np.testing.assert_allclose(numbers(read_foreign(tmp_path / "a.nc").get("y")), expected, rtol=1e-14)


@pytest.mark.parametrize(
    "attributes", [{"scale_factor": "0.1"}, {"add_offset": np.array([1.0, 2.0])}, {"_FillValue": "x"}]
)
def test_attributes_that_are_no_numbers_are_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="f: attribute .* expected (a number|one)"):
        unpacked(np.array([1, 2]), attributes, "f")


def test_what_netcdf_fills_in_is_missing(tmp_path: Path) -> None:
    import h5netcdf

    with h5netcdf.File(tmp_path / "a.nc", "w") as file:
        file.dimensions = {"time": 3}
        file.create_variable("y", ("time",), "f8", data=np.array([1.0, 9.9692099683868690e36, 3.0]))
    foreign = read_foreign(tmp_path / "a.nc")
    assert foreign.kind == "netCDF"
    np.testing.assert_array_equal(numbers(foreign.get("y")), [1, nan, 3])
    assert [f.name for f in foreign.fields] == ["y"]  # the dimension without a variable is no array


def test_arrays_of_their_own_length_are_unpacked_too(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        y = file.create_dataset("y", (2,), dtype=h5py.vlen_dtype(np.dtype("i2")))
        y[0], y[1] = [10, 20], [30, -1, 50]
        y.attrs.update({"_FillValue": np.int16(-1), "scale_factor": 0.1, "units": "adu"})
    rows = read_foreign(tmp_path / "a.h5").get("y").values
    np.testing.assert_allclose(rows[0], [1, 2])
    np.testing.assert_allclose(rows[1], [3, nan, 5])
