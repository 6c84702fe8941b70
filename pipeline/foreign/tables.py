"""Text tables: CSV, plain text, machine-readable tables of the journals, ECSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.foreign.fields import Field, ForeignFile
from simulators.reading.fits_columns import decoded
from simulators.reading.tables import ECSV, UNIT_IN_NAME, TextTable, ecsv_table, read_text_table
from simulators.reading.words import as_values
from simulators.units import parse_unit


def read_text(path: Path, head: bytes) -> ForeignFile:
    """A text table: ECSV where it says so, CSV where its rows are separated so, else what astropy recognises.

    A table without a header has the columns col1, col2, ...

    Raises:
        InputError: there is no table in it.
    """
    if head.lstrip(b"\xef\xbb\xbf\r\n").startswith(ECSV.encode()):
        table = ecsv_table(path)
        return ForeignFile(path, "ECSV", table_fields(table), simple_meta(table.meta))
    return _text_file(path, read_text_table(path))


def _text_file(path: Path, table: TextTable) -> ForeignFile:
    note = f"line in front of the table: {table.comment[:200]}" if table.comment else ""
    fields = []
    for column in table.columns:
        gone = column.cells == ""
        values = as_values(column.cells)
        fields.append(
            Field(column.name, values, declared(column.unit), gone if gone.any() else None, column.cells, by_row=True)
        )
    return ForeignFile(path, table.kind, tuple(fields), table.meta, note)


def table_fields(table: Any, *, prefix: str = "") -> tuple[Field, ...]:
    """Columns of an astropy Table, units and masks included.

    An astropy Time becomes its Julian date (d). A column `flux [mJy]` without a unit of its own is `flux` in mJy.
    """
    return tuple(_field(table[name], f"{prefix}{name}") for name in table.colnames)


def _field(column: Any, name: str) -> Field:
    from astropy.table import Column
    from astropy.time import Time

    if isinstance(column, Time):
        jd: Any = column.jd
        values = np.array(getattr(jd, "unmasked", jd), dtype=np.float64)
        note = f"astropy Time, {column.scale}, as Julian date"
        return Field(name, values, "d", _mask(column), by_row=True, note=note)
    if not isinstance(column, Column):  # SkyCoord and the like
        words = np.array([str(value) for value in column], dtype=str)
        return Field(name, words, by_row=True, note=type(column).__name__)
    unit = declared(column.unit)
    if unit is None and (found := UNIT_IN_NAME.fullmatch(name)) and parse_unit(found["unit"]) is not None:
        name, unit = found["name"], found["unit"]
    return Field(name, plain_values(column), unit, _mask(column), by_row=True)


def plain_values(column: Any) -> np.ndarray:
    """Numbers in this machine's byte order, text, or one array a row, with NaN where an entry of it is masked."""
    values = np.asarray(np.ma.getdata(column))
    if values.dtype.kind == "S":
        return np.array([decoded(bytes(word)) for word in values.ravel().tolist()], dtype=str).reshape(values.shape)
    if values.dtype.kind == "O":
        arrays = [isinstance(value, (np.ndarray, list)) for value in values.ravel().tolist()]
        if not arrays or not all(arrays):
            return values.astype(str)
        rows = np.empty(len(values), dtype=object)
        rows[:] = [_filled(row) for row in np.ma.getdata(column)]
        return rows
    return values.astype(values.dtype.newbyteorder("=")) if values.dtype.kind in "iuf" else values


def _filled(row: Any) -> np.ndarray:
    array: Any = np.ma.asarray(row)
    if array.dtype.kind == "O":  # JSON's null within a list
        array = np.ma.masked_invalid(np.array([np.nan if v is None else v for v in array.tolist()], dtype=np.float64))
    return array.astype(np.float64).filled(np.nan) if np.ma.is_masked(array) else np.asarray(array)


def _mask(column: Any) -> np.ndarray | None:
    """Missing entries of a masked column; None where nothing is missing."""
    mask = getattr(column, "mask", None)
    if mask is None or np.asarray(mask).dtype == object or not np.any(mask):
        return None
    return np.array(np.broadcast_to(np.asarray(mask, dtype=bool), np.shape(column)))


def declared(unit: Any, *, fits: bool = False) -> str | None:
    """A unit as an astropy string; what astropy does not know stays as it stands in the file.

    Args:
        fits: first as the FITS Standard writes units.
    """
    if unit is None or not str(unit).strip():
        return None if unit is None or isinstance(unit, str) else ""
    text = str(unit).strip()
    parsed = unit if not isinstance(unit, str) else _fits_unit(text) if fits else parse_unit(text)
    return text if parsed is None else parsed.to_string()


def _fits_unit(text: str) -> Any:
    from astropy import units

    try:
        return units.Unit(text, format="fits")
    except (ValueError, TypeError):
        return parse_unit(text)


def simple_meta(meta: Any) -> dict[str, str]:
    """Simple values of a header, as text."""
    items = meta.items() if isinstance(meta, Mapping) else ()
    return {str(k): str(v) for k, v in items if isinstance(v, (str, int, float, np.generic))}
