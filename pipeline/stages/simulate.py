"""Stage `simulate`: pairs (theta, x) into shards, and one virtual dataset over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import torch

from pipeline.errors import InputError
from pipeline.progress import progress_bar
from pipeline.rng import generator
from pipeline.schema import CONTENT_KEY, STAGE
from pipeline.stages.run import Run, StageKey, begin, finish
from pipeline.store import open_hdf5, read_key, write_data, write_hdf5
from simulators.priors import sample

VERSION = 1
HELD_OUT = "held_out"


def simulate(run: Run) -> Path:
    """Draw theta from the proposal and x from the simulator: the first `held_out` rows, then `count` rows.

    Rows of shard i depend on (seed, "simulate", i) alone. A shard is complete or absent; a killed run
    continues after the last complete one.
    """
    settings = run.case.simulate
    _forget_what_lost_its_shards(run)
    key = begin(run, "simulate", VERSION, run.relevant("seed", "simulator", "simulate"), {})
    output = run.output("simulate")
    if key is None:
        return output
    total = settings.held_out + settings.count
    starts = range(0, total, settings.shard)
    folder = run.folder / "simulations"
    names = [f"shard-{i:05d}.h5" for i in range(len(starts))]
    with progress_bar("simulate", total) as advance:
        for i, start in enumerate(starts):
            rows = min(settings.shard, total - start)
            path = folder / names[i]
            if read_key(path) != key.key:
                _write_shard(run, key, path, index=i, rows=rows)
            advance(rows)
    for stale in set(folder.glob("shard-*.h5")) - {folder / n for n in names}:
        stale.unlink()
    write_hdf5(output, lambda file: _link(file, folder, names), key.attributes() | {HELD_OUT: settings.held_out})
    return finish(run, key, f"{total} simulations, {settings.held_out} of them held out")


def _write_shard(run: Run, key: StageKey, path: Path, *, index: int, rows: int) -> None:
    stream = generator(run.case.seed, "simulate", index, device=run.device)
    theta = sample(run.proposal, rows, stream)
    simulator = run.stored_simulator
    x = simulator.simulate(theta, None, generator=stream)
    for o in simulator.observables:
        if o.name not in x or tuple(x[o.name].shape) != (rows, *o.shape):
            got = tuple(x[o.name].shape) if o.name in x else "nothing"
            raise InputError(
                f"simulator {run.simulator.name!r}: simulate gave {got} for {o.name!r}, expected {(rows, *o.shape)}"
            )
        bad = (~torch.isfinite(x[o.name]).reshape(rows, -1).all(1)).nonzero()
        if len(bad):
            where = ", ".join(f"{v:.6g}" for v in theta[bad[0, 0]].tolist())
            raise InputError(
                f"simulator {run.simulator.name!r}: {len(bad)} of {rows} simulations have NaN or infinite {o.name!r}; first at theta = ({where})"
            )
    # from here on the old file over the shards, if there is one, would show rows of two settings
    run.output("simulate").unlink(missing_ok=True)
    write_data(
        path,
        observables=simulator.observables,
        parameters=run.simulator.parameters,
        x=x,
        theta=theta,
        attributes={STAGE: "simulate", CONTENT_KEY: key.key, "shard": index},
    )


def _forget_what_lost_its_shards(run: Run) -> None:
    """Remove `simulations.h5` where a shard behind it is missing or is of other settings: it is not up to date."""
    output = run.output("simulate")
    key = read_key(output)
    if key is None:
        return
    with open_hdf5(output) as file:
        theta: Any = file.get("theta")
        shards = {s.file_name for s in theta.virtual_sources()} if theta is not None and theta.is_virtual else set()
    if any(read_key(output.parent / name) != key for name in shards):
        output.unlink()


def _link(file: h5py.File, folder: Path, names: list[str]) -> None:
    """Virtual datasets over the shards, by relative paths, with the attributes of the first."""
    with h5py.File(folder / names[0], "r") as first:
        datasets: list[str] = []
        first.visititems(lambda name, item: datasets.append(name) if isinstance(item, h5py.Dataset) else None)
        attributes = {name: dict(first[name].attrs) for name in datasets}
        kinds = {name: (first[name].shape[1:], first[name].dtype) for name in datasets}  # pyright: ignore[reportAttributeAccessIssue]
    counts = []
    for name in names:
        with h5py.File(folder / name, "r") as shard:
            counts.append(shard["theta"].shape[0])  # pyright: ignore[reportAttributeAccessIssue]
    for dataset, (shape, dtype) in kinds.items():
        layout = h5py.VirtualLayout((sum(counts), *shape), dtype)
        start = 0
        for name, count in zip(names, counts, strict=True):
            layout[start : start + count] = h5py.VirtualSource(f"{folder.name}/{name}", dataset, (count, *shape))
            start += count
        file.create_virtual_dataset(dataset, layout).attrs.update(attributes[dataset])
