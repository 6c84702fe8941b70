"""Observations of any number, read a part at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.stages.observed import load_observation, one_form_of
from pipeline.store import DataSet, is_data_file, open_hdf5, read_data
from simulators.protocol import Observable, Simulator

CHECK_BYTES = 64e6
"""Of data that are checked at once before anything is inferred."""


@dataclass(frozen=True)
class Catalogue:
    """N observations.

    Attributes:
        ids: their N identifiers.
        read: rows start to stop - 1.
    """

    ids: tuple[str, ...]
    read: Callable[[int, int], DataSet]

    def __len__(self) -> int:
        return len(self.ids)


def open_catalogue(simulator: Simulator, path: Path) -> Catalogue:
    """Observations in our HDF5 layout are read as they are needed; what the simulator reads itself, at once.

    Raises:
        InputError: one line that says what does not fit, whichever row it is in.
    """
    if not is_data_file(path):
        return catalogue_of(load_observation(simulator, path))
    observables = simulator.observables

    def read(start: int, stop: int) -> DataSet:
        return one_form_of(simulator, read_data(path, observables=observables, rows=slice(start, stop)))

    total = _rows(path, observables)
    step = max(1, int(CHECK_BYTES // (8 * sum(int(np.prod(o.shape)) for o in observables))))
    ids: list[str] = []
    for start in range(0, max(total, 1), step):
        ids += read(start, min(start + step, max(total, 1))).ids
    if len(set(ids)) < total:
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))
        raise InputError(f"{path}: /id: {twice!r} stands for more than one row")
    return Catalogue(tuple(ids), read)


def catalogue_of(data: DataSet) -> Catalogue:
    """Observations that are in memory."""
    return Catalogue(data.ids, data.rows)


def _rows(path: Path, observables: tuple[Observable, ...]) -> int:
    """Rows that the datasets agree on; reading them says what is missing."""
    with open_hdf5(path) as file:
        counts = {name: len(file[name]) for name in (f"x/{o.name}" for o in observables) if name in file}  # pyright: ignore[reportArgumentType]
        if "id" in file:
            counts["id"] = len(file["id"])  # pyright: ignore[reportArgumentType]
    if len(set(counts.values())) > 1:
        raise InputError(f"{path}: datasets disagree on the number of rows: {counts}")
    return next(iter(counts.values()), 0)
