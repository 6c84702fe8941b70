"""HDF5 files: written so that a full disk is one line, checksummed, compared by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.schema import PROVENANCE
from pipeline.store.complete import complete_or_absent
from pipeline.store.deferred import DeferredErrors
from simulators.reading.hdf5 import load_filters, open_hdf5

__all__ = [
    "as_text",
    "checked_text",
    "create_dataset",
    "fixed_text",
    "hdf5_content_digest",
    "open_hdf5",
    "write_hdf5",
]

CHUNK_BYTES = 1 << 20


def create_dataset(
    group: h5py.Group, name: str, values: Any, *, compression: str = "none", **attributes: str
) -> h5py.Dataset:
    """A dataset with Fletcher32 on every chunk; strings become UTF-8.

    Args:
        compression: none, zstd or blosc2, lossless.
    """
    array = np.asarray(values)
    if array.dtype.kind in "UO":
        dataset = group.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
    elif array.ndim == 0 or array.size == 0:
        dataset = group.create_dataset(name, data=array)
    else:
        row_bytes = max(1, array.nbytes // len(array))
        chunks = (int(np.clip(CHUNK_BYTES // row_bytes, 1, len(array))), *array.shape[1:])
        filters = _compression_filter(compression)
        dataset = group.create_dataset(name, data=array, chunks=chunks, fletcher32=True, **filters)
    dataset.attrs.update(attributes)
    return dataset


def checked_text(value: Any) -> Any:
    """Text of fixed length for an attribute or a dataset; anything else as it is.

    It lies under the checksum of the object's header or of its chunk. Text of variable length lies in a heap that has
    none, and one flipped bit there makes HDF5 2.0 loop for ever.
    """
    if isinstance(value, str):
        return np.array(value.encode() or b"\0")
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return np.array([v.encode() or b"\0" for v in value])
    return value


def fixed_text(values: Sequence[str]) -> Any:
    """UTF-8 of one length, (N,), which lies under the checksum of its chunk; h5py reads it as it reads other text."""
    raw = [v.encode() or b"\0" for v in values]
    return np.array(raw, dtype=h5py.string_dtype("utf-8", max(map(len, raw), default=1)))


def _compression_filter(compression: str) -> Mapping[str, Any]:
    """Arguments of h5py's create_dataset; both shuffle bytes first, which is what makes floating point numbers smaller.

    Raises:
        InputError: the package hdf5plugin is not installed.
    """
    if compression == "none":
        return {}
    if not load_filters():
        raise InputError(
            f"simulate.compression: {compression} needs the package hdf5plugin: pip install 'elboscope[compression]'"
        )
    import hdf5plugin

    if compression == "zstd":
        return {**hdf5plugin.Zstd(clevel=3), "shuffle": True}
    return {**hdf5plugin.Blosc2(cname="zstd", clevel=5, filters=hdf5plugin.Blosc2.SHUFFLE)}


def write_hdf5(path: Path, fill: Callable[[h5py.File], None], attributes: Mapping[str, Any]) -> None:
    """Create an HDF5 file, complete or absent: `fill` writes its groups, `attributes` go to the root.

    The format is that of HDF5 1.10, whose metadata carry checksums too.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    with complete_or_absent(path) as temporary, DeferredErrors(temporary) as target:
        try:
            with h5py.File(target, "w", libver=("v110", "v112"), track_order=True) as file:
                fill(file)
                file.attrs.update(attributes)
        except (OSError, RuntimeError):
            if target.error is None:
                raise
        if target.error is not None:
            raise target.error


def as_text(value: Any) -> str:
    """Text as h5py, C and Fortran write it: str, or bytes of fixed length."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def hdf5_content_digest(path: Path) -> str:
    """SHA-256 over every dataset and attribute that is not provenance: equal content, equal digest."""
    digest = hashlib.sha256()

    def absorb(name: str, item: h5py.Group | h5py.Dataset) -> None:
        digest.update(name.encode())
        for key in sorted(item.attrs):
            if key != PROVENANCE and not key.startswith("_NC") and key not in ("DIMENSION_LIST", "REFERENCE_LIST"):
                digest.update(key.encode() + repr(np.asarray(item.attrs[key]).tolist()).encode())
        if isinstance(item, h5py.Dataset):
            values = item[()]
            digest.update(repr(item.shape).encode() + str(item.dtype).encode())
            digest.update(values.tobytes() if item.dtype.kind != "O" else repr(np.asarray(values).tolist()).encode())

    with open_hdf5(path) as file:
        absorb("/", file)
        names: list[str] = []
        file.visit(names.append)
        for name in sorted(names):
            absorb(name, file[name])  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()
