"""Units that are not lengths over times: everything that a user makes of a file can hold them, or says in one line why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from astropy.table import QTable
from astropy.units import Unit

from pipeline.errors import InputError
from pipeline.stages.export import export
from pipeline.stages.plot import plot
from tests.pipeline.tables.conftest import write_inference_file
from tests.simulators.test_units import ODD_UNITS


@pytest.mark.parametrize("unit", [u for u in ODD_UNITS if "(" in u or u == "%"])
def test_tables_and_chains_hold_it(unit: str, tmp_path: Path) -> None:
    path = tmp_path / "inference.h5"
    write_inference_file(path, ["a", "b"], units=(unit, "d"))
    export(path, tmp_path / "t.ecsv")
    back = QTable.read(tmp_path / "t.ecsv")["logk1_q50"]
    assert back.unit == Unit(unit)
    export(path, tmp_path / "t.csv")
    assert "logk1_q50 [" in (tmp_path / "t.csv").read_text(encoding="utf-8")
    refused = ""
    try:
        export(path, tmp_path / "t.fits")
    except InputError as error:
        refused = str(error)
    assert (tmp_path / "t.fits").is_file() != ("export as .ecsv instead" in refused)


def test_corner_plot_with_logarithmic_units(tmp_path: Path) -> None:
    path = tmp_path / "inference.h5"
    write_inference_file(path, ["a"], units=("dex(cm-2)", "mag(AB)"))
    assert plot(path, tmp_path / "corner.svg", observations=["a"])[0].is_file()
