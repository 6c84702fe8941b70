"""Text tables, with every cell as it is written: CSV, and what astropy recognises; ECSV checked before astropy reads it."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulators.errors import InputError
from simulators.reading.bounds import need_words, read_text, reading
from simulators.reading.words import NUMBER, as_number, as_numbers
from simulators.reading.yaml_text import check_yaml
from simulators.units import conversion_factor, parse_unit

UNIT_IN_NAME = re.compile(r"(?P<name>.*[^\s\[])\s*\[(?P<unit>[^\[\]]*)\]")
DELIMITERS = ",;\t"
TRIED = 100
"""Rows that have to agree on a delimiter."""
ECSV = "# %ECSV"
COMPRESSED = re.compile(r"\.(?:gz|bz2|xz)$")
READABLE = "a table that can be read"


@dataclass(frozen=True)
class TextColumn:
    """One column of a text table.

    Attributes:
        name: of the column, without its unit.
        unit: as declared; None where nothing is said.
        cells: as written, without blanks around; empty where the table marks a value as missing, (R,).
    """

    name: str
    unit: str | None
    cells: NDArray[np.str_]

    def numbers(self, what: str, unit: str | None = None) -> NDArray[np.float64]:
        """The column as float64, in `unit` where it declares one; NaN where a number is missing.

        Raises:
            InputError: a cell is no number, or the unit of another kind.
        """
        values, wrong = as_numbers(self.cells)
        if wrong is not None:
            raise InputError(f"{what}: {self.name}, row {wrong + 1}: expected numbers, got {self.cells[wrong][:80]!r}")
        if unit is None or self.unit is None:
            return values
        return values * conversion_factor(self.unit, unit, f"{what}: {self.name}")


@dataclass(frozen=True)
class TextTable:
    """A text table.

    Attributes:
        kind: its format, in words.
        columns: in their order; names may come twice.
        comment: the last line of comment in front of it.
        meta: what stands in its header, where it has one.
    """

    kind: str
    columns: tuple[TextColumn, ...]
    comment: str = ""
    meta: dict[str, str] = field(default_factory=dict)

    def find(self, names: Sequence[str], path: Path) -> TextColumn | None:
        """The column of the first of these names that there is.

        Raises:
            InputError: the table has two of that name.
        """
        for name in names:
            found = [column for column in self.columns if column.name == name]
            if len(found) > 1:
                raise InputError(f"{path}: {len(found)} columns with the name {name!r}: rename all but one")
            if found:
                return found[0]
        return None


def read_text_table(path: Path) -> TextTable:
    """A text table of any kind, unpacked where it is compressed.

    A table without a header has the columns col1, col2, ...

    Raises:
        InputError: not text, or no table in it.
    """
    text = read_text(path)
    need_words(path, text)
    if text.lstrip("\n").startswith(ECSV):
        return _cells_of_ecsv(ecsv_table(path, text))
    body = [line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    comments = [line.strip().lstrip("# ") for line in text.split("\n") if line.lstrip().startswith("#")]
    if not body:
        raise InputError(f"{path}: has no rows")
    delimiter = _delimiter(path, body)
    with reading(path, READABLE):
        if delimiter is None:
            return _recognised(path, text)
        return _separated(path, body, delimiter, comments[-1] if comments else "")


# ---------------------------------------------------------------- separated by a character


def _delimiter(path: Path, body: Sequence[str]) -> str | None:
    """The character with which all rows have the same number of cells, at least two; None: none separates columns.

    Raises:
        InputError: two of them make tables of the same size, and neither has more numbers in it.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for delimiter in DELIMITERS:
        try:
            rows = _rows(body[:TRIED], delimiter)
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows):
            sizes[delimiter] = len(rows[0]), sum(as_number(cell) is not None for row in rows[1:] for cell in row)
    best = sorted(sizes, key=sizes.__getitem__, reverse=True)
    if len(best) > 1 and sizes[best[0]] == sizes[best[1]] and len(body) > 1:
        raise InputError(
            f"{path}: are its cells separated by {best[0]!r} or by {best[1]!r}? Quote cells that have either"
        )
    if best:
        return best[0]
    uneven = next((delimiter for delimiter in ",;" if body and delimiter in body[0]), None)
    if uneven is not None:
        return uneven
    words = {len(line.split()) for line in body[:TRIED]}
    is_csv = COMPRESSED.sub("", path.name.lower()).endswith(".csv")
    return "," if is_csv and not (len(words) == 1 and words.pop() > 1) else None


def _rows(body: Sequence[str], delimiter: str) -> list[list[str]]:
    """Cells of lines, quotes resolved, blanks around them gone.

    Raises:
        csv.Error: a quote that is not closed where its line ends.
    """
    text = io.StringIO("\n".join(body), newline="")
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
    ]
    if any("\n" in cell for row in rows for cell in row):
        raise csv.Error("a quote that is not closed where its line ends")
    return rows


def _separated(path: Path, body: Sequence[str], delimiter: str, comment: str) -> TextTable:
    rows = _rows(body, delimiter)
    if not rows:
        raise ValueError("no rows")
    commented = _rows([comment], delimiter)[0] if comment else []
    if len(commented) == len(rows[0]) and any(as_number(cell) is not None for cell in rows[0]):
        names = commented
    elif as_number(rows[0][0]) is not None:
        names = [f"col{i}" for i in range(1, len(rows[0]) + 1)]
    else:
        names, rows = rows[0], rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise ValueError(f"row {number} has {len(row)} cells, the header {len(names)}")
    named = [_named(name or f"col{i}") for i, name in enumerate(names)]
    cells = zip(*rows, strict=True) if rows else ([] for _ in named)
    columns = (TextColumn(n, u, np.array(c, dtype=str)) for (n, u), c in zip(named, cells, strict=True))
    return TextTable("CSV", tuple(columns), comment)


def _named(header: str) -> tuple[str, str | None]:
    """Name and unit of `flux [mJy]`."""
    if (found := UNIT_IN_NAME.fullmatch(header)) and parse_unit(found["unit"]) is not None:
        return found["name"], found["unit"]
    return header, None


# ---------------------------------------------------------------- by astropy


def _recognised(path: Path, text: str) -> TextTable:
    """What astropy recognises, every cell as text: blanks between columns, tables of the journals, IPAC and others."""
    from astropy.io import ascii as text_formats

    to_text = text_formats.convert_numpy(str)[0]
    kinds = (text_formats.core.StrType, text_formats.core.FloatType, text_formats.core.IntType)
    cells = {"converters": {"*": [(to_text, kind) for kind in kinds]}}
    table = _by_astropy(text, format="ascii", **cells)
    if any(as_number(name) is not None for name in table.colnames):  # numbers taken for a header
        table = _by_astropy(text, format="ascii.no_header", **cells)
    meta = table.meta if isinstance(table.meta, Mapping) else {}
    comments = [str(line) for line in meta.get("comments", [])]
    for name in table.colnames:
        again = re.fullmatch(r"(.+)_[0-9]+", name)
        if again and again[1] in table.colnames and name not in text:  # astropy makes y and y_1 of y and y
            raise InputError(f"{path}: two columns with the name {again[1]!r}: rename all but one")
    columns = tuple(_cells_of(table[name]) for name in table.colnames)
    return TextTable("text table", columns, comments[-1] if comments else "", _plain(meta))


def _by_astropy(text: str, **options: Any) -> Any:
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            lines = text.rstrip("\n").split("\n")  # as one text it may be a file's name to astropy, or a URL
            return Table.read(lines, **options)
        except Exception as error:
            if "guess" not in str(error):
                raise
            first = next((line.strip() for line in text.split("\n") if line.strip()), "")
            raise ValueError(f"no format that ingest knows; it begins with {first[:60]!r}") from None


def ecsv_table(path: Path, text: str | None = None) -> Any:
    """An ECSV file as an astropy Table.

    Raises:
        InputError: its header is no YAML within bounds, a name comes twice, or a number is none.
    """
    if text is None:
        text = read_text(path)
        need_words(path, text)
    lines = [line for line in text.split("\n") if line.strip()]
    header = [line.lstrip("#")[1:] for line in lines if line.startswith("#")][1:]
    check_yaml("\n".join(header), str(path))
    with reading(path, f"{READABLE} (ECSV)"):
        table = _by_astropy(text, format="ascii.ecsv")
        _check_cells(path, lines, header)
    return table


def _check_cells(path: Path, lines: Sequence[str], header: Sequence[str]) -> None:
    """Refuse numbers that only Python reads as such: astropy takes 1_5 for 15."""
    from astropy.table.meta import get_header_from_yaml

    described = get_header_from_yaml([line for line in header if line.strip()])
    body = [line for line in lines if not line.startswith("#")]
    rows = _rows(body, described.get("delimiter", " "))
    names = rows[0] if rows else []
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: two columns with the name {twice!r}: rename all but one")
    kinds = {column["name"]: column for column in described["datatype"]}
    numeric = [
        place
        for place, name in enumerate(names)
        if "subtype" not in kinds.get(name, {})
        and re.match("u?int|float", str(kinds.get(name, {}).get("datatype", "")))
    ]
    for number, row in enumerate(rows[1:], start=1):
        for place in numeric:
            if place < len(row) and row[place] and not NUMBER.fullmatch(row[place]):
                raise InputError(f"{path}: {names[place]}, row {number}: expected a number, got {row[place][:80]!r}")


def _cells_of_ecsv(table: Any) -> TextTable:
    columns = tuple(_cells_of(table[name]) for name in table.colnames if getattr(table[name], "ndim", 0) == 1)
    return TextTable("ECSV", columns, "", _plain(table.meta))


def _cells_of(column: Any) -> TextColumn:
    mask = np.broadcast_to(np.asarray(getattr(column, "mask", False), dtype=bool), (len(column),))
    values: Any = np.ma.getdata(column) if isinstance(column, np.ndarray) else column
    words = ["" if gone else str(value).strip() for value, gone in zip(values, mask, strict=True)]
    info: Any = getattr(column, "info")  # noqa: B009  # masked arrays have none to a type checker
    unit, whole = getattr(column, "unit", None), str(info.name)
    name, declared = _named(whole) if unit is None else (whole, unit.to_string())
    return TextColumn(name, declared, np.array(words, dtype=str))


def _plain(meta: Any) -> dict[str, str]:
    """Simple values of a header, as text."""
    items = meta.items() if isinstance(meta, Mapping) else ()
    return {str(k): str(v) for k, v in items if isinstance(v, (str, int, float, np.generic))}
