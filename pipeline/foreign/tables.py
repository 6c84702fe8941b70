"""Tables that astropy reads: FITS, ECSV, VOTable, CSV, machine-readable tables of the journals, plain text."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.foreign.fields import Field, ForeignFile
from simulators.units import parse_unit

UNIT_IN_NAME = re.compile(r"(?P<name>.*[^\s\[])\s*\[(?P<unit>[^\[\]]*)\]")

ENCODING = "utf-8-sig"
"""With or without the mark that spreadsheets put in front."""


def read_text(path: Path) -> ForeignFile:
    """A text table: ECSV where it says so, CSV where its header has commas, else what astropy recognises.

    A table without a header has the columns col1, col2, ...

    Raises:
        InputError: astropy finds no table in it.
    """
    first, header = _first_lines(path)
    if first.startswith("# %ECSV"):
        return _text_file(path, "ECSV", _read(path, format="ascii.ecsv"))
    delimiter = next((d for d in ",;" if d in header), None)
    if delimiter is None:
        table = _read(path, format="ascii")
        if any(map(_is_number, table.colnames)):  # numbers taken for a header
            table = _read(path, format="ascii.no_header")
        return _text_file(path, "text table", table)
    table = _read(path, format="ascii.csv", delimiter=delimiter, comment="#")
    names = [word.strip() for word in _last_comment(table).split(delimiter)]
    commented = len(names) == len(table.colnames) and any(map(_is_number, table.colnames))
    if commented or _is_number(table.colnames[0]):
        table = _read(path, format="ascii.no_header", delimiter=delimiter, comment="#")
    if commented:
        table.rename_columns(table.colnames, names)
    return _text_file(path, "CSV", table)


def _last_comment(table: Any) -> str:
    """The last comment in front of a text table."""
    comments = table.meta.get("comments", []) if isinstance(table.meta, Mapping) else []
    return str(comments[-1]) if comments else ""


def _text_file(path: Path, kind: str, table: Any) -> ForeignFile:
    comment = _last_comment(table)
    note = f"line in front of the table: {comment[:200]}" if comment else ""
    return ForeignFile(path, kind, table_fields(table), _meta(table.meta), note)


def _first_lines(path: Path) -> tuple[str, str]:
    """The first line that is not empty, and the first that is no comment either."""
    try:
        with path.open(encoding=ENCODING) as file:
            lines = (line.strip() for line in file if line.strip())
            first = next(lines, "")
            return first, next((line for line in itertools.chain([first], lines) if not line.startswith("#")), first)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text table (not UTF-8), and no other format that ingest reads") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_votable(path: Path) -> ForeignFile:
    """All tables of a VOTable; their names stand before those of the columns where there are several."""
    from astropy.io import votable

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deviations from the standard; a unit that astropy does not know is said later
        try:
            tables = list(votable.parse(path, verify="ignore").iter_tables())
            read = [(t.ID or t.name or str(i), t.to_table(use_names_over_ids=True)) for i, t in enumerate(tables)]
        except Exception as error:  # expat and astropy raise several kinds
            raise InputError(f"{path}: not a VOTable that astropy reads ({_one_line(error)})") from None
    return _several(path, "VOTable", read)


def read_fits(path: Path) -> ForeignFile:
    """All tables and images of a FITS file, by EXTNAME or number; `NAME/column` where there are several tables."""
    from astropy.io import fits

    tables: list[tuple[str, Any]] = []
    images: list[Field] = []
    meta: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="(?s).*(truncated|validating header)")  # else the rest is lost
        try:
            with fits.open(path, memmap=False) as hdus:
                for number, hdu in enumerate(hdus):
                    header: Any = hdu.header
                    meta = _meta({k: v for k, v in header.items() if k not in ("COMMENT", "HISTORY", "")}) | meta
                    if isinstance(hdu, (fits.BinTableHDU, fits.TableHDU)) and not isinstance(hdu, fits.CompImageHDU):
                        tables.append((hdu.name or str(number), _read_hdu(hdu)))
                    elif hdu.data is not None:
                        images.append(_image(hdu, hdu.name or str(number)))
        except Exception as error:  # whatever a damaged file makes astropy raise
            raise InputError(f"{path}: not a FITS file that astropy reads ({_one_line(error)})") from None
    of_tables = _several(path, "FITS", tables).fields
    kind = " and ".join(k for k, there in (("table", tables), ("image", images)) if there) or "without data"
    return ForeignFile(path, f"FITS {kind}", (*of_tables, *images), meta)


def _read_hdu(hdu: Any) -> Any:
    """A table of a FITS file; times that astropy wrote as two numbers, jd1 and jd2, become Time again."""
    from astropy.table import Table
    from astropy.time import Time

    table = Table.read(hdu)
    if "TIMESYS" in hdu.header:
        native = Table.read(hdu, astropy_native=True)
        for name in table.colnames:
            if table[name].shape[1:] == (2,) and isinstance(native[name], Time):
                table[name] = native[name]
    return table


def _image(hdu: Any, name: str) -> Field:
    """One image; pixels with the value BLANK are missing, as NaN are."""
    values = np.asarray(hdu.data)
    blank = hdu.header.get("BLANK")
    masked = values == blank if blank is not None and values.dtype.kind in "iu" else None
    return Field(name, values.astype(values.dtype.newbyteorder("=")), _declared(hdu.header.get("BUNIT")), masked)


def _read(path: Path, **options: str) -> Any:
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Table.read(path, encoding=ENCODING, **options)
        except Exception as error:  # astropy raises several kinds; each becomes one readable line
            raise InputError(f"{path}: not a table that astropy reads ({_one_line(error)})") from None


def _several(path: Path, kind: str, tables: list[tuple[str, Any]]) -> ForeignFile:
    fields: list[Field] = []
    meta: dict[str, str] = {}
    for name, table in tables:
        fields += table_fields(table, prefix=f"{name}/" if len(tables) > 1 else "")
        meta |= _meta(table.meta)
    return ForeignFile(path, kind, tuple(fields), meta)


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
        return Field(name, values, "d", _mask(column), True, note=f"astropy Time, {column.scale}, as Julian date")
    if not isinstance(column, Column):  # SkyCoord and the like
        return Field(
            name, np.array([str(value) for value in column], dtype=str), by_row=True, note=type(column).__name__
        )
    unit = _declared(column.unit)
    if unit is None and (found := UNIT_IN_NAME.fullmatch(name)) and parse_unit(found["unit"]) is not None:
        name, unit = found["name"], found["unit"]
    values = np.asarray(np.ma.getdata(column))
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    elif values.dtype.kind == "O" and not (len(values) and isinstance(values[0], np.ndarray)):
        values = values.astype(str)
    elif values.dtype.kind in "iuf":
        values = values.astype(values.dtype.newbyteorder("="))
    return Field(name, values, unit, _mask(column), True)


def _mask(column: Any) -> np.ndarray | None:
    """Missing entries of a masked column; None where nothing is missing."""
    mask = getattr(column, "mask", None)
    if mask is None or np.asarray(mask).dtype == object or not np.any(mask):
        return None
    return np.array(np.broadcast_to(np.asarray(mask, dtype=bool), np.shape(column)))


def _declared(unit: Any) -> str | None:
    """A unit as an astropy string; what astropy does not know stays as it stands in the file."""
    if unit is None or not str(unit).strip():
        return None if unit is None or isinstance(unit, str) else ""
    text = str(unit).strip()
    parsed = parse_unit(text) if isinstance(unit, str) else unit
    return text if parsed is None else parsed.to_string()


def _meta(meta: Any) -> dict[str, str]:
    """Simple values of a header, as text."""
    items = meta.items() if isinstance(meta, Mapping) else ()
    return {str(k): str(v) for k, v in items if isinstance(v, (str, int, float, np.generic))}


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removeprefix("ERROR: ")[:200] if lines else type(error).__name__
