"""Rows of a simulation file: the right ones, across shards, without failed ones; whatever is wrong is one line."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch

from pipeline.errors import InputError
from pipeline.training import rows as rows_module
from pipeline.training.rows import SimulationRows
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of
from simulators.protocol import Data
from tests.pipeline.training.conftest import SIMULATOR, MakeRows, write_simulations


def numbers(rows: SimulationRows, start: int, stop: int) -> list[int]:
    read = rows.read(start, stop)
    assert torch.equal(read.theta[:, 0], -read.theta[:, 1])
    assert torch.equal(read.x["x"], read.theta[:, :1].expand(-1, 3))
    assert torch.equal(read.inputs.features, read.x["x"].float())
    return read.theta[:, 0].int().tolist()


def test_rows_are_read_across_shards(make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "OPEN_FILES", 2)
    rows = make_rows([5, 5, 3, 7])
    assert rows.total == 20
    for start, stop in ((0, 20), (4, 6), (5, 10), (12, 13), (0, 1), (19, 20)):
        assert numbers(rows, start, stop) == list(range(start, stop))
    assert len(rows._files) == 2
    rows.close()
    assert not rows._files


def test_failed_simulations_are_left_out(make_rows: MakeRows) -> None:
    rows = make_rows([5, 5], failed=[0, 4, 5])
    assert numbers(rows, 0, 10) == [1, 2, 3, 6, 7, 8, 9]
    assert rows.usable(3, 6) == 1
    assert rows.true_theta(3, 7)[:, 0].tolist() == [3, 6]
    own = torch.tensor([True, False, False, True])
    assert rows.read(0, 7, own=own).theta[:, 0].tolist() == [1, 6]


class Summed(LinearGaussian):
    """Its likelihood needs the sum of x alone."""

    def reduced(self, x: Data) -> Data:
        return {"sum": x["x"].sum(1)} if "x" in x else x


def test_of_x_stays_what_the_likelihood_needs(tmp_path: Path) -> None:
    simulator = Summed(dimension=2, size=3)
    prior = prior_of(simulator)
    read = SimulationRows(write_simulations(tmp_path, [4]), simulator, prior=prior, proposal=prior).read(1, 3)
    assert {k: v.tolist() for k, v in read.x.items()} == {"sum": [3.0, 6.0]}
    assert read.inputs.features.tolist() == [[1.0] * 3, [2.0] * 3]


def test_one_file_without_shards_is_read_too(tmp_path: Path) -> None:
    write_simulations(tmp_path, [9])
    prior = prior_of(SIMULATOR)
    rows = SimulationRows(tmp_path / "shards/shard-00000.h5", SIMULATOR, prior=prior, proposal=prior)
    assert numbers(rows, 2, 7) == [2, 3, 4, 5, 6]


def test_units_are_converted(tmp_path: Path) -> None:
    path = write_simulations(tmp_path, [4])
    with h5py.File(path, "r+") as file:
        file["x/x"].attrs["unit"] = "100"
    prior = prior_of(SIMULATOR)
    rows = SimulationRows(path, SIMULATOR, prior=prior, proposal=prior)
    assert rows.read(3, 4).x["x"].tolist() == [[300.0, 300.0, 300.0]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("lost shard", r"1 of its 2 shards are missing, the first shard-00001.h5; run `elboscope simulate` again"),
        ("nan", r"/x/x: 3 of 12 values in rows 0 to 3 are NaN or infinite"),
        ("flipped bit", r"shard-00000.h5: damaged: a checksum or a read failed"),
        ("names", r"/theta has parameters \['a', 'b'\]"),
        ("unit", r"/x/x: "),
        ("shape", r"/x/x: expected shape \(N, 4\), got \(8, 3\)"),
        ("absent", r"/theta is missing"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, damage: str, message: str) -> None:
    path = write_simulations(tmp_path, [4, 4], failed=[1] if damage == "nan" else ())
    simulator = LinearGaussian(dimension=2, size=4) if damage == "shape" else SIMULATOR
    shard = tmp_path / "shards/shard-00000.h5"
    if damage == "lost shard":
        shard.with_name("shard-00001.h5").unlink()
    elif damage == "flipped bit":
        with h5py.File(shard) as file:
            place = file["x/x"].id.get_chunk_info(0).byte_offset + 40  # pyright: ignore[reportAttributeAccessIssue]
        data = bytearray(shard.read_bytes())
        data[place] ^= 1
        shard.write_bytes(data)
    else:
        with h5py.File(path, "r+") as file:
            if damage == "nan":
                del file["failed"]
            elif damage == "names":
                file["theta"].attrs["names"] = ["a", "b"]
            elif damage == "unit":
                file["x/x"].attrs["unit"] = "km"
            elif damage == "absent":
                del file["theta"]
    prior = prior_of(simulator)
    with pytest.raises(InputError, match=message):
        SimulationRows(path, simulator, prior=prior, proposal=prior).read(0, 4)
