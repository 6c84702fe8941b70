"""One shard: what its file says, and that no byte of it can change unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import case_from_values
from pipeline.errors import InputError
from pipeline.stages.run import Run
from pipeline.stages.shard import Shard, ShardReport, make_shard, one_thread, plan, shard_key, shard_report
from pipeline.stages.verify import _check_shard
from pipeline.store import hdf5_content_digest

CASE = {"simulator": {"name": "linear_gaussian"}, "simulate": {"count": 100, "held_out": 20, "shard": 50}}


def run_of(folder: Path, **simulate: object) -> Run:
    return Run(case_from_values(CASE | {"simulate": CASE["simulate"] | simulate}, "test"), folder)


def made(folder: Path, shard: Shard = Shard(1, 50)) -> tuple[Run, Path]:
    run = run_of(folder)
    make_shard(run, shard, shard_key(run), advance=lambda rows: None)
    return run, folder / "simulations" / shard.name


def test_sets_that_follow_one_another_begin_with_their_own_shards() -> None:
    shards = plan((120, 60), 50)
    assert [(s.index, s.rows) for s in shards] == [(0, 50), (1, 50), (2, 20), (3, 50), (4, 10)]
    assert plan((120,), 50) == shards[:3]


def test_the_key_depends_on_content_and_not_on_how_many(tmp_path: Path) -> None:
    key = shard_key(run_of(tmp_path))
    for same in ({"count": 7}, {"held_out": 7}, {"shard": 7}, {"workers": 3}, {"most_failed": 0.0}):
        assert shard_key(run_of(tmp_path, **same)) == key
    for other in ({"batch": 10}, {"proposal": {"theta_1": {"normal": [0, 2]}}}):
        assert shard_key(run_of(tmp_path, **other)) != key


def test_a_file_is_taken_only_for_the_shard_that_it_is(tmp_path: Path) -> None:
    run, path = made(tmp_path)
    key = shard_key(run)
    assert shard_report(path, Shard(1, 50), key) == ShardReport(Shard(1, 50), 0)
    for shard, other in ((Shard(0, 50), key), (Shard(1, 49), key), (Shard(1, 50), "another")):
        assert shard_report(path, shard, other) is None
    path.write_bytes(path.read_bytes()[:-100])
    assert shard_report(path, Shard(1, 50), key) is None
    assert shard_report(tmp_path / "none.h5", Shard(1, 50), key) is None


def test_a_stop_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path, batch=10)
    calls: list[int] = []

    def stop_at_the_third(rows: int) -> None:
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shard(run, Shard(0, 50), shard_key(run), advance=stop_at_the_third)
    assert calls == [10, 10, 10]
    assert not (tmp_path / "simulations").exists()


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Superblock, headers, attributes, chunk indices and data: one byte in 41 of the file, a bit of each."""
    run, path = made(tmp_path)
    raw = path.read_bytes()
    _check_shard(path, shard_key(run))
    for offset in range(0, len(raw), 41):
        damaged = bytearray(raw)
        damaged[offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        with pytest.raises((InputError, OSError, RuntimeError, KeyError, ValueError)):
            _check_shard(path, shard_key(run))


def test_threads_are_what_they_were(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_equal_shards_are_equal_bytes(tmp_path: Path) -> None:
    (_, first), (_, second) = made(tmp_path / "a"), made(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert hdf5_content_digest(first) == hdf5_content_digest(second)
