"""`fetch` and `ingest` as a user types them."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import InputError

CSV = "star,bjd,rv,e_rv\na,1,2,0.1\na,2,3,0.1\nb,1,4,0.1\nb,2,5,0.1\n"
COLUMNS = ["--column", "time=bjd[d]", "--column", "velocity=rv[km/s]", "--column", "velocity_error=e_rv[km/s]"]
SIMULATOR = {
    "name": "radial_velocity",
    "options": {
        "planets": [{"period": 20.885258, "conjunction": 2072.79438, "logk": {"normal": [1.6, 10]}}],
        "jit": {"normal": [1.1, 0.5]},
        "design": {"points": 2, "baseline": 100, "start": 0, "error": 1.7},
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELBOSCOPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "stars.csv").write_text(CSV)
    (tmp_path / "case.yaml").write_text(yaml.safe_dump({"simulator": SIMULATOR}))
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_columns_from_the_command_line_and_from_the_case(folder: Path) -> None:
    run("ingest", "case.yaml", "stars.csv", *COLUMNS, "--group", "star", "--out", "a.h5")
    settings = {"columns": {"time": "bjd[d]", "velocity": "rv[m/s]", "velocity_error": "e_rv[km/s]"}, "group": "star"}
    (folder / "told.yaml").write_text(yaml.safe_dump({"simulator": SIMULATOR, "ingest": settings}))
    run("ingest", "told.yaml", "stars.csv", "--column", "velocity=rv[km/s]", "--out", "b.h5")
    for name in ("a.h5", "b.h5"):
        with h5py.File(name) as file:
            assert file["x/velocity"][:].tolist() == [[2000, 3000], [4000, 5000]]
            assert file["x/velocity"].attrs["unit"] == "m / s"
            assert [i.decode() for i in file["id"][:]] == ["a", "b"]


def test_list_says_what_there_is_and_what_is_missing(folder: Path) -> None:
    said = run("ingest", "case.yaml", "stars.csv", "--column", "time=bjd[d]", "--list")
    assert "stars.csv: CSV" in said
    assert "text" in said
    assert "time[d]" not in said
    assert "bjd[d]" in said
    assert "(nothing yet: --column 'velocity=COLUMN[m / s]')" in said
    assert "as it is: stars.csv: no column 'velocity_error' [m / s]" in said
    said = run("ingest", "case.yaml", "stars.csv", *COLUMNS, "--group", "star", "--list")
    assert "would write 2 observation(s): a, b" in said
    assert sorted(p.name for p in folder.iterdir()) == ["case.yaml", "stars.csv"]


def test_a_simulator_by_its_name(folder: Path) -> None:
    Path("x.csv").write_text("a,b,c,d,e\n1,2,3,4,5\n")
    run("ingest", "linear_gaussian", "x.csv", "--column", "x=*", "--out", "x.h5")
    with h5py.File("x.h5") as file:
        assert file["x/x"][:].tolist() == [[1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ingest", "case.yaml", "stars.csv"), "expected --out FILE, or --list"),
        (
            ("ingest", "case.yaml", "stars.csv", "--column", "time", "--out", "o.h5"),
            "--column time: expected OBSERVABLE",
        ),
        (("ingest", "case.yaml", "stars.csv", "--rows", "pixels", "--out", "o.h5"), "ingest: rows: Input should be"),
        (("ingest", "nothing", "stars.csv", "--out", "o.h5"), "unknown simulator 'nothing'"),
        (("ingest", "no.yaml", "stars.csv", "--out", "o.h5"), "no.yaml: no such file"),
        (("ingest", "none", "fetch:k2_24", "--out", "o.h5"), "run `elboscope fetch k2_24`"),
        (("fetch",), "expected a dataset: k2_24, "),
        (("fetch", "k2_42"), "did you mean 'k2_24'?"),
    ],
)
def test_mistakes_are_one_line(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError) as error:
        run(*arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("o.h5").exists()


def test_fetch_lists_and_finds_what_is_there(folder: Path, reference: Path) -> None:
    assert "in the cache" not in run("fetch", "--list")
    source = reference / "observations/radial_velocity/epic203771098.csv"
    (folder / "cache/k2_24").mkdir(parents=True)
    (folder / "cache/k2_24" / source.name).write_bytes(source.read_bytes())
    assert run("fetch", "--list").count("in the cache") == 1
    assert run("fetch", "k2_24").strip() == str(folder / "cache/k2_24" / source.name)
    run("ingest", "none", "fetch:k2_24", "--rows", "points", "--column", "velocity=vel[m/s]", "--out", "v.h5")
    with h5py.File("v.h5") as file:
        assert file["x/velocity"].shape == (1, 32)
