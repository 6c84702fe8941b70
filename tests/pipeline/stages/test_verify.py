"""Everything bad in a run folder is found, named, and made again with the same content."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.verify import check_run, verify
from pipeline.store import hdf5_content_digest
from tests.pipeline.stages.conftest import write_case


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("verify")
    case = write_case(folder, {"simulate": {"count": 900, "held_out": 100, "shard": 300}})
    run = Run(load_case(case), folder / "run")
    simulate(run)
    return run


@pytest.fixture
def copy(made: Run, tmp_path: Path) -> Run:
    shutil.copytree(made.folder, tmp_path / "run")
    return Run(made.case, tmp_path / "run")


def flip(path: Path, offset: int | None = None) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if offset is None else offset] ^= 4
    path.write_bytes(raw)


def flip_data(folder: Path) -> Path:
    path = folder / "simulations/shard-00001.h5"
    with h5py.File(path) as file:
        offset = file["theta"].id.get_chunk_info(0).byte_offset
    flip(path, offset + 11)
    return path


def flip_metadata(folder: Path) -> Path:
    path = folder / "simulations/shard-00001.h5"
    flip(path, path.read_bytes().index(b"content_key") + 3)
    return path


def lose_a_shard(folder: Path) -> Path:
    (folder / "simulations/shard-00002.h5").unlink()
    return folder / "simulations.h5"


def exchange_shards(folder: Path) -> Path:
    first, second = (folder / f"simulations/shard-0000{i}.h5" for i in (0, 1))
    shutil.copy(first, second)
    return second


def shorten(folder: Path) -> Path:
    path = folder / "simulations/shard-00000.h5"
    path.write_bytes(path.read_bytes()[:-200])
    return path


def flip_the_link(folder: Path) -> Path:
    flip(folder / "simulations.h5")
    return folder / "simulations.h5"


def change_rows(folder: Path) -> Path:
    path = folder / "simulations/shard-00003.h5"
    with h5py.File(path, "a") as file:
        theta = file["theta"][:50]
        del file["theta"]
        file["theta"] = theta
    return path


DAMAGES = (flip_data, flip_metadata, lose_a_shard, exchange_shards, shorten, flip_the_link, change_rows)


def test_a_whole_run_is_well(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    verify(made.folder)
    assert "all is well" in capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_is_found_named_and_repaired(
    damage: Callable[[Path], Path], copy: Run, made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damage(copy.folder)
    with pytest.raises(InputError, match="bad, see above"):
        verify(copy.folder)
    assert f"bad: {path}: " in capsys.readouterr().err
    verify(copy.folder, repair=True)
    assert check_run(copy.folder) == []
    for name in ("simulations.h5", *(f"simulations/shard-0000{i}.h5" for i in range(4))):
        assert hdf5_content_digest(copy.folder / name) == hdf5_content_digest(made.folder / name)


def test_simulations_of_other_settings_are_not_replaced_by_a_repair(copy: Run) -> None:
    path = flip_data(copy.folder)
    before = path.read_bytes()
    with pytest.raises(InputError, match="not those of these settings"):
        verify(copy.folder, repair=True, case=copy.case.model_copy(update={"seed": 99}))
    assert path.read_bytes() == before


def test_what_no_simulation_can_replace_is_set_aside(trained: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    assert check_run(folder) == []
    flip(folder / "posterior.safetensors")
    with pytest.raises(InputError, match="bad, see above"):
        verify(folder)
    verify(folder, repair=True)
    assert (folder / "posterior.safetensors.damaged").is_file()
    assert not (folder / "posterior.safetensors").exists()


def test_an_output_of_other_inputs_is_noted(trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    simulate(Run(trained.case.model_copy(update={"seed": 8}), folder))
    verify(folder)
    assert "posterior.safetensors was made from another simulations.h5" in capsys.readouterr().err


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        verify(tmp_path)
