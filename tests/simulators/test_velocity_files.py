"""Reading observed velocities."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from simulators.velocity_files import binned_velocities, read_all_velocities, read_velocity_table

DATA = Path(__file__).resolve().parents[2] / "data"
RADVEL_DATA = Path(sys.prefix) / "radvel_example_data"

TABLE = "t,vel,errvel\n1.0,2.5,0.5\n2.0,-1.5,0.6\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_hdf5(path: Path, *, unit: str = "m / s", codes: list[int] | None = None, rows: int = 1) -> Path:
    with h5py.File(path, "w") as file:
        for name, values, u in (
            ("time", [1.0, 2.0], "d"),
            ("velocity", [3.0, 4.0], unit),
            ("velocity_error", [0.1, 0.2], unit),
        ):
            file.create_dataset(f"x/{name}", data=np.tile(values, (rows, 1))).attrs["unit"] = u
        if codes is not None:
            file.create_dataset("x/instrument", data=[codes])
            file.attrs["instruments"] = json.dumps({"0": "k", "1": "j"})
    return path


def test_columns_come_in_any_order_under_either_name(tmp_path: Path) -> None:
    comma = read_velocity_table(write(tmp_path / "a.csv", ",errvel,t,vel\n0,0.5,1.0,2.5\n1,0.6,2.0,-1.5\n"))
    blank = read_velocity_table(write(tmp_path / "b.txt", "time mnvel errvel tel\n1.0 2.5 0.5 k\n2.0 -1.5 0.6 k\n"))
    for table in (comma, blank):
        assert table.time.tolist() == [1.0, 2.0]
        assert table.velocity.tolist() == [2.5, -1.5]
        assert table.velocity_error.tolist() == [0.5, 0.6]
    assert blank.instrument.tolist() == ["k", "k"]
    assert len(comma) == 2


def write_ecsv(path: Path, *, velocity: str = "km / s", time: str = "d") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from astropy.table import Table
    table = Table({"t": [1.0, 2.0], "vel": [0.0025, -0.0015], "errvel": [0.0005, 0.0006], "tel": ["k", "j"]})
    for name, unit in (("t", time), ("vel", velocity), ("errvel", velocity)):
        table[name].unit = unit
    table.write(path, format="ascii.ecsv")
    return path


@pytest.mark.parametrize("name", ["star.ecsv", "star.txt"])
def test_the_units_of_ecsv_count(tmp_path: Path, name: str) -> None:
    table = read_all_velocities(write_ecsv(tmp_path / name, time="h"))
    np.testing.assert_allclose(table.time, [1 / 24, 2 / 24], rtol=1e-14)
    np.testing.assert_allclose(table.velocity, [2.5, -1.5], rtol=1e-14)
    np.testing.assert_allclose(table.velocity_error, [0.5, 0.6], rtol=1e-14)
    assert table.instrument.tolist() == ["k", "j"]


def test_a_unit_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"star.ecsv: vel: .*mag"):
        read_all_velocities(write_ecsv(tmp_path / "star.ecsv", velocity="mag"))


def test_a_number_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"velocity has 1 values that are not finite"):
        read_all_velocities(write(tmp_path / "gap.csv", TABLE.replace("2.5", "")))


def test_several_instruments_need_a_choice(tmp_path: Path) -> None:
    path = write(tmp_path / "c.txt", "time mnvel errvel tel\n1 2.5 0.5 k\n2 -1.5 0.6 j\n3 0.5 0.7 k\n")
    with pytest.raises(ValueError, match=r"2 instruments \(j, k\).*option instrument: j"):
        read_velocity_table(path)
    assert read_velocity_table(path, instrument="k").time.tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match=r"no instrument 'a'; it has 'j', 'k'"):
        read_velocity_table(path, instrument="a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,vel\n1,2\n", r"no column errvel or velocity_error; it has t, vel"),
        (TABLE.replace("0.5", "-0.5"), r"errors must be positive, got -0.5 m/s"),
        (TABLE.replace("2.5", "nan"), r"velocity has 1 values that are not finite"),
        (TABLE.replace("2.5", "fast"), r"expected numbers"),
        ("t,vel,errvel\n", r"has no rows"),
        ("t,vel,errvel\n1,2\n1,2,3,4,5\n", r"not a table that can be read \(row 1 has 2 cells, the header 3\)"),
    ],
)
def test_a_bad_table_is_one_readable_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_velocity_table(write(tmp_path / "bad.csv", text))


def test_hdf5_is_read_with_its_units(tmp_path: Path) -> None:
    table = read_velocity_table(write_hdf5(tmp_path / "a.h5", unit="km / s"))
    assert table.velocity.tolist() == [3000.0, 4000.0]
    assert table.instrument.tolist() == ["", ""]


def test_hdf5_with_several_instruments_or_stars_needs_a_choice(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "b.h5", codes=[1, 0])
    with pytest.raises(ValueError, match=r"2 instruments \(j, k\)"):
        read_velocity_table(path)
    assert read_velocity_table(path, instrument="j").velocity.tolist() == [3.0]
    with pytest.raises(ValueError, match=r"expected one observation, shape \(1, M\), got \(2, 2\)"):
        read_velocity_table(write_hdf5(tmp_path / "c.h5", rows=2))


def test_a_file_that_is_no_data_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file"):
        read_velocity_table(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match=r"not an HDF5 file"):
        read_velocity_table(write(tmp_path / "text.h5", TABLE))
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(ValueError, match=r"expected datasets /x/time and /x/velocity_error"):
        read_velocity_table(tmp_path / "empty.h5")


@pytest.mark.parametrize(
    ("ours", "original", "points"),
    [("k2_24.h5", "epic203771098.csv", {None: 32}), ("hd164922.h5", "164922_fixed.txt", {"k": 52, "j": 276, "a": 73})],
)
def test_shipped_data_are_those_of_radvels_wheel(ours: str, original: str, points: dict[str | None, int]) -> None:
    if not (RADVEL_DATA / original).is_file():
        pytest.skip("radvel's example data are not installed")
    for instrument, count in points.items():
        shipped = read_velocity_table(DATA / ours, instrument=instrument)
        source = read_velocity_table(RADVEL_DATA / original, instrument=instrument)
        assert len(shipped) == count
        np.testing.assert_array_equal(shipped.time, source.time)
        np.testing.assert_array_equal(shipped.velocity, source.velocity)
        np.testing.assert_allclose(shipped.velocity_error, source.velocity_error, rtol=6e-8)  # float32 in the file


def test_nightly_means_are_radvels() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        radvel = pytest.importorskip("radvel", reason="radvel is the oracle of nightly means")
    table = read_all_velocities(DATA / "hd164922.h5")
    expected = radvel.utils.bintels(table.time, table.velocity, table.velocity_error, table.instrument, binsize=0.5)
    binned = binned_velocities(table, 0.5)
    assert len(binned) == 241
    for got, wanted in zip((binned.time, binned.velocity, binned.velocity_error), expected, strict=False):
        assert np.abs(got - wanted).max() < 1e-9 * np.abs(wanted).max()
    assert binned.instrument.tolist() == list(expected[3])


def test_numbers_are_strict_and_compression_does_not_matter(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.csv").write_bytes(gzip.compress(TABLE.encode()))
    assert read_velocity_table(tmp_path / "a.csv").velocity.tolist() == [2.5, -1.5]
    with pytest.raises(ValueError, match="vel, row 1: expected numbers, got '2_5'"):
        read_velocity_table(write(tmp_path / "b.csv", TABLE.replace("2.5", "2_5")))
    with pytest.raises(ValueError, match="2 columns with the name 'vel'"):
        read_velocity_table(write(tmp_path / "c.csv", TABLE.replace("errvel", "vel", 1)))


def test_an_hdf5_file_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", codes=[0, 1])
    with h5py.File(path, "a") as file:
        file.attrs["instruments"] = "[not JSON"
    with pytest.raises(ValueError, match=r"a.h5: attribute instruments: expected \{code: name\}"):
        read_all_velocities(path)
    with h5py.File(path, "a") as file:
        del file["x/velocity"]
        file["x/velocity"] = [[1.0, 2.0, 3.0]]
    with pytest.raises(ValueError, match="expected as many numbers of each, got time 2, velocity 3"):
        read_all_velocities(path)
