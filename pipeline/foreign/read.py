"""Read a foreign file, whatever it is: the format is recognised by content, also under compression."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.foreign.arrays import ARRAY, read_numbers, read_numpy
from pipeline.foreign.fields import Field, ForeignFile, listed
from pipeline.foreign.fits import read_fits_file
from pipeline.foreign.hdf5 import read_hdf5
from pipeline.foreign.tables import read_text
from pipeline.foreign.votable import read_votable
from simulators.reading.bounds import need_regular, reading
from simulators.reading.bounds import read_text as text_of
from simulators.reading.words import COMMENTS, as_number

HEAD = 2048
ARCHIVE = b"PK\x03\x04"
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def read_foreign(path: Path) -> ForeignFile:
    """The arrays of a file, with units and masks as far as it declares them.

    FITS, ECSV, VOTable, CSV and text, any of them under gzip, bzip2 or xz; HDF5, netCDF-4, GWOSC HDF5, .npy, .npz.

    Raises:
        InputError: no such file, or not one of these.
    """
    need_regular(path)
    if h5py.is_hdf5(path):
        return _with_rows(read_hdf5(path))
    head = _head(path)
    if not head:
        raise InputError(f"{path}: is empty")
    if head.startswith(b"SIMPLE  ="):
        return _with_rows(read_fits_file(path))
    if head.startswith((ARRAY, ARCHIVE)):
        return _with_rows(read_numpy(path))
    if b"<VOTABLE" in head:
        return _with_rows(read_votable(path))
    return _with_rows(read_text(path, head))


def _head(path: Path) -> bytes:
    """The first bytes, unpacked where the file is compressed text, FITS or VOTable."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    opener = next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), None)
    if opener is None or (opener is bz2.open and head[4:10] != b"1AY&SY"):
        return head
    with reading(path, "a whole compressed file"), opener(path) as file:
        head = file.read(HEAD)
    if head.startswith((b"\x89HDF", ARRAY, ARCHIVE)):
        raise InputError(f"{path}: HDF5 or NumPy under compression: unpack it first")
    return head


def read_array(path: Path, name: str | None) -> Field:
    """One array: the named one of a file, or its only one; of text without a header its numbers.

    Raises:
        InputError: no such array, or several and none named.
    """
    if name is None and _is_numbers(path):
        return Field(path.name.partition(".")[0] or path.stem, read_numbers(path))
    file = read_foreign(path)
    if name is not None:
        return file.get(name)
    if len(file.fields) != 1:
        raise InputError(
            f"{path}: which of its arrays? Write {path.name}:NAME, NAME one of {listed([f.name for f in file.fields])}"
        )
    return file.fields[0]


def _is_numbers(path: Path) -> bool:
    """Whether the first line of text that is no comment is numbers."""
    try:
        lines = text_of(path).split("\n")
    except InputError:  # not text
        return False
    line = next((text for text in lines if text.strip() and not text.lstrip().startswith(COMMENTS)), "")
    return bool(line) and all(as_number(word) is not None for word in line.split())


def _with_rows(file: ForeignFile) -> ForeignFile:
    """The file, if there is something in it."""
    if not any(np.size(field.values) for field in file.fields):
        raise InputError(
            f"{file.path}: {file.kind}: {'has no rows' if file.fields else 'has no arrays'}{f' ({file.note})' if file.note else ''}"
        )
    return file
