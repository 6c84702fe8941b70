"""`simulations.h5`: one virtual dataset over the shards, by relative paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.stages.shard import FAILED_COUNT, FOLDER, Shard, ShardReport
from pipeline.store import as_text, open_hdf5, read_key, write_hdf5
from simulators.failures import FailureCode

SHARD_KEY, SHARDS, FAILURES = "shard_key", "shards", "failures"


def link(path: Path, shards: Sequence[Shard], *, key: str, attributes: Mapping[str, Any]) -> Counter[int]:
    """Write the file over complete shards; gives how many simulations failed, by reason code.

    Args:
        path: `simulations.h5`, beside the folder of the shards.
        key: the shards' own.
        attributes: of the file.
    """
    folder = path.parent / FOLDER
    codes: Counter[int] = Counter()
    for shard in shards:
        with open_hdf5(folder / shard.name) as file:
            if int(np.asarray(file.attrs[FAILED_COUNT])):
                failed: Any = file["failed"]
                codes.update(c for c in failed[...].tolist() if c)
    words = [f"{n} {FailureCode(c).words}" for c, n in codes.most_common()]
    own = {SHARD_KEY: key, SHARDS: len(shards), FAILED_COUNT: codes.total(), FAILURES: ", ".join(words)}
    write_hdf5(path, lambda file: _fill(file, folder, shards), dict(attributes) | own)
    return codes


def _fill(file: h5py.File, folder: Path, shards: Sequence[Shard]) -> None:
    """Datasets with the attributes that they have in the first shard; `/failures` stays in the shards."""
    with open_hdf5(folder / shards[0].name) as first:
        kinds: dict[str, tuple[tuple[int, ...], Any, dict[str, Any]]] = {}

        def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset) and not name.startswith("failures/"):
                kinds[name] = (item.shape[1:], item.dtype, {k: _readable(v) for k, v in item.attrs.items()})

        first.visititems(note)
    total = sum(s.rows for s in shards)
    for dataset, (shape, dtype, attributes) in kinds.items():
        layout = h5py.VirtualLayout((total, *shape), dtype)
        start = 0
        for shard in shards:
            source = h5py.VirtualSource(f"{folder.name}/{shard.name}", dataset, (shard.rows, *shape))
            layout[start : start + shard.rows] = source
            start += shard.rows
        file.create_virtual_dataset(dataset, layout).attrs.update(attributes)


def _readable(value: Any) -> Any:
    """Text that shards keep as bytes, as plain h5py hands it out again."""
    if isinstance(value, bytes):
        return as_text(value)
    return [as_text(v) for v in value] if isinstance(value, np.ndarray) and value.dtype.kind == "S" else value


def linked_shards(path: Path) -> dict[str, list[tuple[str, int, int]]]:
    """What every virtual dataset of the file points at: (relative path, first row, rows) in the order of the rows."""
    found: dict[str, list[tuple[str, int, int]]] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            sources = item.virtual_sources() if item.is_virtual else []
            found[name] = sorted(((s.file_name, *_rows(s)) for s in sources), key=lambda entry: entry[1])

    with open_hdf5(path, layout_only=True) as file:
        file.visititems(note)
    return found


def _rows(source: Any) -> tuple[int, int]:
    low, high = source.vspace.get_regular_hyperslab()[0][0], source.vspace.get_select_bounds()[1][0]
    return int(low), int(high - low + 1)


def forget_what_lost_its_shards(path: Path) -> None:
    """Remove the file where a shard behind it is missing or is of other settings: it is not up to date."""
    if read_key(path) is None:
        return
    try:
        with open_hdf5(path, layout_only=True) as file:
            key = file.attrs.get(SHARD_KEY)
        shards = {name for name, _, _ in linked_shards(path).get("theta", [])}
    except (OSError, RuntimeError, InputError):
        shards, key = {""}, None
    if any(read_key(path.parent / name) != key for name in shards):
        path.unlink()


def need_all(
    shards: Sequence[Shard], report_of: Callable[[Shard], ShardReport | None], folder: Path
) -> list[ShardReport]:
    """Reports of a complete set.

    Raises:
        InputError: says which shards are missing.
    """
    reports = [report_of(s) for s in shards]
    missing = [s.name for s, report in zip(shards, reports, strict=True) if report is None]
    if missing:
        names = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise InputError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing or of other settings ({names}): run `elboscope simulate` or its --shard I/N"
        )
    return [r for r in reports if r is not None]
