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
from pipeline.store import Column, observable_column, open_hdf5, reading, theta_column
from pipeline.training.data import TrainingSet, training_set
from simulators.protocol import Simulator

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
            observed = [observable_column(path, file, o) for o in simulator.observables]
            self.columns = [theta_column(path, file, simulator.parameters), *observed]
            theta: Any = file["theta"]
            self.total = int(theta.shape[0])
            counts = {c.name: int(file[c.name].shape[0]) for c in self.columns}  # pyright: ignore[reportAttributeAccessIssue]
            if len(set(counts.values())) > 1:
                raise InputError(f"{path}: datasets disagree on the number of rows: {counts}")
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

    def _column(self, column: Column, start: int, stop: int, keep: Tensor) -> Tensor:
        with self._lock:
            parts = [self._read(piece, column.name, start, stop) for piece in self.pieces_between(start, stop)]
        values = torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
        values = values if bool(keep.all()) else values[keep]
        values = column.converted(values)
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
        with reading(piece.path):
            return self._open(piece.path)[name][first:last]  # pyright: ignore[reportIndexIssue]

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


def _row_bytes(dataset: Any) -> int:
    return int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize


def _chunk_rows(dataset: Any, pieces: Sequence[Piece]) -> tuple[int, int]:
    """Rows of a chunk as they are stored, and bytes of a row."""
    if dataset.is_virtual:
        with open_hdf5(pieces[0].path) as file:
            return _chunk_rows(file[dataset.name], ())
    return (dataset.chunks[0] if dataset.chunks else 1), _row_bytes(dataset)
