"""Arrays that are no tables: NumPy, and text that is numbers alone."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.foreign.fields import Field, ForeignFile
from simulators.reading.bounds import NUMBER_BYTES, need_room, reading
from simulators.reading.words import number_rows

ARRAY = b"\x93NUMPY"


def read_numpy(path: Path) -> ForeignFile:
    """The array of a .npy file, by the file's name without suffix, or those of a .npz, by theirs; nothing is unpickled.

    A structured array is a table.

    Raises:
        InputError: damaged, an array of Python objects, or more numbers than the file's size allows.
    """
    with reading(path, "a NumPy file that can be read"), path.open("rb") as file:
        if file.read(len(ARRAY)) == ARRAY:
            file.seek(0)
            arrays = {path.stem: _array(path, file, path.stem, path.stat().st_size)}
        else:
            arrays = _archive(path)
    fields: list[Field] = []
    for name, values in arrays.items():
        if values.dtype.names:
            prefix = f"{name}/" if len(arrays) > 1 else ""
            fields += [Field(f"{prefix}{n}", values[n], by_row=True) for n in values.dtype.names]
        else:
            fields.append(Field(name, values))
    return ForeignFile(path, "NumPy", tuple(fields))


def _archive(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a .npz file; sizes are compared with the bound before anything is unpacked."""
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        names = [member.filename.removesuffix(".npy") for member in members]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{path}: two arrays with the name {twice!r}: save it again")
        need_room(path, sum(member.file_size for member in members), what="unpacked, it")
        arrays: dict[str, NDArray[Any]] = {}
        for name, member in zip(names, members, strict=True):
            with archive.open(member) as file:
                arrays[name] = _array(path, file, name, member.file_size)
        return arrays


def _array(path: Path, file: Any, name: str, size: int) -> NDArray[Any]:
    """An array, if as many bytes follow as its header says."""
    major = npy.read_magic(file)[0]
    read_header: Any = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise InputError(f"{path}: not a NumPy file that can be read (Python objects in it, which are never unpickled)")
    count = math.prod(shape)
    need_room(path, count * max(NUMBER_BYTES, dtype.itemsize), what=f"{name} {shape}")
    if count * dtype.itemsize > size:
        raise ValueError(f"{name} {shape}: more numbers than the file has")
    values = np.frombuffer(io.BytesIO(file.read(count * dtype.itemsize)).getbuffer(), dtype, count)
    return values.reshape(shape, order="F" if fortran else "C")


def read_numbers(path: Path) -> NDArray[np.float64]:
    """Text that is numbers alone, as rows and columns; with a first line N and N x N numbers after it, that matrix.

    The second form is that of covariance files in supernova cosmology (SNANA, CosmoMC).

    Raises:
        InputError: not numbers, or rows of different length.
    """
    rows = number_rows(path)
    numbers = np.array([number for row in rows for number in row])
    widths = {len(row) for row in rows}
    if (matrix := _square(numbers)) is not None and (len(widths) > 1 or widths == {1}):
        return matrix
    if len(widths) != 1:
        raise InputError(
            f"{path}: not rows of numbers (of {min(widths, default=0)} to {max(widths, default=0)} numbers)"
        )
    return numbers if widths == {1} else numbers.reshape(len(rows), -1)


def _square(numbers: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(N, N) from N and N^2 numbers; None where that is not what they are."""
    size = math.isqrt(max(0, len(numbers) - 1))
    if size < 1 or size * size != len(numbers) - 1 or numbers[0] != size:
        return None
    return numbers[1:].reshape(size, size)
