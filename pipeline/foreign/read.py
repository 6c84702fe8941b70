"""Read a foreign file, whatever it is: the format is recognised by content, and by suffix where content does not say."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.foreign.arrays import COMMENTS, read_hdf5, read_numbers, read_numpy
from pipeline.foreign.fields import Field, ForeignFile
from pipeline.foreign.tables import read_fits, read_text, read_votable

FITS_SUFFIXES = (".fits.gz", ".fit.gz", ".fits.fz", ".fits.bz2")
HEAD = 2048


def read_foreign(path: Path) -> ForeignFile:
    """The arrays of a file, with units and masks as far as it declares them.

    FITS, ECSV, VOTable, CSV, text, HDF5, GWOSC HDF5, .npy, .npz.

    Raises:
        InputError: no such file, or not one of these.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise InputError(f"{path}: {'no such file' if not path.exists() else str(error.strerror).lower()}") from None
    if not head:
        raise InputError(f"{path}: is empty")
    if head.startswith(b"SIMPLE  =") or path.name.lower().endswith(FITS_SUFFIXES):
        return _with_rows(read_fits(path))
    if h5py.is_hdf5(path):
        return _with_rows(read_hdf5(path))
    if head.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        return _with_rows(read_numpy(path))
    if b"<VOTABLE" in head:
        return _with_rows(read_votable(path))
    return _with_rows(read_text(path))


def read_array(path: Path, name: str | None) -> Field:
    """One array: the named one of a file, or its only one; of text without a header its numbers.

    Raises:
        InputError: no such array, or several and none named.
    """
    if name is None and _is_numbers(path):
        return Field(path.stem, read_numbers(path))
    file = read_foreign(path)
    if name is not None:
        return file.get(name)
    if len(file.fields) != 1:
        raise InputError(
            f"{path}: which of its arrays? Write {path.name}:NAME, NAME one of {', '.join(f.name for f in file.fields)}"
        )
    return file.fields[0]


def _is_numbers(path: Path) -> bool:
    """Whether the first line of text that is no comment is numbers."""
    try:
        with path.open(encoding="utf-8") as file:
            line = next((text for text in file if text.strip() and not text.lstrip().startswith(COMMENTS)), "")
        [float(word) for word in line.split()]
    except (OSError, ValueError):  # not UTF-8 is a ValueError
        return False
    return bool(line)


def _with_rows(file: ForeignFile) -> ForeignFile:
    """The file, if there is something in it."""
    if not any(np.size(field.values) for field in file.fields):
        raise InputError(f"{file.path}: {file.kind}: {'has no rows' if file.fields else 'has no arrays'}")
    return file
