"""The small inputs of the reference folder that were once read wrongly, and hostile ones, as `ingest` takes them."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.ingest_settings import IngestSettings
from pipeline.stages.ingest import ingest, read_observations
from simulators.protocol import Observable

NO_VALUE = "no value for 'y'"
ADU = (Observable("y", (), "adu"),)
RAGGED = (Observable("y", (6,), "adu", present="present"), Observable("present", (6,), role="context"))
IMAGE = (Observable("y", (2, 3), "adu"),)
CURVE = tuple(Observable(n, (5,), unit) for n, unit in (("time", "d"), ("flux", "mJy"), ("flux_error", "mJy")))


class Wants:
    """What wants the data; it is never asked to simulate."""

    name = "wants"
    parameters = ()

    def __init__(self, observables: tuple[Observable, ...]) -> None:
        self.observables = observables


CASES: dict[str, tuple[tuple[Observable, ...], Any]] = {
    "abmag.ecsv": ((Observable("y", (), "Jy"),), "unit 'mag(AB)' cannot be converted to 'Jy'"),
    "logg.ecsv": ((Observable("y", (), "cm / s2"),), "unit 'dex(cm / s2)' cannot be converted to 'cm / s2'"),
    "astropy_table.hdf5": (ADU, [1, 2]),
    "dup_header.csv": (ADU, "2 columns or arrays with the name 'y'"),
    "fill_float.nc": (ADU, NO_VALUE),
    "packed.nc": (ADU, NO_VALUE),
    "gz.csv.gz": (ADU, [1.5, 2.5]),
    "latin.h5": (ADU, [1, 2]),
    "refs.h5": (ADU, [1, 2]),
    "leading_zero.csv": (ADU, [1.5, 2.5]),
    "thousands.csv": (ADU, "row 1: expected a number, got '1,234.5'"),
    "underscore.csv": (ADU, "row 1: expected a number, got '1_5'"),
    "tscal_tnull.fits": (ADU, NO_VALUE),
    "tscal_tnull_collision.fits": (ADU, [6, 7, 8]),
    "uint_tnull.fits": (ADU, NO_VALUE),
    "two_sci.fits": (IMAGE, "no column 'y'"),
    "uint16_blank.fits": (IMAGE, "no column 'y'"),
    "vla_null.fits": (RAGGED, NO_VALUE),
    "votable_null.vot": (RAGGED, NO_VALUE),
    "vla_scaled.fits": (RAGGED, [[6, 7, 7, 7, 7, 7], [8, 9, 10, 10, 10, 10], [11] * 6]),
    "vla_uint.fits": (RAGGED, [[800] + [801] * 5, [802, 803, 804, 804, 804, 804], [805] * 6]),
    "vlen.h5": (RAGGED, [[1, 2, 2, 2, 2, 2], [3, 4, 5, 5, 5, 5]]),
    "qtable.fits": (CURVE, [[1000, 2000, 3000, 4000, 5000]]),
    "time.fits": (CURVE, [[1, 2, 3, 4, 5]]),
}


def made(path: Path, observables: tuple[Observable, ...], **settings: Any) -> Any:
    return read_observations(Wants(observables), [path], IngestSettings(**settings))  # pyright: ignore


def test_every_case_is_tried(reference: Path) -> None:
    folder = reference / "cases/ingest"
    if not folder.is_dir():
        pytest.skip("the cases (../shared/cases) are not here")
    assert {p.name for p in folder.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_read_right_or_refused(name: str, reference: Path) -> None:
    path = reference / "cases/ingest" / name
    if not path.is_file():
        pytest.skip("the cases (../shared/cases) are not here")
    observables, expected = CASES[name]
    if isinstance(expected, str):
        with pytest.raises(InputError) as error:
            made(path, observables)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)
        return
    key = "flux" if observables is CURVE else "y"
    np.testing.assert_allclose(made(path, observables).x[key].numpy(), expected, rtol=1e-14)


def test_images_of_one_name_are_addressed(reference: Path) -> None:
    path = reference / "cases/ingest/two_sci.fits"
    if not path.is_file():
        pytest.skip("the cases (../shared/cases) are not here")
    for version in (1, 2):
        got = made(path, IMAGE, columns={"y": f"SCI,{version}"})
        assert got.x["y"].unique().tolist() == [version]
    with pytest.raises(InputError, match="'SCI' may be SCI,1 or SCI,2: write it in full"):
        made(path, IMAGE, columns={"y": "SCI"})


def test_what_is_missing_goes_with_drop_missing(reference: Path) -> None:
    folder = reference / "cases/ingest"
    if not folder.is_dir():
        pytest.skip("the cases (../shared/cases) are not here")
    for name, expected in (("tscal_tnull.fits", [6, 8]), ("uint_tnull.fits", [7, 300]), ("packed.nc", [6, 7])):
        np.testing.assert_allclose(made(folder / name, ADU, drop_missing=True).x["y"].numpy(), expected, rtol=1e-14)
    got = made(folder / "votable_null.vot", RAGGED, drop_missing=True)
    assert got.x["present"].tolist() == [[1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0]]


def test_hostile_files_are_one_line(reference: Path, tmp_path: Path) -> None:
    folder = reference / "cases/hostile"
    if not folder.is_dir():
        pytest.skip("the cases (../shared/cases) are not here")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for path in sorted(folder.iterdir()):
        with pytest.raises(InputError) as error:
            load_case(path) if path.suffix == ".yaml" else ingest(
                None, [path], tmp_path / "o.h5", settings=IngestSettings()
            )
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
        assert path.name in str(error.value)
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
