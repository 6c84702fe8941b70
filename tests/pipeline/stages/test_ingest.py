"""Foreign files through the stage: into our layout, with what they were, and out again through `read_data`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.table import Table

from pipeline.config import case_from_values, load_case
from pipeline.errors import InputError
from pipeline.ingest_settings import IngestSettings
from pipeline.settings import CaseSettings
from pipeline.stages.ingest import ingest, read_observations
from pipeline.stages.ingest_list import list_inputs
from pipeline.stages.observed import load_observation
from pipeline.store import hdf5_content_digest, read_data, write_data
from simulators.protocol import Data, Observable
from simulators.radial_velocity import RadialVelocity

PLANET = {"period": 20.885258, "conjunction": 2072.79438, "logk": {"normal": [1.6, 10]}}
RADVEL = {"time": "t[d]", "velocity": "vel[m/s]", "velocity_error": "errvel[m/s]"}


def case(points: int = 32, **rest: object) -> CaseSettings:
    options = {
        "planets": [PLANET],
        "jit": {"normal": [1.1, 0.5]},
        "design": {"points": points, "baseline": 100, "start": 2364, "error": 1.7},
    }
    return case_from_values({"simulator": {"name": "radial_velocity", "options": options | rest}}, "test")


def contents(path: Path) -> dict[str, list]:
    with h5py.File(path) as file:
        return {name: dataset[()].tolist() for name, dataset in file["x"].items()}


def test_k2_24_as_it_lies_there(root: Path, reference: Path, tmp_path: Path) -> None:
    """Through the simulator's own reader, and by columns: the velocities that the project ships."""
    source = reference / "observations/radial_velocity/epic203771098.csv"
    config = load_case(root / "configs/k2_24.yaml")
    ingest(config, [source], tmp_path / "a.h5", settings=config.ingest)
    ingest(config, [source], tmp_path / "b.h5", settings=IngestSettings(columns=RADVEL))
    shipped = contents(root / "data/k2_24.h5")
    assert contents(tmp_path / "a.h5") == contents(tmp_path / "b.h5") == shipped
    simulator = RadialVelocity(**config.simulator.options)
    assert load_observation(simulator, tmp_path / "b.h5").ids == ("epic203771098",)
    with h5py.File(tmp_path / "b.h5") as file:
        inputs = json.loads(file.attrs["inputs"])
        assert file.attrs["stage"] == "ingest"
    assert inputs == {source.name: hashlib.sha256(source.read_bytes()).hexdigest()}


def test_one_instrument_of_hd_164922(root: Path, reference: Path, tmp_path: Path) -> None:
    source = reference / "observations/radial_velocity/164922_fixed.txt"
    ingest(case(276, instrument="j"), [source], tmp_path / "j.h5", settings=IngestSettings())
    with h5py.File(root / "data/hd164922.h5") as shipped:
        keep = shipped["x/instrument"][0] == 1
        assert contents(tmp_path / "j.h5")["velocity"] == [shipped["x/velocity"][0, keep].tolist()]
    with pytest.raises(InputError, match="3 instruments"):
        ingest(case(401), [source], tmp_path / "all.h5", settings=IngestSettings())


def test_a_file_that_declares_units_is_read_by_its_columns(tmp_path: Path) -> None:
    """The simulator's own reader would take km/s for m/s."""
    rng = np.random.default_rng(2)
    table = Table({name: rng.random(5) + 1 for name in ("time", "velocity", "velocity_error")})
    table["time"].unit, table["velocity"].unit, table["velocity_error"].unit = u.d, u.km / u.s, u.km / u.s
    for name in ("star.ecsv", "star.fits", "star.vot"):
        table.write(tmp_path / name, format={"ecsv": "ascii.ecsv", "vot": "votable"}.get(name[5:]))
        ingest(case(5), [tmp_path / name], tmp_path / "a.h5", settings=IngestSettings())
        assert contents(tmp_path / "a.h5")["velocity"] == [[1000 * v for v in table["velocity"].tolist()]]


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "a.csv", tmp_path / "a.h5"
    source.write_text("t,vel,errvel\n1,2,3\n2,3,4\n")
    settings = IngestSettings(columns=RADVEL)
    ingest(case(2), [source], out, settings=settings)
    before, digest = out.stat().st_mtime_ns, hdf5_content_digest(out)
    ingest(case(2), [source], out, settings=settings)
    assert out.stat().st_mtime_ns == before
    assert "up to date" in capsys.readouterr().err
    out.unlink()
    ingest(case(2), [source], out, settings=settings)
    assert hdf5_content_digest(out) == digest
    source.write_text("t,vel,errvel\n1,2,3\n2,3,5\n")
    ingest(case(2), [source], out, settings=settings)
    assert contents(out)["velocity_error"] == [[3, 5]]


def test_our_own_files_are_joined(tmp_path: Path) -> None:
    simulator = RadialVelocity(**case(2).simulator.options)
    for n in range(2):
        x = {o.name: torch.full((2, 2), 1.0 + n, dtype=torch.float64) for o in simulator.observables}
        write_data(tmp_path / f"{n}.h5", observables=simulator.observables, x=x, ids=[f"{n}a", f"{n}b"])
    ingest(case(2), [tmp_path / "1.h5", tmp_path / "0.h5"], tmp_path / "all.h5", settings=IngestSettings())
    data = read_data(tmp_path / "all.h5", observables=simulator.observables)
    assert data.ids == ("1a", "1b", "0a", "0b")
    assert data.x["velocity"][:, 0].tolist() == [2, 2, 1, 1]


def test_strain_without_a_simulator(reference: Path, tmp_path: Path) -> None:
    folder = reference / "observations/gw150914"
    files = sorted(folder.glob("[HL]-*.hdf5"))
    ingest(None, files, tmp_path / "strain.h5", settings=IngestSettings())
    with h5py.File(tmp_path / "strain.h5") as file:
        for row, path in enumerate(files):
            with h5py.File(path) as original:
                assert np.array_equal(file["x/strain"][row], original["strain/Strain"][:])
        assert file["x/time"][0, 4096] == 1126259447.0
        assert file["x/time"].attrs["unit"] == "s"
        assert file["x/time"].attrs["role"] == "context"
        assert file["x/strain"].attrs["unit"] == ""
        assert [i.decode() for i in file["id"][:]] == [p.stem for p in files]
    read_data(tmp_path / "strain.h5", observables=(Observable("strain", (131072,)), Observable("time", (131072,), "s")))


def test_maps_and_images_without_a_simulator(reference: Path, tmp_path: Path) -> None:
    folder = reference / "observations"
    fermi = {
        "counts": "counts[ph]",
        "exposure": "exposure_cm2_s[cm2 s]",
        "gce": "templates/gce[]",
        "used": "mask_analysis[]",
    }
    lens = {"image": "image[electron/s]", "noise": "noise_map[electron/s]", "psf": "psf[]"}
    for path, columns in (
        (folder / "fermi_inner_galaxy/fermi_inner_galaxy_nside128.h5", fermi),
        (folder / "strong_lens/slacs_j2303+1422.h5", lens),
    ):
        with pytest.raises(InputError, match="no unit is declared"):
            read_observations(None, [path], IngestSettings())
        ingest(None, [path], tmp_path / "a.h5", settings=IngestSettings(columns=columns))
        with h5py.File(path) as original, h5py.File(tmp_path / "a.h5") as file:
            for name, text in columns.items():
                assert np.array_equal(file[f"x/{name}"][0], original[text.partition("[")[0]][:])


def test_tables_without_a_simulator(tmp_path: Path) -> None:
    """Rows are observations, or points; where their number differs there is a mask."""
    path = tmp_path / "a.csv"
    path.write_text("star,t [d],f [mJy]\na,1,10\nb,2,20\na,3,30\n")
    rows = read_observations(None, [path], IngestSettings(id=None))
    assert [(o.name, o.shape, o.unit) for o in rows.observables] == [("t", (), "d"), ("f", (), "mJy")]
    assert rows.ids == ("a-1", "a-2", "a-3")
    points = read_observations(None, [path], IngestSettings(rows="points"))
    assert points.x["f"].tolist() == [[10, 20, 30]]
    grouped = read_observations(None, [path], IngestSettings(group="star"))
    assert grouped.ids == ("a", "b")
    assert grouped.x["f"].tolist() == [[10, 30], [20, 20]]
    assert grouped.x["mask"].tolist() == [[1, 1], [1, 0]]


def test_labels_become_codes_that_are_written_down(tmp_path: Path, reference: Path) -> None:
    source = reference / "observations/radial_velocity/164922_fixed.txt"
    columns = {"time": "time[d]", "velocity": "mnvel[m/s]", "instrument": "tel[]"}
    settings = IngestSettings(columns=columns, rows="points", codes={"instrument": ("k", "j", "a")})
    ingest(None, [source], tmp_path / "a.h5", settings=settings)
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.bincount(file["x/instrument"][0].astype(int)).tolist() == [52, 276, 73]
        assert json.loads(file.attrs["codes"]) == {"instrument": {"0": "k", "1": "j", "2": "a"}}


def test_a_simulator_may_read_folders(tmp_path: Path) -> None:
    """Two text files that belong together, as a table and its covariance."""

    class Pairs(RadialVelocity):
        def read_observation(self, path: Path | str) -> tuple[Data, list[str]]:
            rows = [torch.from_numpy(np.loadtxt(Path(path) / name))[None] for name in ("t.txt", "v.txt", "e.txt")]
            return dict(zip(("time", "velocity", "velocity_error"), rows, strict=True)), [Path(path).name]

    simulator = Pairs(**case(2).simulator.options)
    (tmp_path / "star").mkdir()
    for name, text in (("t.txt", "1 2"), ("v.txt", "3 4"), ("e.txt", "5 6")):
        (tmp_path / "star" / name).write_text(text)
    made = read_observations(simulator, [tmp_path / "star"], IngestSettings())
    assert made.ids == ("star",)
    assert made.x["velocity"].tolist() == [[3, 4]]


def test_paths_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("t,vel,errvel\n1,2,3\n")
    for inputs, out, said in (
        ([tmp_path / "no.csv"], tmp_path / "o.h5", "no such file"),
        ([tmp_path], tmp_path / "o.h5", "is a directory"),
        ([path], path, "is a file that is to be read"),
        ([path, path], tmp_path / "o.h5", "is given twice"),
    ):
        with pytest.raises(InputError, match=said):
            ingest(None, inputs, out, settings=IngestSettings())
    assert not (tmp_path / "o.h5").exists()


RADVEL_TABLE = "errvel,t,vel\n" + "".join(f"1.5,{2364.5 + i},{i - 3.0}\n" for i in range(6))


@pytest.mark.parametrize("columns", [{}, RADVEL])
def test_the_observation_that_the_simulator_is_designed_from(columns: dict[str, str], tmp_path: Path) -> None:
    """`design: {observation: FILE}` while FILE is what is made: its points come from what is read."""
    (tmp_path / "star.csv").write_text(RADVEL_TABLE)
    out = tmp_path / "star.h5"
    config = case(design={"observation": str(out)})
    settings = IngestSettings(columns=columns)
    list_inputs(config, [tmp_path / "star.csv"], settings=settings)
    ingest(config, [tmp_path / "star.csv"], out, settings=settings)
    first = out.stat().st_mtime_ns
    assert contents(out)["velocity"] == [[-3, -2, -1, 0, 1, 2]]
    assert RadialVelocity(**config.simulator.options).observables[0].shape == (6,)
    ingest(config, [tmp_path / "star.csv"], out, settings=settings)  # the design is there now: still the same
    assert out.stat().st_mtime_ns == first
    with pytest.raises(InputError, match="no file"):
        ingest(case(design={"observation": str(tmp_path / "none.h5")}), [tmp_path / "star.csv"], out, settings=settings)
