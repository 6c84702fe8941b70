"""Data files: simulations and observations in one layout (`pipeline.schema`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.schema import SCHEMA, SCHEMA_VERSION
from pipeline.store.columns import TEXT_SUMS, Column, observable_column, text_crc, theta_column
from pipeline.store.hdf5 import as_text, checked_text, create_dataset, fixed_text, open_hdf5, write_hdf5
from simulators.one_form import filled
from simulators.protocol import Data, Observable, Parameter

OTHER_OPEN_FILES, MORE_OPEN_FILES = 256, 16
"""Left to everything else in the process; and, where the limit is tight, beyond those that are open."""


@dataclass(frozen=True)
class DataSet:
    """A data file in memory.

    Attributes:
        x: observables, (N, ...) each.
        theta: (N, D), where known.
        ids: N identifiers; row numbers where the file has none.
        failed: (N,) uint8, where the file says it: 0, or why the simulation has no x (`simulators.failures`),
            which is then NaN.
    """

    x: Data
    theta: Tensor | None
    ids: tuple[str, ...]
    failed: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, start: int, stop: int) -> DataSet:
        """Rows start to stop - 1."""
        theta = None if self.theta is None else self.theta[start:stop]
        failed = None if self.failed is None else self.failed[start:stop]
        return DataSet({k: v[start:stop] for k, v in self.x.items()}, theta, self.ids[start:stop], failed)

    def without_failed(self) -> DataSet:
        """The rows whose simulation succeeded."""
        if self.failed is None or not bool(self.failed.any()):
            return self
        good = self.failed == 0
        theta = None if self.theta is None else self.theta[good]
        ids = tuple(i for i, keep in zip(self.ids, good.tolist(), strict=True) if keep)
        return DataSet({k: v[good] for k, v in self.x.items()}, theta, ids, self.failed[good])


def write_data(
    path: Path,
    *,
    observables: Sequence[Observable],
    x: Mapping[str, Tensor],
    parameters: Sequence[Parameter] = (),
    theta: Tensor | None = None,
    ids: Sequence[str] | None = None,
    failed: Tensor | None = None,
    failures: Mapping[int, str] | None = None,
    compression: str = "none",
    checked: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a data file (layout: `pipeline.schema`), complete or absent.

    Args:
        checked: text too lies under checksums; plain h5py then reads it as bytes.
        failed, failures: reason codes of all rows; and in words, of the rows that have them.
        compression: of x, theta and reason codes: none, zstd or blosc2.
    """
    text: Callable[[Any], Any] = checked_text if checked else lambda value: value

    sums: dict[str, int] = {}

    def note(dataset: h5py.Dataset, name: str, value: Any) -> None:
        dataset.attrs[name] = text(value)
        sums[f"{dataset.name} {name}"] = text_crc(value)

    def fill(file: h5py.File) -> None:
        group = file.create_group("x")
        for o in observables:
            values = x[o.name].cpu().numpy().astype(o.dtype, copy=False)
            dataset = create_dataset(group, o.name, values, compression=compression)
            dataset.attrs.update({"role": text(o.role), "label": text(o.label)})
            note(dataset, "unit", o.unit)
        if theta is not None:
            values = theta.cpu().numpy().astype(np.float64, copy=False)
            dataset = create_dataset(file, "theta", values, compression=compression)
            note(dataset, "names", [p.name for p in parameters])
            note(dataset, "units", [p.unit for p in parameters])
        if ids is not None:
            create_dataset(file, "id", fixed_text(ids))
        if failed is not None:
            create_dataset(file, "failed", failed.cpu().numpy().astype(np.uint8), compression=compression)
        if failures:
            words = file.create_group("failures")
            create_dataset(words, "row", np.array(list(failures), dtype=np.int64))
            create_dataset(words, "reason", text(list(failures.values())))
        if not checked:
            file.attrs[TEXT_SUMS] = checked_text(json.dumps(sums))

    stamp = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION} | dict(attributes or {})
    write_hdf5(path, fill, {k: text(v) for k, v in stamp.items()})


def is_data_file(path: Path) -> bool:
    """Whether `path` is HDF5 with our group `/x`."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        return isinstance(file.get("x"), h5py.Group)


def read_data(
    path: Path,
    *,
    observables: Sequence[Observable],
    parameters: Sequence[Parameter] = (),
    rows: slice = slice(None),
) -> DataSet:
    """Read a data file, checked against what the simulator declares; units are converted.

    Absent slots have one value (`simulators.one_form`). Rows of failed simulations are NaN in x
    and marked in `failed`; any other NaN is refused.

    Args:
        rows: which rows; all of them by default.

    Raises:
        InputError: names the first thing that does not fit: a missing dataset, a wrong shape or unit, NaN,
            rows that do not match, or a checksum that fails.
    """
    with open_hdf5(path) as file:
        group = file.get("x")
        if not isinstance(group, h5py.Group):
            raise InputError(f"{path}: not an Elboscope data file (no group /x)")
        _allow_sources(path, file)
        failed = _read_failed(path, file, rows)
        x = {o.name: _read_column(file, observable_column(path, file, o), rows) for o in observables}
        theta = _read_column(file, theta_column(path, file, parameters), rows) if parameters else None
        raw_ids = _read_ids(path, file, rows)
    counts = {k: len(v) for k, v in x.items()}
    count = next(iter(counts.values()))
    if len(set(counts.values())) > 1 or (theta is not None and len(theta) != count):
        rows_of_theta = {} if theta is None else {"theta": len(theta)}
        raise InputError(f"{path}: datasets disagree on the number of rows: {counts | rows_of_theta}")
    if count == 0:
        raise InputError(f"{path}: has no rows")
    first = rows.start or 0
    ids = raw_ids if raw_ids is not None else tuple(str(first + i) for i in range(count))
    if len(ids) != count:
        raise InputError(f"{path}: /id has {len(ids)} rows, /x has {count}")
    if len(set(ids)) < count:
        raise InputError(f"{path}: /id: {next(i for i in ids if ids.count(i) > 1)!r} stands for more than one row")
    if failed is not None and len(failed) != count:
        raise InputError(f"{path}: /failed has {len(failed)} rows, /x has {count}")
    x = filled(observables, x)
    for name, values in x.items():
        _need_finite(path, f"x/{name}", values, ids, failed)
    if theta is not None:
        _need_finite(path, "theta", theta, ids)
    return DataSet(x, theta, ids, failed)


def _allow_sources(path: Path, file: h5py.File) -> None:
    """HDF5 keeps every file behind a virtual dataset open while it reads across them."""
    sources: set[str] = set()

    def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            sources.update(source.file_name for source in item.virtual_sources())

    file.visititems(collect)
    _allow_open_files(path, len(sources))


def _allow_open_files(path: Path, shards: int) -> None:
    """Raise this process's limit of open files as far as it may go."""
    if sys.platform == "win32" or not shards:
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed, open_now = shards + OTHER_OPEN_FILES, Path("/proc/self/fd")
    if hard != resource.RLIM_INFINITY and hard < needed and open_now.is_dir():  # a tight limit: count what is needed
        needed = shards + len(list(open_now.iterdir())) + MORE_OPEN_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InputError(
            f"{path}: has {shards} shards, and this process may open {hard} files at once: raise `ulimit -n`, or make larger shards (simulate.shard)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _read_ids(path: Path, file: h5py.File, rows: slice) -> tuple[str, ...] | None:
    if "id" not in file:
        return None
    dataset = file["id"]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1:
        raise InputError(f"{path}: /id: expected one identifier a row")
    return tuple(as_text(i) for i in dataset[rows])


def _read_failed(path: Path, file: h5py.File, rows: slice) -> Tensor | None:
    dataset = file.get("failed")
    if dataset is None:
        return None
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype != np.uint8:
        raise InputError(f"{path}: /failed: expected one 8-bit reason code a row, got {dataset}")
    return torch.from_numpy(np.asarray(dataset[rows]))


def _read_column(file: h5py.File, column: Column, rows: slice) -> Tensor:
    """Rows in the declared units."""
    dataset: Any = file[column.name]
    return column.converted(torch.from_numpy(np.asarray(dataset[rows], dtype=np.float64)))


def _need_finite(path: Path, name: str, values: Tensor, ids: Sequence[str], failed: Tensor | None = None) -> None:
    """Refuse NaN and infinite numbers but in rows that failed."""
    bad = ~values.isfinite()
    if failed is not None:
        bad[failed != 0] = False
    if bool(bad.any()):
        rows = bad.reshape(len(bad), -1).any(1).nonzero()[:, 0].tolist()
        raise InputError(
            f"{path}: /{name}: {int(bad.sum())} of {values.numel()} values are NaN or infinite, in {len(rows)} rows, the first {ids[rows[0]]!r}: "
            "leave them out, or mark what is absent"
        )
