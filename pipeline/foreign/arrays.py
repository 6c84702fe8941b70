"""Arrays that are no tables: HDF5, GWOSC strain, NumPy, and text that is numbers alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.foreign.fields import Field, ForeignFile

COMMENTS = ("#", "%")
"""What a line of text that is no data begins with."""


def read_hdf5(path: Path) -> ForeignFile:
    """Every dataset, by its path in the file; the unit is that of attribute `unit` or `units`.

    Raises:
        InputError: a dataset cannot be read.
    """
    try:
        with h5py.File(path, "r") as file:
            strain = file.get("strain/Strain")
            if isinstance(strain, h5py.Dataset) and "Xspacing" in strain.attrs:
                return _gwosc(path, file, strain)
            names: list[str] = []
            file.visit(names.append)
            datasets = [(n, d) for n in names if isinstance(d := file[n], h5py.Dataset) and d.shape not in (None, ())]
            fields = [_dataset_field(name, dataset) for name, dataset in datasets]
            return ForeignFile(path, "HDF5", tuple(f for f in fields if f is not None), _attributes(file))
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: not an HDF5 file that can be read ({error})") from None


def _dataset_field(name: str, dataset: h5py.Dataset) -> Field | None:
    if dataset.dtype.kind not in "biufSO":  # compound and other types of HDF5
        return None
    unit = dataset.attrs.get("unit", dataset.attrs.get("units"))
    text = dataset.dtype.kind in "SO"
    values: Any = np.asarray(dataset.asstr()[...], dtype=str) if text else dataset[...]
    return Field(name, values, unit=_text(unit) if isinstance(unit, (str, bytes)) else None)


def _gwosc(path: Path, file: h5py.File, strain: h5py.Dataset) -> ForeignFile:
    """Strain in the layout of the Gravitational Wave Open Science Center: strain and the GPS times (s) of its samples.

    t_k = Xstart + k Xspacing; samples that a detector has no data for are NaN.
    Reference: https://gwosc.org/archive/ (HDF5 files)
    """
    attributes: Any = strain.attrs
    start, spacing = float(attributes["Xstart"]), float(attributes["Xspacing"])
    values = np.asarray(strain[...], dtype=np.float64)
    time = start + spacing * np.arange(len(values))
    meta = {name: _text(dataset[()]) for name, dataset in _members(file, "meta")}
    detector = meta.get("Detector", "")
    fields = (
        Field("time", time, "s", context=True, note="GPS"),
        Field("strain", values, "", note=f"{detector}, {1 / spacing:g} Hz, from GPS {start:.0f}"),
    )
    return ForeignFile(path, "GWOSC HDF5", fields, meta)


def _members(file: h5py.File, name: str) -> list[tuple[str, Any]]:
    group = file.get(name)
    return list(group.items()) if isinstance(group, h5py.Group) else []


def _attributes(file: h5py.File) -> dict[str, str]:
    return {k: _text(v) for k, v in file.attrs.items() if isinstance(v, (str, bytes, np.generic))}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_numpy(path: Path) -> ForeignFile:
    """The array of a .npy file, by the file's name without suffix, or those of a .npz, by theirs; nothing is unpickled.

    A structured array is a table.

    Raises:
        InputError: damaged, or an array of Python objects.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            single = isinstance(loaded, np.ndarray)
            arrays = {path.stem: loaded} if single else {name: loaded[name] for name in loaded.files}
    except Exception as error:  # zipfile, zlib and NumPy raise several kinds
        problem = "Python objects in it, which are never unpickled" if "pickle" in str(error) else str(error)
        raise InputError(f"{path}: not a NumPy file that can be read ({problem})") from None
    fields: list[Field] = []
    for name, values in arrays.items():
        if values.dtype.names:
            prefix = f"{name}/" if len(arrays) > 1 else ""
            fields += [Field(f"{prefix}{n}", values[n], by_row=True) for n in values.dtype.names]
        else:
            fields.append(Field(name, values))
    return ForeignFile(path, "NumPy", tuple(fields))


def read_numbers(path: Path) -> NDArray[np.float64]:
    """Text that is numbers alone, as rows and columns; with a first line N and N x N numbers after it, that matrix.

    The second form is that of covariance files in supernova cosmology (SNANA, CosmoMC).

    Raises:
        InputError: not numbers, or rows of different length.
    """
    try:
        values = np.loadtxt(path, dtype=np.float64, comments=COMMENTS, ndmin=2, encoding="utf-8")
    except ValueError as error:
        if (matrix := _square(_words(path))) is not None:  # N, then N rows of N: no table to NumPy
            return matrix
        raise InputError(f"{path}: not rows of numbers ({str(error).splitlines()[0]})") from None
    if values.shape[1] > 1:
        return values
    matrix = _square(values[:, 0])
    return values[:, 0] if matrix is None else matrix


def _words(path: Path) -> NDArray[np.float64]:
    """All numbers of a text file in their order; none where there is something else in it."""
    with path.open(encoding="utf-8") as file:
        try:
            return np.array([float(w) for line in file if not line.lstrip().startswith(COMMENTS) for w in line.split()])
        except ValueError:
            return np.zeros(0)


def _square(numbers: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(N, N) from N and N^2 numbers; None where that is not what they are."""
    size = math.isqrt(max(0, len(numbers) - 1))
    if size < 1 or size * size != len(numbers) - 1 or numbers[0] != size:
        return None
    return numbers[1:].reshape(size, size)
