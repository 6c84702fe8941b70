"""HDF5 and netCDF-4: datasets by path, compound tables, arrays of their own length, packed numbers (CF conventions)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.foreign.fields import Field, ForeignFile, listed
from pipeline.foreign.tables import table_fields
from simulators.reading.bounds import NUMBER_BYTES, need_room, reading
from simulators.reading.fits_columns import decoded
from simulators.reading.hdf5 import open_hdf5
from simulators.reading.yaml_text import check_yaml

ASTROPY_META = ".__table_column_meta__"
DIMENSION_ALONE = b"This is a netCDF dimension but not a netCDF variable"
NEVER_WRITTEN = {"i2": -32767, "u2": 65535, "i4": -2147483647, "u4": 4294967295, "f4": 9.9692099683868690e36}
NEVER_WRITTEN |= {"f8": 9.9692099683868690e36, "i8": -9223372036854775806, "u8": 18446744073709551614}
"""What netCDF fills in where nothing was written, by type; none for single bytes."""
BLOCK = 256
"""Arrays of their own length that are read before their sum is compared with the bound."""


def read_hdf5(path: Path) -> ForeignFile:
    """Every dataset, by its path in the file; the unit is that of attribute `unit` or `units`.

    Raises:
        InputError: damaged, numbers in other files, or more of them than its size allows.
    """
    with open_hdf5(path) as file, reading(path, "an HDF5 file that can be read"):
        strain = file.get("strain/Strain")
        if isinstance(strain, h5py.Dataset) and "Xspacing" in strain.attrs:
            return _gwosc(path, file, strain)
        datasets: dict[str, h5py.Dataset] = {}

        def keep(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                datasets[name] = item

        file.visititems(keep)
        netcdf = "_NCProperties" in file.attrs or any("_Netcdf4Dimid" in d.attrs for d in datasets.values())
        fields: list[Field] = []
        skipped: list[str] = []
        for name, dataset in datasets.items():
            if name.endswith(ASTROPY_META) or _bytes(dataset.attrs.get("NAME")).startswith(DIMENSION_ALONE):
                continue
            found = _fields(path, file, name, dataset, netcdf=netcdf)
            fields += found
            skipped += [] if found else [name]
        note = f"not read, of other types: {listed(skipped)}" if skipped else ""
        return ForeignFile(path, "netCDF" if netcdf else "HDF5", tuple(fields), _attributes(file), note)


def _fields(path: Path, file: h5py.File, name: str, dataset: h5py.Dataset, *, netcdf: bool) -> list[Field]:
    """What a dataset holds; nothing where it is of a type that is neither numbers nor text."""
    where = f"{path}: {name}"
    if dataset.dtype.names:
        return _table(path, file, name, dataset)
    unit = _text_of(dataset.attrs.get("unit", dataset.attrs.get("units")))
    if dataset.dtype.kind in "biuf":
        values, masked = unpacked(dataset[()], dataset.attrs, where, netcdf=netcdf)
        return [Field(name, values, unit, masked)]
    if dataset.dtype.kind == "S" or h5py.check_string_dtype(dataset.dtype) is not None:
        return [Field(name, _texts(path, name, dataset), unit)]
    base = h5py.check_vlen_dtype(dataset.dtype)
    if base is not None and np.dtype(base).kind in "biuf" and dataset.ndim == 1:
        return [Field(name, _arrays(path, name, dataset, netcdf=netcdf), unit, by_row=True)]
    return []


def _arrays(path: Path, name: str, dataset: h5py.Dataset, *, netcdf: bool) -> NDArray[Any]:
    """Arrays of their own length, NaN where an entry is missing."""
    rows = np.empty(len(dataset), dtype=object)
    total = 0
    for start in range(0, len(dataset), BLOCK):
        for row, array in enumerate(dataset[start : start + BLOCK], start=start):
            values, masked = unpacked(np.asarray(array), dataset.attrs, f"{path}: {name}", netcdf=netcdf)
            rows[row] = np.where(masked, np.nan, values) if masked is not None else values
            total += values.size * NUMBER_BYTES
        need_room(path, total, what=name)
    return rows


def _texts(path: Path, name: str, dataset: h5py.Dataset) -> NDArray[np.str_]:
    """Text, UTF-8 or else Latin-1, of an array or a single one."""
    if dataset.dtype.kind == "S":
        raw = np.asarray(dataset[()])
        return np.array([decoded(bytes(word)) for word in raw.ravel().tolist()], dtype=str).reshape(raw.shape)
    if dataset.ndim == 0:
        return np.array(_text_of(dataset[()]), dtype=str)
    words: list[str] = []
    total = 0
    for start in range(0, len(dataset), BLOCK):
        block = [_text_of(word) or "" for word in np.asarray(dataset[start : start + BLOCK]).ravel().tolist()]
        total += sum(map(len, block))
        need_room(path, total, what=name)
        words += block
    need_room(path, 4 * len(words) * max(map(len, words), default=0), what=name)  # NumPy pads all to the longest
    return np.array(words, dtype=str).reshape(dataset.shape)


# ---------------------------------------------------------------- CF conventions


def unpacked(
    packed: Any, attributes: Mapping[str, Any], where: str, *, netcdf: bool = False
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """scale_factor x packed + add_offset, and where the packed number stands for a missing one.

    Args:
        attributes: _FillValue, missing_value, valid_min, valid_max, valid_range, _Unsigned, scale_factor, add_offset.
        netcdf: what netCDF fills in where nothing was written is missing too.

    Raises:
        InputError: one of these is no number.

    References:
        CF conventions 1.11, sections 2.5.1 and 8.1; NetCDF Users Guide, appendix A
    """
    packed = np.asarray(packed)
    if packed.dtype.kind == "b":
        return packed, None

    def given(name: str) -> NDArray[Any] | None:
        if name not in attributes:
            return None
        numbers = np.atleast_1d(np.asarray(attributes[name]))
        if numbers.dtype.kind not in "biuf" or not numbers.size:
            raise InputError(f"{where}: attribute {name} is {str(attributes[name])[:40]!r}, expected a number")
        return numbers

    if _bytes(attributes.get("_Unsigned")).lower() == b"true" and packed.dtype.kind == "i":
        packed = packed.view(packed.dtype.str.replace("i", "u"))
    scale, offset = given("scale_factor"), given("add_offset")
    for name, numbers in (("scale_factor", scale), ("add_offset", offset)):
        if numbers is not None and numbers.size != 1:
            raise InputError(f"{where}: attribute {name} has {numbers.size} numbers, expected one")
    values: NDArray[Any] = packed
    if scale is not None or offset is not None:
        values = packed.astype(np.float64)
        values = values * (1.0 if scale is None else float(scale[0])) + (0.0 if offset is None else float(offset[0]))
    masked = np.zeros(packed.shape, dtype=bool)
    never = NEVER_WRITTEN.get(packed.dtype.str[1:]) if netcdf and "_FillValue" not in attributes else None
    for numbers in (given("_FillValue"), given("missing_value"), None if never is None else np.array([never])):
        for number in () if numbers is None else numbers:
            masked |= packed == _stored(number, packed.dtype)
    low, high = given("valid_min"), given("valid_max")
    limits = given("valid_range")
    if limits is not None and limits.size == 2:
        low, high = limits[:1], limits[1:]
    for limit, beyond in ((low, np.less), (high, np.greater)):
        if limit is not None:  # of an integer in floating point: of the unpacked number
            of_packed = limit.dtype.kind == packed.dtype.kind or packed.dtype.kind in "fu"
            compared = packed if of_packed else values
            masked |= beyond(compared, _stored(limit[0], packed.dtype) if of_packed else limit[0])
    native = values.astype(values.dtype.newbyteorder("="))
    return native, masked if masked.any() else None


def _stored(number: Any, dtype: np.dtype) -> Any:
    """A number of an attribute in the type of the data, as netCDF compares them: -1 is 255 among unsigned bytes."""
    if dtype.kind == "u" and np.asarray(number).dtype.kind == "i" and number < 0:
        return np.asarray(number).astype(f"i{dtype.itemsize}").view(dtype)[()]
    if dtype.kind == "f":
        return np.asarray(number).astype(dtype)[()]
    return number


# ---------------------------------------------------------------- tables


def _table(path: Path, file: h5py.File, name: str, dataset: h5py.Dataset) -> list[Field]:
    """A compound dataset: a table as astropy and others write it, `NAME/column`."""
    prefix = f"{name}/"
    if dataset.ndim == 1 and (f"{name}{ASTROPY_META}" in file or "__serialized_columns__" in dataset.attrs):
        from astropy.io.misc.hdf5 import read_table_hdf5

        lines = [decoded(bytes(line)) for line in np.asarray(file[f"{name}{ASTROPY_META}"]).ravel().tolist()]  # pyright: ignore[reportArgumentType]
        check_yaml("\n".join(lines), f"{path}: {name}")
        return list(table_fields(read_table_hdf5(file, path=name), prefix=prefix))
    rows: Any = dataset[()]
    fields: list[Field] = []
    for member in dataset.dtype.names or ():
        part = rows[member]
        if part.dtype.kind == "S":
            words = [decoded(bytes(word)) for word in part.ravel().tolist()]
            part = np.array(words, dtype=str).reshape(part.shape)
        elif part.dtype.kind == "O" and all(isinstance(word, (bytes, str)) for word in part.ravel().tolist()):
            part = np.array([_text_of(word) for word in part.ravel().tolist()], dtype=str).reshape(part.shape)
        if part.dtype.kind in "biufU":
            native = part.astype(part.dtype.newbyteorder("=")) if part.dtype.kind in "iuf" else part
            fields.append(Field(f"{prefix}{member}", native, by_row=dataset.ndim == 1))
    return fields


# ---------------------------------------------------------------- GWOSC


def _gwosc(path: Path, file: h5py.File, strain: h5py.Dataset) -> ForeignFile:
    """Strain in the layout of the Gravitational Wave Open Science Center: strain and the GPS times (s) of its samples.

    t_k = Xstart + k Xspacing; samples that a detector has no data for are NaN.
    Reference: https://gwosc.org/archive/ (HDF5 files)
    """
    attributes: Any = strain.attrs
    start, spacing = float(attributes["Xstart"]), float(attributes["Xspacing"])
    if not spacing > 0:
        raise InputError(f"{path}: strain/Strain: Xspacing is {spacing:g} s, expected a positive time")
    values = np.asarray(strain[...], dtype=np.float64)
    time = start + spacing * np.arange(len(values))
    meta = {name: str(_text_of(dataset[()])) for name, dataset in _members(file, "meta")}
    detector = meta.get("Detector", "")
    fields = (
        Field("time", time, "s", context=True, note="GPS"),
        Field("strain", values, "", note=f"{detector}, {1 / spacing:g} Hz, from GPS {start:.0f}"),
    )
    return ForeignFile(path, "GWOSC HDF5", fields, meta)


def _members(file: h5py.File, name: str) -> list[tuple[str, h5py.Dataset]]:
    group = file.get(name)
    items = group.items() if isinstance(group, h5py.Group) else ()
    return [(key, item) for key, item in items if isinstance(item, h5py.Dataset)]


def _attributes(file: h5py.File) -> dict[str, str]:
    return {k: str(_text_of(v)) for k, v in file.attrs.items() if isinstance(v, (str, bytes, np.generic))}


def _text_of(value: Any) -> str | None:
    """Text as h5py, C and Fortran write it, also as an array of one; None where it is something else."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    if isinstance(value, bytes):
        return decoded(value).rstrip("\0")
    return str(value) if isinstance(value, (str, np.generic)) else None


def _bytes(value: Any) -> bytes:
    return (_text_of(value) or "").encode()
