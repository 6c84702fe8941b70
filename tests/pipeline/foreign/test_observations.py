"""Tables wide and long, arrays, masks, identifiers and gaps, against what one would write down by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy import units as u
from astropy.table import Table

from pipeline.errors import InputError
from pipeline.foreign.missing import Settled
from pipeline.foreign.observations import gather, plan
from pipeline.foreign.read import read_foreign
from pipeline.ingest_settings import IngestSettings
from simulators.protocol import Observable, Simulator

LONG = """star,t [d],f [mJy],e [mJy],plx [mas]
B,1,10,0.1,5
A,1,20,0.2,7
B,2,11,0.1,5
A,2,21,0.2,7
B,3,12,0.1,5
"""
COLUMNS = {"time": "t", "flux": "f", "flux_error": "e", "parallax": "plx"}
SUPERNOVAE = (
    Observable("redshift", (40,), role="context"),
    Observable("magnitude", (40,), "mag"),
    Observable("covariance", (40, 40), "mag2", role="context"),
)


def made(observables: Sequence[Observable], *files: Path, **settings: Any) -> Settled:
    return gather(files, plan(observables, IngestSettings(**settings)), read_foreign)


def refused(observables: Sequence[Observable], *files: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as error:
        made(observables, *files, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(folder: Path, text: str = LONG, name: str = "stars.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


# ------------------------------------------------------------ long tables


def test_a_long_table_of_many_stars(tmp_path: Path, light_curve: Simulator) -> None:
    """Rows of B and A alternate; A has two points and B three, of four."""
    result = made(light_curve.observables, write(tmp_path), columns=COLUMNS, group="star")
    assert result.ids == ("B", "A")
    assert result.x["point_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert result.x["flux"].tolist() == [[10, 11, 12, 12], [20, 21, 21, 21]]  # absent points repeat the last one
    assert result.x["time"].tolist() == [[1, 2, 3, 3], [1, 2, 2, 2]]
    assert result.x["parallax"].tolist() == [5, 7]


def test_one_file_an_observation(tmp_path: Path, light_curve: Simulator) -> None:
    lines = LONG.splitlines()
    files = [
        write(tmp_path, "\n".join([lines[0], *(r for r in lines[1:] if r[0] == star)]), f"{star}.csv") for star in "BA"
    ]
    together = made(light_curve.observables, write(tmp_path), columns=COLUMNS, group="star")
    for options in ({}, {"id": "star"}):
        apart = made(light_curve.observables, *files, columns=COLUMNS, **options)
        assert apart.ids == together.ids
        for name, values in together.x.items():
            assert np.array_equal(apart.x[name], values), name
    assert "identifier 'B' stands for more than one" in refused(
        light_curve.observables, *files, files[0], columns=COLUMNS
    )
    both = write(tmp_path, LONG.replace(",7\n", ",5\n").replace("A,2,21,0.2,5\n", ""), "both.csv")
    assert "star changes within the file" in refused(light_curve.observables, both, columns=COLUMNS, id="star")


def test_numbers_of_an_observation_must_not_change(tmp_path: Path, light_curve: Simulator) -> None:
    path = write(tmp_path, LONG.replace("B,3,12,0.1,5", "B,3,12,0.1,6"))
    message = refused(light_curve.observables, path, columns=COLUMNS, group="star")
    assert "row 5 differs from row 1 of the same observation 'B'" in message


def test_too_many_and_too_few_points(tmp_path: Path, light_curve: Simulator) -> None:
    path = write(tmp_path, LONG + "B,4,1,1,5\nB,5,1,1,5\n")
    message = refused(light_curve.observables, path, columns=COLUMNS, group="star")
    assert "observation 'B' has 5 points, the simulator takes 4" in message
    no_mask = [o for o in light_curve.observables if o.name != "point_mask"]
    message = refused(no_mask, write(tmp_path), columns=COLUMNS, group="star")
    assert "observation 'B' has 3 points of 'time', the simulator wants 4 and has no mask for fewer" in message


# ------------------------------------------------------------ wide tables, arrays


def test_a_wide_table_in_fits(tmp_path: Path, spectrum: Simulator) -> None:
    table = Table({"flux": [[1.0, 2, 3], [4, 5, 6]] * u.mJy, "star": ["a", "b"]})
    table["covariance"] = np.ones((2, 3, 3)) * u.mJy**2
    table.write(tmp_path / "a.fits")
    result = made(spectrum.observables, tmp_path / "a.fits", id="star")
    assert result.ids == ("a", "b")
    np.testing.assert_allclose(result.x["flux"], [[0.001, 0.002, 0.003], [0.004, 0.005, 0.006]], rtol=1e-15)
    np.testing.assert_allclose(result.x["covariance"], np.full((2, 3, 3), 1e-6), rtol=1e-15)
    assert made(spectrum.observables, tmp_path / "a.fits").ids == ("a-1", "a-2")


def test_elements_in_columns_of_csv(tmp_path: Path) -> None:
    flux = (Observable("flux", (3,), "Jy"),)
    path = write(tmp_path, "f1,f2,f3\n1,2,3\n4,5,6\n")
    assert made(flux, path, columns={"flux": "f*[Jy]"}).x["flux"].tolist() == [[1, 2, 3], [4, 5, 6]]
    message = refused(flux, path, columns={"flux": "f1,f2[Jy]"})
    assert "a row has shape (2,), observable 'flux' wants (3,)" in message


def test_rows_of_arrays_of_any_length(tmp_path: Path) -> None:
    from astropy.io import fits

    curves = np.empty(2, dtype=object)
    curves[:] = [np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])]
    columns = [fits.Column("flux", "PD()", array=curves, unit="mJy"), fits.Column("star", "2A", array=["a", "b"])]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    observables = (Observable("flux", (4,), "mJy"), Observable("mask", (4,), role="context"))
    result = made(observables, tmp_path / "a.fits", id="star")
    assert result.x["flux"].tolist() == [[1, 2, 2, 2], [3, 4, 5, 5]]
    assert result.x["mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]


def test_images_of_several_files(tmp_path: Path) -> None:
    from astropy.io import fits

    image = (Observable("image", (2, 2), "electron / s"), Observable("psf", (1, 1), role="context"))
    for n in range(2):
        science = fits.ImageHDU(np.full((2, 2), float(n)), name="SCI")
        science.header["BUNIT"] = "electron/s"
        first = fits.PrimaryHDU()
        first.header["OBJECT"] = f"lens {n}"
        fits.HDUList([first, science]).writeto(tmp_path / f"{n}.fits")
    np.save(tmp_path / "psf.npy", np.ones((1, 1)))
    settings = {"columns": {"image": "SCI"}, "arrays": {"psf": str(tmp_path / "psf.npy")}, "id": "OBJECT"}
    result = made(image, tmp_path / "0.fits", tmp_path / "1.fits", **settings)
    assert result.ids == ("lens 0", "lens 1")
    assert result.x["image"].tolist() == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]
    assert result.x["psf"].shape == (2, 1, 1)


def test_arrays_alone(tmp_path: Path, spectrum: Simulator) -> None:
    np.save(tmp_path / "flux.npy", np.arange(6.0).reshape(2, 3))
    np.savetxt(tmp_path / "cov.txt", np.eye(3))
    arrays = {"flux": f"{tmp_path}/flux.npy[Jy]", "covariance": f"{tmp_path}/cov.txt[Jy2]"}
    result = made(spectrum.observables, arrays=arrays)
    assert result.ids == ("flux-1", "flux-2")
    assert np.array_equal(result.x["covariance"], [np.eye(3)] * 2)
    assert "nothing given for covariance" in refused(spectrum.observables, arrays={"flux": arrays["flux"]})


def test_supernovae_from_text_files(reference: Path) -> None:
    """Pantheon: a table whose header does not fit it, and a covariance with N in front; exactly the one HDF5 file."""
    folder = reference / "observations/pantheon"
    result = made(
        SUPERNOVAE,
        folder / "lcparam_DS17f.txt",
        columns={"redshift": "col2", "magnitude": "col5[mag]"},
        arrays={"covariance": f"{folder}/sys_DS17f.txt[mag2]"},
        diagonal={"covariance": "col6[mag]"},
    )
    assert result.ids == ("lcparam_DS17f",)
    with h5py.File(folder / "pantheon_binned.h5") as file:
        assert np.array_equal(result.x["redshift"][0], file["z"][:])
        assert np.array_equal(result.x["magnitude"][0], file["mb"][:])
        np.testing.assert_allclose(result.x["covariance"][0], file["covariance"][:], rtol=1e-14, atol=1e-20)
    one = made(
        SUPERNOVAE,
        folder / "pantheon_binned.h5",
        columns={"redshift": "z", "magnitude": "mb[mag]", "covariance": "covariance[mag2]"},
    )
    np.testing.assert_allclose(one.x["covariance"], result.x["covariance"], rtol=1e-14, atol=1e-20)


def test_a_survey_with_fewer_supernovae(reference: Path, tmp_path: Path) -> None:
    """41 places for 40: the covariance gets the identity where there is none."""
    present = Observable("present", (41,), role="context")
    wants = (
        Observable("redshift", (41,), role="context"),
        present,
        Observable("magnitude", (41,), "mag", error="covariance"),
        Observable("covariance", (41, 41), "mag2", role="context"),
    )
    folder = reference / "observations/pantheon"
    columns = {"redshift": "z", "magnitude": "mb[mag]", "covariance": "covariance[mag2]"}
    result = made(wants, folder / "pantheon_binned.h5", columns=columns)
    with h5py.File(folder / "pantheon_binned.h5") as file:
        assert np.array_equal(result.x["covariance"][0, :40, :40], file["covariance"][:])
        assert result.x["redshift"][0].tolist() == [*file["z"][:], file["z"][-1]]
    assert result.x["covariance"][0, 40].tolist() == [*[0.0] * 40, 1.0]
    assert result.x["present"][0].tolist() == [*[1.0] * 40, 0.0]
    np.savetxt(tmp_path / "39.txt", np.eye(39))
    arrays = {"covariance": f"{tmp_path}/39.txt[mag2]"}
    del columns["covariance"]
    message = refused(wants, folder / "pantheon_binned.h5", columns=columns, arrays=arrays)
    assert "'z' has 40 points and '39' 39" in message
    np.savetxt(tmp_path / "negative.txt", -np.eye(40))
    arrays = {"covariance": f"{tmp_path}/negative.txt[mag2]"}
    message = refused(wants, folder / "pantheon_binned.h5", columns=columns, arrays=arrays)
    assert "covariance, diagonal, element [0]: an error must be positive" in message


def test_errors_alone_make_a_diagonal_covariance(tmp_path: Path, spectrum: Simulator) -> None:
    path = write(tmp_path, "flux [mJy],e [mJy]\n1000,100\n2000,200\n3000,300\n")
    result = made(spectrum.observables, path, diagonal={"covariance": "e"})
    np.testing.assert_allclose(result.x["covariance"][0], np.diag([0.01, 0.04, 0.09]), rtol=1e-14)
    assert "which is no covariance" in refused(spectrum.observables, path, diagonal={"flux": "e"})


# ------------------------------------------------------------ gaps


def test_a_missing_value_is_refused_with_its_row(tmp_path: Path, light_curve: Simulator) -> None:
    path = write(tmp_path, LONG.replace("B,2,11", "B,2,"))
    message = refused(light_curve.observables, path, columns=COLUMNS, group="star")
    assert message.startswith("f, observation 'B', row 3: no value for 'flux'")
    assert "--drop-missing" in message


def test_missing_points_are_left_out_and_counted(tmp_path: Path, light_curve: Simulator) -> None:
    path = write(tmp_path, LONG.replace("B,2,11", "B,2,nan").replace("A,1,20", "A,1,").replace("A,2,21", "A,2,"))
    result = made(light_curve.observables, path, columns=COLUMNS, group="star", drop_missing=True)
    assert result.ids == ("B",)
    assert result.left_out == ("A",)
    assert result.points_absent == 3
    assert result.x["time"].tolist() == [[1, 3, 3, 3]]
    assert result.x["point_mask"].tolist() == [[1, 1, 0, 0]]


def test_a_file_without_a_complete_row_is_left_out(tmp_path: Path, light_curve: Simulator) -> None:
    header = LONG.splitlines()[0]
    files = [write(tmp_path, f"{header}\nx,1,{f},0.1,5\nx,2,{f},0.1,5\n", f"{f or 'gone'}.csv") for f in ("", "7")]
    result = made(light_curve.observables, *files, columns=COLUMNS, drop_missing=True)
    assert (result.ids, result.left_out, result.points_absent) == (("7",), ("gone",), 2)
    message = refused(light_curve.observables, files[0], columns=COLUMNS, drop_missing=True)
    assert "all rows of 1 file(s) have missing values" in message


def test_missing_elements_become_absent_or_leave_the_observation_out(tmp_path: Path) -> None:
    values = np.array([[1.0, np.nan, 3.0], [4.0, 5.0, 6.0]])
    np.savez(tmp_path / "a.npz", flux=values)
    flux, mask = Observable("flux", (3,)), Observable("mask", (3,), role="context")
    assert "a.npz" not in refused((flux,), tmp_path / "a.npz")
    assert "flux, observation 'a-1', element [1]: no value" in refused((flux, mask), tmp_path / "a.npz")
    result = made((flux, mask), tmp_path / "a.npz", drop_missing=True)
    assert result.x["flux"].tolist() == [[1, 1, 3], [4, 5, 6]]
    assert result.x["mask"].tolist() == [[1, 0, 1], [1, 1, 1]]
    assert result.points_absent == 1
    result = made((flux,), tmp_path / "a.npz", drop_missing=True)
    assert (result.ids, result.left_out) == (("a-2",), ("a-1",))
    np.savez(tmp_path / "none.npz", flux=values * np.nan)
    assert "nothing is left" in refused((flux,), tmp_path / "none.npz", drop_missing=True)


def test_gaps_under_a_mask_of_the_file_are_no_gaps(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", flux=[[np.nan, 2.0, 3.0]], mask=[[0, 1, 1]])
    observables = (Observable("flux", (3,)), Observable("mask", (3,), role="context"))
    assert made(observables, tmp_path / "a.npz").x["flux"].tolist() == [[2, 2, 3]]
    np.savez(tmp_path / "b.npz", flux=[[1.0, 2.0, 3.0]], mask=[[0, 1, 2]])
    assert "a mask is 1 for present and 0 for absent" in refused(observables, tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", flux=[[1.0, 2.0, 3.0]], mask=[[0, 0, 0]])
    assert "has no point" in refused(observables, tmp_path / "c.npz")


def test_errors_must_be_positive(tmp_path: Path, light_curve: Simulator) -> None:
    path = write(tmp_path, LONG.replace("11,0.1", "11,0"))
    message = refused(light_curve.observables, path, columns=COLUMNS, group="star")
    assert "observation 'B': flux_error, element [1]: an error must be positive" in message


# ------------------------------------------------------------ what does not fit


def test_what_does_not_fit_is_one_line(tmp_path: Path, light_curve: Simulator, spectrum: Simulator) -> None:
    stars = write(tmp_path)
    wants = light_curve.observables
    assert "no column 'time' [d]; name one with --column 'time=COLUMN[UNIT]'" in refused(wants, stars)
    assert "columns: no observable 'fux'" in refused(wants, stars, columns={"fux": "f"})
    assert "given both as a column and as an array" in refused(
        wants, stars, columns={"flux": "f"}, arrays={"flux": str(stars)}
    )
    assert "no column or array 'start'; did you mean 'star'" in refused(wants, stars, columns=COLUMNS, group="start")
    unnamed = write(tmp_path, LONG.replace("A,2", ",2"), "unnamed.csv")
    assert "star, row 4: no label" in refused(wants, unnamed, columns=COLUMNS, group="star")
    assert "identifier 'B' stands for more than one" in refused(
        wants, stars, write(tmp_path, LONG, "again.csv"), columns=COLUMNS, group="star"
    )
    assert "array of covariance: none.txt: no such file" in refused(
        spectrum.observables, stars, arrays={"covariance": "none.txt[Jy2]"}
    )
    np.savez(tmp_path / "a.npz", flux=np.ones(5))
    assert "has shape (5,), observable 'flux' wants (3,)" in refused(
        spectrum.observables[:1], tmp_path / "a.npz", columns={"flux": "flux[Jy]"}
    )
    np.savez(tmp_path / "b.npz", flux=np.ones((2, 3)), covariance=np.ones((3, 3, 3)))
    assert "not the same number of observations everywhere" in refused(
        spectrum.observables, tmp_path / "b.npz", columns={"flux": "flux[Jy]", "covariance": "covariance[Jy2]"}
    )
    assert "nothing to read" in refused(wants)


# ------------------------------------------------------------ names, types, defaults


def test_identifiers_stay_as_they_are_written(tmp_path: Path) -> None:
    flux = (Observable("flux", (), "Jy"),)
    path = write(tmp_path, "name,flux [Jy]\n0012,1\n12,2\n1e5,3\n100000.0,4\n")
    assert made(flux, path, id="name").ids == ("0012", "12", "1e5", "100000.0")
    numbers = write(tmp_path, "name,flux [Jy]\n1.10,1\n1.1,2\n12345678901234567890,3\n", "b.csv")
    assert made(flux, numbers, id="name").ids == ("1.10", "1.1", "12345678901234567890")


def test_groups_stay_as_they_are_written(tmp_path: Path, light_curve: Simulator) -> None:
    path = write(tmp_path, LONG.replace("A,", "007,").replace("B,", "07,"))
    assert made(light_curve.observables, path, columns=COLUMNS, group="star").ids == ("07", "007")


def test_two_columns_of_one_name_are_refused_where_they_are_wanted(tmp_path: Path) -> None:
    flux = (Observable("flux", (), "Jy"),)
    both = write(tmp_path, "flux [Jy],flux [mJy],id\n1,2,a\n")
    assert "2 columns or arrays with the name 'flux': rename all but one" in refused(flux, both)
    cases = write(tmp_path, "FLUX [Jy],Flux [Jy]\n1,2\n", "b.csv")
    assert "'flux' may be FLUX or Flux: write it in full" in refused(flux, cases)
    assert made(flux, cases, columns={"flux": "Flux"}).x["flux"].tolist() == [2]


def test_what_is_absent_is_taken_from_its_default(tmp_path: Path) -> None:
    redshifts = (Observable("z", ()), Observable("zhel", (), default="z"))
    got = made(redshifts, write(tmp_path, "z,other\n0.1,5\n0.2,6\n"))
    assert got.x["zhel"].tolist() == got.x["z"].tolist() == [0.1, 0.2]
    got = made(redshifts, write(tmp_path, "z,zhel\n0.1,0.11\n0.2,0.21\n"))
    assert got.x["zhel"].tolist() == [0.11, 0.21]


def test_files_of_different_types_have_the_widest(tmp_path: Path) -> None:
    """A Julian date in single precision is good to three hours."""
    import h5py

    from pipeline.foreign.read import read_foreign
    from pipeline.foreign.undeclared import observables_of
    from pipeline.ingest_settings import IngestSettings

    for name, dtype in (("a", "f4"), ("b", "f8")):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["time"] = np.array([2457000.25, 2457001.25], dtype=dtype)
            file["time"].attrs["unit"] = "d"
    files = [read_foreign(tmp_path / name) for name in ("a.h5", "b.h5")]
    for order in (files, files[::-1]):
        assert observables_of(order, IngestSettings())[0][0].dtype == "float64"
    assert observables_of(files[:1], IngestSettings())[0][0].dtype == "float32"
