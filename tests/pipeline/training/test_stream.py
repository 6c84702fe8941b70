"""Streamed batches: every row once an epoch, an order that mixes, the same rows at a step however it was come to."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.store import open_hdf5
from pipeline.training.processes import ALONE, Processes
from pipeline.training.rows import SimulationRows
from pipeline.training.stream import Plan, StreamedBatches, StreamedSet, plan_of
from tests.pipeline.training.conftest import MakeRows

CPU = torch.device("cpu")
HELD_OUT, BATCH = 30, 8
SHARDS = [100, 100, 100, 57]
COUNT = sum(SHARDS) - HELD_OUT


@pytest.fixture
def opened() -> Iterator[list[StreamedBatches]]:
    """What a test opened is closed, and no thread stays behind."""
    batches: list[StreamedBatches] = []
    yield batches
    for one in batches:
        one.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("simulations")]


def stream(
    rows: SimulationRows,
    opened: list[StreamedBatches],
    *,
    seed: int = 1,
    stage: str = "train-0",
    processes: Processes = ALONE,
) -> StreamedBatches:
    """Windows of four blocks of at most 12 rows."""
    source = StreamedSet(rows, Plan(HELD_OUT, rows.total, block_rows=12, window_blocks=4, head_rows=20), device=CPU)
    opened.append(StreamedBatches(source, BATCH, seed=seed, stage=stage, processes=processes))
    return opened[-1]


def taken(batches: StreamedBatches, step: int) -> Tensor:
    rows = batches[step]
    failed = torch.from_numpy(batches.source.rows.failed)
    assert rows.numbers is not None
    assert torch.equal(rows.x["x"], rows.theta[:, :1].expand(-1, 3))
    assert torch.equal(rows.inputs.features, rows.x["x"].float())
    assert torch.equal(
        torch.arange(len(failed))[HELD_OUT:][~failed[HELD_OUT:]][rows.numbers].double(), rows.theta[:, 0]
    )
    return rows.theta[:, 0].long()


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(
    make_rows: MakeRows, opened: list[StreamedBatches]
) -> None:
    batches = stream(make_rows(SHARDS), opened)
    epochs = torch.cat([taken(batches, step) for step in range(3 * COUNT // BATCH + 1)])[: 3 * COUNT].split(COUNT)
    for rows in epochs:
        assert rows.sort().values.tolist() == list(range(HELD_OUT, HELD_OUT + COUNT))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_failed_simulations_never_come_and_the_others_all_do(
    make_rows: MakeRows, opened: list[StreamedBatches]
) -> None:
    failed = [5, 40, *range(54, 66), 100]
    batches = stream(make_rows(SHARDS, failed), opened)
    count = COUNT - len(failed) + 1  # row 5 is held out
    assert batches.count == count
    rows = torch.cat([taken(batches, step) for step in range(count // BATCH + 1)])[:count]
    assert rows.sort().values.tolist() == [n for n in range(HELD_OUT, HELD_OUT + COUNT) if n not in failed]


def test_a_step_gives_the_same_rows_however_it_is_come_to(make_rows: MakeRows, opened: list[StreamedBatches]) -> None:
    rows = make_rows(SHARDS)
    forwards = stream(rows, opened)
    expected = {step: taken(forwards, step) for step in range(100)}
    resumed, jumping = stream(rows, opened), stream(rows, opened)
    for step in range(57, 100):  # in the middle of an epoch and of a window
        assert torch.equal(taken(resumed, step), expected[step])
    for step in (99, 0, 41, 40, 7, 60, 98):
        assert torch.equal(taken(jumping, step), expected[step])


def test_seed_and_stage_decide(make_rows: MakeRows, opened: list[StreamedBatches]) -> None:
    rows = make_rows(SHARDS)
    one = taken(stream(rows, opened), 3)
    assert not torch.equal(taken(stream(rows, opened, seed=2), 3), one)
    assert not torch.equal(taken(stream(rows, opened, stage="train-1"), 3), one)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_a_batch_without_a_gap(make_rows: MakeRows, opened: list[StreamedBatches], world: int) -> None:
    rows = make_rows(SHARDS)
    whole = stream(rows, opened)
    parts = [stream(rows, opened, processes=Processes(r, world)) for r in range(world)]
    for step in (0, 1, 5, 6, 40, 41, 42):
        own = torch.stack([taken(p, step) for p in parts], 1).flatten()
        assert torch.equal(own, taken(whole, step))
    assert len(parts[0]._buffers[0][0]) <= math.ceil(len(whole._buffers[0][0]) / world)


def test_neighbours_in_the_file_are_parted_as_chance_has_it(make_rows: MakeRows, opened: list[StreamedBatches]) -> None:
    """In a window of W rows, two of one block are (W + 1) / 3 places apart in the mean; unmixed blocks would give 13 / 3."""
    batches = stream(make_rows([4_000]), opened)
    places = torch.empty(4_000)
    order = torch.cat([taken(batches, step) for step in range(490)])
    places[order] = torch.arange(len(order)).float()
    distance = (places[HELD_OUT + 1 : 3_900] - places[HELD_OUT:3_899]).abs()
    inside = distance < 48
    assert float(inside.double().mean()) > 0.85  # eleven of twelve neighbours lie in the same block
    assert float(distance[inside].mean()) == pytest.approx(49 / 3, rel=0.05)  # of 3,500 with a spread of 11: 0.012


def test_a_window_is_made_of_blocks_from_everywhere(make_rows: MakeRows, opened: list[StreamedBatches]) -> None:
    batches = stream(make_rows([4_000]), opened)
    means = torch.stack([taken(batches, step).double().mean() for step in range(490)])
    # four blocks of a file of 4,000 rows: spread 4,000 / sqrt(12) / 2; in file order it would be twice that
    assert float(means.std()) == pytest.approx(4_000 / 12**0.5 / 2, rel=0.25)


def test_a_damaged_chunk_stops_training_with_one_line(make_rows: MakeRows, opened: list[StreamedBatches]) -> None:
    rows = make_rows(SHARDS)
    shard = rows.pieces[2].path
    with open_hdf5(shard) as file:
        place = file["x/x"].id.get_chunk_info(0).byte_offset + 40  # pyright: ignore[reportAttributeAccessIssue]
    data = bytearray(shard.read_bytes())
    data[place] ^= 1
    shard.write_bytes(data)
    batches = stream(rows, opened)
    with pytest.raises(InputError, match=r"shard-00002.h5: damaged"):
        torch.cat([batches[step].theta for step in range(COUNT // BATCH)])


def test_the_head_is_the_first_rows(make_rows: MakeRows) -> None:
    source = StreamedSet(make_rows(SHARDS), Plan(HELD_OUT, 357, 12, 4, 20), device=CPU)
    assert source.head.theta[:, 0].tolist() == list(range(HELD_OUT, HELD_OUT + 20))
    assert len(source) == COUNT
    assert source.true_theta()[:, 0].tolist() == list(range(HELD_OUT, HELD_OUT + COUNT))


def test_two_windows_and_the_head_fit_into_the_memory_given(make_rows: MakeRows) -> None:
    rows = make_rows([2_000, 2_000])
    row_bytes = rows.read(0, 1).row_bytes
    for gigabytes in (1e-4, 3e-4):
        plan = plan_of(rows, HELD_OUT, row_bytes=row_bytes, memory_gb=gigabytes, batch=BATCH)
        window = plan.block_rows * plan.window_blocks
        used = plan.head_rows * row_bytes + 2 * window * (row_bytes + 24)
        assert 0.65 * gigabytes * 1e9 < used <= gigabytes * 1e9
        assert plan.window_blocks >= 32
    with pytest.raises(InputError, match=r"train.memory_gb: 1e-06 GB holds two windows of \d+ .* raise it to"):
        plan_of(rows, HELD_OUT, row_bytes=row_bytes, memory_gb=1e-6, batch=BATCH)
