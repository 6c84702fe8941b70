"""netCDF-4 files that ArviZ, xarray and plain h5py open: groups, dimensions with coordinates, variables."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store import complete_or_absent


class DeferredErrors(io.RawIOBase):
    """A file whose failed writes are remembered in `error` and otherwise pass for done.

    HDF5 kills the process (segmentation fault, h5py 3.16) where a write fails while it closes a file. It never learns
    of one here; whoever opened the file raises `error` after closing it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while self.error is None and written < len(view):
            try:
                written += self._file.write(view[written:]) or 0
            except OSError as error:
                self.error = error
        return len(view)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer) or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def close(self) -> None:
        self._file.close()
        super().close()


def write_netcdf(path: Path, fill: Callable[[Any], None], attributes: Mapping[str, Any]) -> None:
    """Create a netCDF-4 file, complete or absent: `fill` writes its groups, `attributes` go to the root.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    import h5netcdf

    with complete_or_absent(path) as temporary, DeferredErrors(temporary) as target:
        try:
            with h5netcdf.File(target, "w") as file:
                file.attrs.update(attributes)
                fill(file)
        except (OSError, RuntimeError):
            if target.error is None:
                raise
        if target.error is not None:
            raise target.error


def create_variable(group: Any, name: str, dimensions: tuple[str, ...], values: Any, **attributes: str) -> None:
    """A variable with Fletcher32; text becomes UTF-8; attributes that are empty are left out."""
    import h5py

    array = np.asarray(values)
    if array.dtype.kind in "UO":
        variable = group.create_variable(name, dimensions, dtype=h5py.string_dtype())
        variable[...] = array.astype(object)
    else:
        filters: dict[str, Any] = {"fletcher32": True, "chunks": array.shape} if array.size else {}
        variable = group.create_variable(name, dimensions, data=array, **filters)
    variable.attrs.update({k: v for k, v in attributes.items() if v})


def create_dimensions(group: Any, **coordinates: int | Sequence[str]) -> None:
    """Dimensions of a group with their coordinate variables: a size counts from 0, a sequence of names stands as it is."""
    values = {n: np.arange(c) if isinstance(c, int) else np.array(c, dtype=object) for n, c in coordinates.items()}
    group.dimensions = {name: len(v) for name, v in values.items()}
    for name, v in values.items():
        create_variable(group, name, (name,), v)
