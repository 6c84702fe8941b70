"""VOTables: looked through before astropy reads them, since one may name other files and sizes that it does not have."""

from __future__ import annotations

import io
import math
import re
import warnings
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from pipeline.errors import InputError
from pipeline.foreign.fields import Field, ForeignFile
from pipeline.foreign.tables import declared, plain_values, simple_meta
from simulators.reading.bounds import NUMBER_BYTES, WORD_BYTES, need_room, read_bytes, reading

NUMERIC = ("short", "int", "long", "float", "double", "unsignedByte")
FIELD_BYTES = 2000
"""Of the description of a column."""
AT_LEAST = 32
"""Rows for which there must be room: astropy begins with 256."""
ONLY_PYTHON = re.compile(r"_|[^\x00-\x7f]")
"""In a number: Python reads 1_5 as 15, and digits of other scripts."""


def read_votable(path: Path) -> ForeignFile:
    """All tables of a VOTable; their names stand before those of the columns where there are several.

    Raises:
        InputError: damaged, data in another file, or more numbers than its size allows.
    """
    from astropy.io import votable
    from astropy.io.votable import exceptions

    data = read_bytes(path)
    need_room(path, data.count(b"<") * WORD_BYTES, what=f"its {data.count(b'<')} elements")
    with reading(path, "a VOTable that astropy reads"):
        _Look(path, len(data)).through(data)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # deviations from the standard; a unit that astropy does not know is said later
            for category in (exceptions.W46, exceptions.W51):  # text or a number cut to what its type holds
                warnings.filterwarnings("error", category=category)
            tables = list(votable.parse(io.BytesIO(data), verify="warn", filename=str(path)).iter_tables())
            fields = [_fields(table, number, several=len(tables) > 1) for number, table in enumerate(tables)]
        meta: dict[str, str] = {}
        for table in tables:
            meta |= simple_meta({p.name: p.value for p in table.params if p.name})
    return ForeignFile(path, "VOTable", tuple(f for of_table in fields for f in of_table), meta)


def _fields(table: Any, number: int, *, several: bool) -> list[Field]:
    prefix = f"{table.ID or table.name or number}/" if several else ""
    masked = table.array
    fields: list[Field] = []
    for place, column in enumerate(table.fields):
        values = masked[masked.dtype.names[place]]
        plain = plain_values(values)
        mask = np.ma.getmaskarray(values) if plain.dtype != object and values.dtype != object else None
        gone = mask if mask is not None and mask.any() else None
        fields.append(Field(f"{prefix}{column.name or column.ID}", plain, declared(column.unit), gone, by_row=True))
    return fields


class _Look:
    """What the XML says of sizes and other files.

    Raises:
        InputError: entities, data that lie elsewhere, rows larger than the file allows, or 1_5 for a number.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._numeric: list[bool] = []
        self._elements = 0
        self._rows = 0
        self._described = 0
        self._declared = ""
        self._cell = -1
        self._text: list[str] | None = None

    def through(self, data: bytes) -> None:
        """Read all of it once."""
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._doctype
        parser.Parse(data, True)

    def _doctype(self, *_: Any) -> None:
        raise InputError(f"{self._path}: has a DOCTYPE, which no VOTable needs: remove that line")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(":")[2]
        if name in ("STREAM", "FITS", "PARQUET") and attributes.get("href"):
            raise InputError(
                f"{self._path}: its data lie in {attributes['href'][:80]!r}: get a table that has them inside"
            )
        if name == "TABLE":
            self._numeric, self._elements, self._rows = [], 0, 0
            self._declared = attributes.get("nrows", "").strip()
        elif name == "DATA":
            if self._declared.isdigit():  # astropy makes room for as many
                needed = int(self._declared) * max(1, self._elements) * NUMBER_BYTES
                need_room(self._path, needed, self._size, what=f"{self._declared[:20]} rows")
        elif name == "FIELD":
            sizes = [int(n) for n in re.findall(r"[0-9]+", attributes.get("arraysize", "1"))]
            self._elements += math.prod(sizes) if "*" not in attributes.get("arraysize", "") else 1
            self._numeric.append(attributes.get("datatype", "") in NUMERIC)
            self._described += 1
            need_room(self._path, self._described * FIELD_BYTES, self._size, what=f"{self._described} columns")
            need_room(self._path, self._elements * NUMBER_BYTES * AT_LEAST, self._size, what="a table of such rows")
        elif name == "TR":
            self._cell = -1
            self._rows += 1
            need_room(
                self._path, self._rows * max(1, self._elements) * WORD_BYTES, self._size, what=f"{self._rows} rows"
            )
        elif name == "TD":
            self._cell += 1
            numeric = self._cell < len(self._numeric) and self._numeric[self._cell]
            self._text = [] if numeric else None

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _end(self, tag: str) -> None:
        if tag.rpartition(":")[2] == "TD" and self._text is not None:
            text, self._text = "".join(self._text), None
            if ONLY_PYTHON.search(text):
                raise InputError(f"{self._path}: row {self._rows}: expected a number, got {text[:80]!r}")
