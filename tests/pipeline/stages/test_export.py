"""What people do with a real `inference.h5`: tables, chains, ArviZ, pandas."""

from __future__ import annotations

import json
from pathlib import Path

import arviz
import numpy as np
import pandas
import pytest
import xarray
from astropy.io import fits
from astropy.table import QTable
from matplotlib import pyplot

from pipeline import posterior_table
from pipeline.errors import InputError
from pipeline.stages.export import export, write_table
from pipeline.stages.infer import infer
from pipeline.stages.run import Run
from pipeline.store import open_hdf5


@pytest.fixture(scope="module")
def inferred(trained: Run) -> Path:
    return infer(trained)


@pytest.mark.parametrize("suffix", [".ecsv", ".fits"])
def test_tables_come_back_as_they_were(inferred: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"table{suffix}"
    export(inferred, output)
    table, back = posterior_table(inferred), QTable.read(output)
    assert back.colnames == table.colnames
    for name in table.colnames:
        if table[name].dtype.kind == "f":
            np.testing.assert_array_equal(np.asarray(back[name]), np.asarray(table[name]))
    assert list(back["id"]) == ["first", "second"]
    assert list(back["verdict"]) == list(table["verdict"])
    assert list(np.ma.filled(back["note"], "")) == list(table["note"])  # ECSV has no empty text, only missing text
    with open_hdf5(inferred) as file:
        np.testing.assert_array_equal(back["log_evidence"], file["certificate/log_evidence"][:])  # pyright: ignore
        inputs = json.loads(str(file.attrs["inputs"]))
        if suffix == ".ecsv":
            assert back.meta["inputs"] == inputs
        else:
            header = fits.getheader(output, 1)
            assert header["CONTKEY"] == file.attrs["content_key"]
            assert json.loads(header["INPUTS"]) == inputs


def test_csv_and_draws(inferred: Path, tmp_path: Path) -> None:
    export(inferred, tmp_path / "a.csv")
    assert list(pandas.read_csv(tmp_path / "a.csv")["id"]) == ["first", "second"]
    export(inferred, tmp_path / "draws.fits", format="draws", observations=["second"])
    draws = QTable.read(tmp_path / "draws.fits")
    with open_hdf5(inferred) as file:
        np.testing.assert_array_equal(draws["theta_2"], file["posterior/theta_2"][0, :, 1])  # pyright: ignore


def test_units_and_text_in_each_format(tmp_path: Path) -> None:
    from astropy import units as u

    table = QTable({"id": ["a"], "v": [3.0] * u.m / u.s, "m": [1.0] * u.earthMass})
    write_table(table, tmp_path / "t.fits")
    back = QTable.read(tmp_path / "t.fits")
    assert back["v"].unit == u.m / u.s
    assert fits.getheader(tmp_path / "t.fits", 1)["TUNIT2"] == "m s-1"
    assert back["m"].unit == u.kg
    assert back["m"][0].to_value(u.earthMass) == pytest.approx(1.0)
    write_table(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == "id,v [m / s],m [earthMass]"
    with pytest.raises(InputError, match="FITS holds ASCII only, and 'β Pic' is not; export as .ecsv"):
        write_table(QTable({"id": ["β Pic"]}), tmp_path / "u.fits")
    assert not (tmp_path / "u.fits").exists()
    for unit in ("dex(cm / s2)", "electron"):
        with pytest.raises(InputError, match="FITS cannot hold m in .*, nor in SI units; export as .ecsv"):
            write_table(QTable({"m": np.ones(1) << u.Unit(unit)}), tmp_path / "u.fits")
    write_table(QTable({"id": ["β Pic"]}), tmp_path / "u.ecsv")
    assert QTable.read(tmp_path / "u.ecsv")["id"][0] == "β Pic"


def test_what_cannot_be_written_is_refused(inferred: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in .ecsv"):
        export(inferred, tmp_path / "a.txt")
    with pytest.raises(InputError, match="unknown format 'latex'"):
        export(inferred, tmp_path / "a.ecsv", format="latex")
    with pytest.raises(InputError, match="is the file that is to be read"):
        export(inferred, inferred, format="fits")


def test_chains_of_delivered_draws_know_their_log_posterior(inferred: Path, tmp_path: Path) -> None:
    export(inferred, tmp_path / "chain", format="getdist", observations=["first"])
    chain = np.loadtxt(tmp_path / "chain_1.txt")
    with open_hdf5(inferred) as file:
        p, n = file["proposal"], 7
        stored = np.flatnonzero(p["theta_1"][:, 0] == chain[n, 2])  # pyright: ignore
        assert chain[n, 1] == -p["log_joint"][stored[0], 0]  # pyright: ignore


# ArviZ 0.23 calls matplotlib 3.11 in a way that goes with 3.13
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_arviz_and_pandas_as_the_documentation_has_them(inferred: Path) -> None:
    """Each line of docs/results.md that is not ours."""
    result = arviz.from_netcdf(inferred)
    one = result.sel(observation="first")
    summary = arviz.summary(one, var_names=["theta_1", "theta_2"])
    table = posterior_table(inferred, observations=["first"])
    assert list(summary.index) == ["theta_1", "theta_2"]
    assert summary.loc["theta_1", "mean"] == pytest.approx(table["theta_1"][0], abs=6e-4)  # of three decimal places
    axes = arviz.plot_trace(one, var_names=["theta_1"])
    assert axes.shape == (1, 2)
    pyplot.close("all")

    frame = xarray.open_dataset(inferred, group="certificate", engine="h5netcdf").to_dataframe()
    assert list(frame.index) == ["first", "second"]
    assert set(frame["verdict"]) <= {"exact", "corrected", "refined", "sampled", "failed"}
    np.testing.assert_array_equal(frame["log_evidence"], posterior_table(inferred)["log_evidence"])
    draws = result.posterior.to_dataframe()
    assert draws.loc[0, 3, "second"]["theta_3"] == float(result.posterior["theta_3"][0, 3, 1])
