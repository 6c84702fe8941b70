"""Observed surveys as tables with a covariance beside them, and as HDF5."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from simulators.supernova_files import read_covariance, read_supernovae

TABLE = "#name zcmb zhel dz mb dmb set biascor \n1 0.5 0.51 0 22.9 0.1 0 0\n0 0.1 0.11 0 19.0 0.2 0 0\n"
SYSTEMATIC = "2\n0.01\n0.002\n0.002\n0.03\n"


def pair(folder: Path, table: str = TABLE, systematic: str = SYSTEMATIC) -> Path:
    (folder / "lcparam_T.txt").write_text(table)
    (folder / "sys_T.txt").write_text(systematic)
    return folder / "lcparam_T.txt"


def test_a_pair_is_sorted_with_its_covariance(tmp_path: Path) -> None:
    table = read_supernovae(pair(tmp_path))
    assert table.redshift.tolist() == [0.1, 0.5]
    assert table.heliocentric_redshift.tolist() == [0.11, 0.51]
    assert table.magnitude.tolist() == [19.0, 22.9]
    np.testing.assert_allclose(table.covariance, [[0.03 + 0.04, 0.002], [0.002, 0.01 + 0.01]])
    for name, values in vars(read_supernovae(tmp_path)).items():
        np.testing.assert_array_equal(values, getattr(table, name))


def test_fits_and_hdf5_hold_the_same(tmp_path: Path) -> None:
    expected = read_supernovae(pair(tmp_path))
    rows = {"zHD": [0.5, 0.1], "zHEL": [0.51, 0.11], "mu": [22.9, 19.0]}
    Table(rows).write(tmp_path / "table.fits")
    complete = np.array([[0.02, 0.002], [0.002, 0.07]])
    fits.PrimaryHDU(complete).writeto(tmp_path / "cov.fits")
    got = read_supernovae(tmp_path / "table.fits", covariance=tmp_path / "cov.fits")
    with h5py.File(tmp_path / "survey.h5", "w") as file:
        for name, values in {"z": [0.5, 0.1], "zhel": [0.51, 0.11], "mb": [22.9, 19.0], "dmb": [0.1, 0.2]}.items():
            file[name] = values
        file["systematic_covariance"] = [[0.01, 0.002], [0.002, 0.03]]
    for other in (got, read_supernovae(tmp_path / "survey.h5")):
        for name in vars(expected):
            np.testing.assert_allclose(getattr(other, name), getattr(expected, name), rtol=1e-12)


def test_pantheon_in_both_forms(reference: Path) -> None:
    folder = reference / "observations/pantheon"
    one, other = read_supernovae(folder / "lcparam_DS17f.txt"), read_supernovae(folder / "pantheon_binned.h5")
    assert len(one) == 40
    for name in vars(one):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-14, atol=1e-18)


@pytest.mark.parametrize(
    ("table", "systematic", "message"),
    [
        (TABLE.replace("zcmb", "y"), SYSTEMATIC, "no column zcmb or z or .*it has name, y, zhel"),
        (TABLE.replace("0.5 ", "nan "), SYSTEMATIC, "redshift has 1 values that are not finite"),
        (TABLE.replace("0.5 ", "-0.5 "), SYSTEMATIC, "redshifts must be positive"),
        (TABLE.replace("0.5 ", "half "), SYSTEMATIC, "expected numbers"),
        (TABLE.replace(" dmb", " x"), SYSTEMATIC, "no column dmb"),
        (TABLE.splitlines()[0] + "\n", SYSTEMATIC, "has no rows"),
        (TABLE, "2 1 2 3 4 5", "expected a covariance of 2 supernovae, 4 numbers, got 6"),
        (TABLE, "2 1 0.5 0.4 1", "not symmetric"),
        (TABLE, "0.01 0.5 0.5 0.01", "not positive definite"),
    ],
)
def test_mistakes_are_one_line(table: str, systematic: str, message: str, tmp_path: Path) -> None:
    path = pair(tmp_path, table, systematic)
    with pytest.raises(ValueError, match=message) as error:
        read_supernovae(path)
    assert "\n" not in str(error.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        read_supernovae(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match=r"expected one file lcparam\*.txt, found 0"):
        read_supernovae(tmp_path)
    (tmp_path / "table.txt").write_text(TABLE)
    with pytest.raises(ValueError, match="no covariance: name the table lcparam_X.txt"):
        read_supernovae(tmp_path / "table.txt")
    path = pair(tmp_path)
    (tmp_path / "sys_T.txt").unlink()
    with pytest.raises(ValueError, match="systematic covariance sys_T.txt is missing"):
        read_supernovae(path)
    (tmp_path / "bad.h5").write_text("x")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        read_supernovae(tmp_path / "bad.h5")
    (tmp_path / "words.txt").write_text("one two")
    with pytest.raises(ValueError, match="not rows of numbers .line 1: 'one' is no number"):
        read_covariance(tmp_path / "words.txt", 2)


def test_an_inverse_covariance_and_a_complete_one_give_the_same(tmp_path: Path) -> None:
    complete = np.array([[0.02, 0.002], [0.002, 0.07]])
    tables = []
    for kind, matrix in (("cov", complete), ("inv", np.linalg.inv(complete))):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "lcparam_T.txt").write_text(TABLE)
        (folder / f"{kind}_T.txt").write_text("2\n" + "\n".join(map(repr, matrix.ravel().tolist())) + "\n")
        tables.append(read_supernovae(folder))
    with h5py.File(tmp_path / "survey.h5", "w") as file:
        for name, values in {"z": [0.5, 0.1], "zhel": [0.51, 0.11], "mb": [22.9, 19.0]}.items():
            file[name] = values
        file["inverse_covariance"] = np.linalg.inv(complete)
    tables.append(read_supernovae(tmp_path / "survey.h5"))
    for table in tables:
        np.testing.assert_allclose(table.covariance, complete[::-1, ::-1], rtol=1e-12)
    (tmp_path / "inv/sys_T.txt").write_text(SYSTEMATIC)
    with pytest.raises(ValueError, match=r"sys_T.txt and inv_T.txt lie beside it: keep one of them"):
        read_supernovae(tmp_path / "inv")


def test_units_count_and_numbers_are_strict(tmp_path: Path) -> None:
    (tmp_path / "lcparam_T.csv").write_text("z,mb [mmag],dmb [mmag]\n0.5,22900,100\n0.1,19000,200\n")
    (tmp_path / "sys_T.csv").write_text(SYSTEMATIC)
    table = read_supernovae(tmp_path / "lcparam_T.csv")
    np.testing.assert_allclose(table.magnitude, [19.0, 22.9], rtol=1e-14)
    np.testing.assert_allclose(np.diag(table.covariance), [0.03 + 0.04, 0.01 + 0.01], rtol=1e-12)
    with pytest.raises(ValueError, match="mb, row 1: expected numbers, got '22_9'"):
        read_supernovae(pair(tmp_path, TABLE.replace("22.9", "22_9")))
