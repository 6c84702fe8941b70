"""Rows of `simulations.h5` as training reads them: a range at a time, straight from its shards, checked and prepared."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.errors import InputError
from pipeline.store import open_hdf5
from pipeline.training.data import TrainingSet, training_set
from simulators.protocol import Simulator
from simulators.units import conversion_factor

FAILED = "failed"
"""Dataset (N,): not zero for simulations that failed, which are never trained on."""
OPEN_FILES = 4
"""Shards that are open at once: a virtual dataset read by HDF5 itself keeps all of them open, and their chunk caches."""


@dataclass(frozen=True)
class Piece:
    """Rows start to stop - 1 of the whole, in one file, where they begin at row `offset`."""

    path: Path
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class _Column:
    """A dataset: its name, dtype in memory, and the factors that convert its units."""

    name: str
    dtype: torch.dtype
    factor: Tensor | None


class SimulationRows:
    """Simulations that did not fail, first to last.

    Args:
        path: `simulations.h5`, one file or a virtual dataset over shards.
        simulator: whose observables and parameters it must have.
        prior, proposal: on the CPU.

    Raises:
        InputError: the file does not fit the simulator, or a shard is missing.
    """

    def __init__(self, path: Path, simulator: Simulator, *, prior: Distribution, proposal: Distribution) -> None:
        self.path, self.simulator, self.prior, self.proposal = path, simulator, prior, proposal
        with open_hdf5(path) as file:
            theta = _dataset(path, file, "theta", (len(simulator.parameters),))
            self.columns = [_theta_column(path, theta, simulator), *_observable_columns(path, file, simulator)]
            self.total = int(theta.shape[0])
            self.pieces = _pieces(path, theta)
            self._starts = np.array([p.start for p in self.pieces])
            self.file_row_bytes = sum(_row_bytes(file[c.name]) for c in self.columns)
            self.chunk_rows = max((_chunk_rows(file[c.name], self.pieces) for c in self.columns), key=lambda c: c[1])[0]
            marked = FAILED in file
        self._files: OrderedDict[Path, h5py.File] = OrderedDict()
        self._lock = threading.Lock()
        self.failed = np.zeros(self.total, dtype=bool)
        for piece in self.pieces if marked else ():
            self.failed[piece.start : piece.stop] = self._read(piece, FAILED, piece.start, piece.stop) != 0

    def usable(self, start: int, stop: int) -> int:
        """How many of rows start to stop - 1 did not fail."""
        return int(np.count_nonzero(~self.failed[start:stop]))

    def read(
        self, start: int, stop: int, *, own: Tensor | None = None, device: torch.device | None = None
    ) -> TrainingSet:
        """The usable ones of rows start to stop - 1, with features and pilot.

        Args:
            own: which of the usable ones, a mask; default: all.
            device: where they go, and where features are computed; default: the CPU.

        Raises:
            InputError: a checksum that fails, or a number that is not finite.
        """
        keep = torch.from_numpy(~self.failed[start:stop])
        if own is not None:
            keep[keep.clone()] = own
        theta, *x = (self._column(c, start, stop, keep) for c in self.columns)
        names = [o.name for o in self.simulator.observables]
        return training_set(
            self.simulator,
            theta,
            dict(zip(names, x, strict=True)),
            prior=self.prior,
            proposal=self.proposal,
            device=device or torch.device("cpu"),
        )

    def true_theta(self, start: int, stop: int) -> Tensor:
        """Theta of the usable ones of rows start to stop - 1."""
        return self._column(self.columns[0], start, stop, torch.from_numpy(~self.failed[start:stop]))

    def close(self) -> None:
        """Close the shards."""
        with self._lock:
            while self._files:
                self._files.popitem()[1].close()

    def _column(self, column: _Column, start: int, stop: int, keep: Tensor) -> Tensor:
        with self._lock:
            parts = [self._read(piece, column.name, start, stop) for piece in self.pieces_between(start, stop)]
        values = torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
        values = values if bool(keep.all()) else values[keep]
        if column.factor is not None:
            values = values.double() * column.factor
        values = values.to(column.dtype)
        if not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).sum())
            raise InputError(
                f"{self.path}: /{column.name}: {bad} of {values.numel()} values in rows {start} to {stop - 1} are NaN or infinite"
            )
        return values

    def pieces_between(self, start: int, stop: int) -> Sequence[Piece]:
        """The pieces that rows start to stop - 1 lie in."""
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        return self.pieces[first : last + 1]

    def _read(self, piece: Piece, name: str, start: int, stop: int) -> Any:
        first = max(start, piece.start) - piece.start + piece.offset
        last = min(stop, piece.stop) - piece.start + piece.offset
        try:
            return self._open(piece.path)[name][first:last]  # pyright: ignore[reportIndexIssue]
        except (OSError, KeyError) as error:
            raise InputError(f"{piece.path}: damaged: a checksum or a read failed ({error})") from None

    def _open(self, path: Path) -> h5py.File:
        """A shard; the one used longest ago is closed for it."""
        if path in self._files:
            self._files.move_to_end(path)
        else:
            if len(self._files) == OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[path] = open_hdf5(path, chunk_cache_bytes=0)  # whole chunks are read, and once
        return self._files[path]


def _pieces(path: Path, theta: h5py.Dataset) -> list[Piece]:
    """Where the rows are: in the shards behind a virtual dataset, or in the file itself.

    Raises:
        InputError: a shard is missing (HDF5 would fill in zeros, without a word), or rows are not in order.
    """
    if not theta.is_virtual:
        return [Piece(path, 0, int(theta.shape[0]), 0)]
    pieces = []
    for source in theta.virtual_sources():
        (start, *_), (last, *_) = source.vspace.get_select_bounds()
        whole = source.src_space.get_select_type() == h5py.h5s.SEL_ALL
        offset = 0 if whole else source.src_space.get_select_bounds()[0][0]
        pieces.append(Piece(path.parent / source.file_name, int(start), int(last) + 1, int(offset)))
    pieces.sort(key=lambda p: p.start)
    missing = [p.path for p in pieces if not p.path.is_file()]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of its {len(pieces)} shards are missing, the first {missing[0].name}; run `elboscope simulate` again"
        )
    ends = [0, *(p.stop for p in pieces)]
    if [p.start for p in pieces] != ends[:-1] or ends[-1] != theta.shape[0]:
        raise InputError(
            f"{path}: its shards do not cover its rows one after the other; run `elboscope simulate` again"
        )
    return pieces


def _dataset(path: Path, file: h5py.File, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{path}: /{name} is missing")
    if dataset.ndim != len(shape) + 1 or dataset.shape[1:] != shape:
        raise InputError(f"{path}: /{name}: expected shape ({', '.join(map(str, ('N', *shape)))}), got {dataset.shape}")
    if dataset.dtype.kind not in "fiub":
        raise InputError(f"{path}: /{name}: expected numbers, got {dataset.dtype}")
    return dataset


def _theta_column(path: Path, dataset: h5py.Dataset, simulator: Simulator) -> _Column:
    names, units = (np.atleast_1d(dataset.attrs.get(k, [])).astype(str).tolist() for k in ("names", "units"))
    expected = [p.name for p in simulator.parameters]
    if names != expected or len(units) != len(expected):
        raise InputError(f"{path}: /theta has parameters {names} with units {units}, expected {expected}")
    factors = [
        _factor(u, p.unit, f"{path}: /theta, {p.name}") for u, p in zip(units, simulator.parameters, strict=True)
    ]
    return _Column("theta", torch.float64, None if set(factors) == {1.0} else torch.tensor(factors).double())


def _observable_columns(path: Path, file: h5py.File, simulator: Simulator) -> list[_Column]:
    columns = []
    for o in simulator.observables:
        dataset = _dataset(path, file, f"x/{o.name}", o.shape)
        factor = _factor(np.asarray(dataset.attrs.get("unit", "")).astype(str).item(), o.unit, f"{path}: /x/{o.name}")
        dtype = torch.float64 if o.dtype == "float64" else torch.float32
        columns.append(_Column(f"x/{o.name}", dtype, None if factor == 1.0 else torch.tensor(factor).double()))
        if dataset.shape[0] != file["theta"].shape[0]:  # pyright: ignore[reportAttributeAccessIssue]
            raise InputError(f"{path}: /x/{o.name} has {dataset.shape[0]} rows, /theta another number")
    return columns


def _factor(given: str, expected: str, name: str) -> float:
    try:
        return conversion_factor(given, expected, name)
    except ValueError as error:
        raise InputError(str(error)) from None


def _row_bytes(dataset: Any) -> int:
    return int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize


def _chunk_rows(dataset: Any, pieces: Sequence[Piece]) -> tuple[int, int]:
    """Rows of a chunk as they are stored, and bytes of a row."""
    if dataset.is_virtual:
        with open_hdf5(pieces[0].path) as file:
            return _chunk_rows(file[dataset.name], ())
    return (dataset.chunks[0] if dataset.chunks else 1), _row_bytes(dataset)
