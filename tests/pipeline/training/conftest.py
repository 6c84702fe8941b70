"""A file of simulations in shards whose rows know their own numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import pytest
import torch

from pipeline.store import write_data
from pipeline.training.rows import SimulationRows
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of

SIMULATOR = LinearGaussian(dimension=2, size=3)
MakeRows = Callable[..., SimulationRows]


def write_simulations(folder: Path, shards: Sequence[int], failed: Sequence[int] = ()) -> Path:
    """`simulations.h5` over shards of these sizes; theta of row n is (n, -n), x is (n, n, n), NaN where it failed."""
    number = torch.arange(sum(shards), dtype=torch.float64)[:, None]
    x = number * torch.ones(3)
    x[list(failed)] = torch.nan
    codes = torch.zeros(sum(shards), dtype=torch.uint8)
    codes[list(failed)] = 2
    start = 0
    for i, count in enumerate(shards):
        rows = slice(start, start + count)
        write_data(
            folder / f"shards/shard-{i:05d}.h5",
            observables=SIMULATOR.observables,
            parameters=SIMULATOR.parameters,
            x={"x": x[rows]},
            theta=torch.cat([number, -number], 1)[rows],
            failed=codes[rows],
        )
        start += count
    path = folder / "simulations.h5"
    with h5py.File(path, "w") as file:
        for name, shape, dtype in (("theta", (2,), "f8"), ("x/x", (3,), "f8"), ("failed", (), "u1")):
            layout = h5py.VirtualLayout((start, *shape), dtype)
            at = 0
            for i, count in enumerate(shards):
                layout[at : at + count] = h5py.VirtualSource(f"shards/shard-{i:05d}.h5", name, (count, *shape))
                at += count
            file.create_virtual_dataset(name, layout)
        file["theta"].attrs.update({"names": ["theta_1", "theta_2"], "units": ["", ""]})
        file["x/x"].attrs["unit"] = ""
    return path


@pytest.fixture
def make_rows(tmp_path: Path) -> MakeRows:
    """Rows of a new file; see `write_simulations`."""

    def make(shards: Sequence[int], failed: Sequence[int] = ()) -> SimulationRows:
        prior = prior_of(SIMULATOR)
        return SimulationRows(write_simulations(tmp_path, shards, failed), SIMULATOR, prior=prior, proposal=prior)

    return make
