"""netCDF-4 files that ArviZ, xarray and plain h5py open: groups, dimensions with coordinates, variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store import DeferredErrors, complete_or_absent


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
