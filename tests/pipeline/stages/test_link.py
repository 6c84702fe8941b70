"""The file over the shards: relative, in order, with readable attributes."""

from __future__ import annotations

import fcntl
import resource
import shutil
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.stages.link import forget_what_lost_its_shards, linked_shards
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.store import read_data
from tests.pipeline.stages.conftest import write_case


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(
        load_case(write_case(tmp_path, {"simulate": {"count": 500, "held_out": 100, "shard": 250}})), tmp_path / "run"
    )
    simulate(run)
    return run


def test_every_dataset_points_at_all_shards_in_order(run: Run) -> None:
    expected = [(f"simulations/shard-0000{i}.h5", 250 * i, rows) for i, rows in enumerate((250, 250, 100))]
    assert linked_shards(run.output("simulate")) == {"failed": expected, "theta": expected, "x/x": expected}


def test_a_run_folder_can_be_moved(run: Run, tmp_path: Path) -> None:
    with h5py.File(run.output("simulate")) as file:
        before = file["theta"][...]
    shutil.move(run.folder, tmp_path / "elsewhere")
    with h5py.File(tmp_path / "elsewhere/simulations.h5") as file:
        np.testing.assert_array_equal(file["theta"][...], before)


def test_attributes_are_text_for_plain_h5py(run: Run) -> None:
    with h5py.File(run.output("simulate")) as file:
        assert file["x/x"].attrs["role"] == "data"
        assert list(file["theta"].attrs["names"]) == ["theta_1", "theta_2", "theta_3"]
        assert (file.attrs["shards"], file.attrs["failed_count"], file.attrs["failures"]) == (3, 0, "")


def test_it_is_forgotten_with_a_shard(run: Run) -> None:
    output = run.output("simulate")
    forget_what_lost_its_shards(output)
    assert output.is_file()
    (run.folder / "simulations/shard-00001.h5").unlink()
    forget_what_lost_its_shards(output)
    assert not output.exists()


def test_shards_behind_it_are_read_without_a_lock(run: Run) -> None:
    output = run.output("simulate")
    with (run.folder / "simulations/shard-00001.h5").open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        data = read_data(output, observables=run.simulator.observables, parameters=run.simulator.parameters)
    assert len(data) == 600


def test_more_shards_than_files_may_be_open(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append(limit))
    read = partial(read_data, run.output("simulate"), observables=run.simulator.observables)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (200, 5_000))
    assert len(read()) == 600
    assert limits == [(259, 5_000)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10, 10))
    with pytest.raises(InputError, match="has 3 shards, and this process may open 10 files at once: raise `ulimit -n`"):
        read()
