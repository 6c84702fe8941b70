"""Columns of FITS tables from their bytes: what is missing is known by the number that is stored, before it is scaled.

Reference: FITS Standard 4.0, sections 7.2 and 7.3 (https://fits.gsfc.nasa.gov/fits_standard.html)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulators.errors import InputError
from simulators.reading.bounds import NUMBER_BYTES, need_room
from simulators.reading.words import as_number

NUMBERS = {"L": "u1", "X": "u1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
NUMBERS |= {"C": ">c8", "M": ">c16"}
DESCRIPTORS = {"P": ">i4", "Q": ">i8"}
FORM = re.compile(r"(?P<repeat>[0-9]*)(?P<letter>[LXBIJKAEDCMPQ])(?P<rest>.*)")
ASCII_FORM = re.compile(r"(?P<letter>[AIFED])(?P<width>[0-9]+)(?:\.(?P<digits>[0-9]+))?")
TOP_BIT = np.uint64(1 << 63)

Header = Mapping[str, Any]


@dataclass(frozen=True)
class FitsColumn:
    """One column.

    Attributes:
        name: as TTYPE has it.
        values: (R, ...), scaled; text; or (R,) arrays of their own length, NaN where missing.
        mask: entries that are missing, of the shape of values; None where none is.
        unit: as TUNIT has it.
        time_scale: of a column of times as two numbers, whose sum is the Julian date; values are that sum.
    """

    name: str
    values: NDArray[Any]
    mask: NDArray[np.bool_] | None = None
    unit: str | None = None
    time_scale: str = ""


def scaled(raw: NDArray[Any], scale: Any, zero: Any, null: Any) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """scale x raw + zero, and where raw is null: whole numbers by adding a whole zero stay exact, unsigned ones too.

    Raises:
        ValueError: null is not of the stored type, as of files that give it after scaling.
    """
    mask = None
    if raw.dtype.kind in "iu" and null is not None:
        limits = np.iinfo(raw.dtype)
        if isinstance(null, (bool, str)) or int(null) != null or not limits.min <= null <= limits.max:
            raise ValueError(
                f"its value for missing numbers, {null}, is none that is stored in {8 * raw.itemsize} bits"
            )
        mask = raw == int(null)
    native = raw.astype(raw.dtype.newbyteorder("="))
    scale, zero = (float(scale), zero if isinstance(zero, int) else float(zero))
    if scale == 1 and zero == 0:
        return native, mask
    if scale == 1 and native.dtype.kind in "iu" and float(zero).is_integer():
        if native.dtype == np.int64 and zero == 2**63:
            return native.view(np.uint64) ^ TOP_BIT, mask
        if native.itemsize < 8 and abs(zero) < 2**62:
            return native.astype(np.int64) + int(zero), mask
    return native.astype(np.float64) * scale + float(zero), mask


def binary_columns(path: Path, header: Header, data: bytes) -> list[FitsColumn]:
    """Columns of a binary table.

    Args:
        data: of the HDU, with the heap.

    Raises:
        InputError: more numbers than the file's size allows.
        ValueError, KeyError: the header does not fit the data.
    """
    rows, width = int(header["NAXIS2"]), int(header["NAXIS1"])
    count = int(header["TFIELDS"])
    need_room(path, rows * max(1, count) * NUMBER_BYTES, what=f"a table of {rows} rows")
    cells = np.frombuffer(data, np.uint8, rows * width).reshape(rows, width)
    heap = memoryview(data)[int(header.get("THEAP", rows * width)) : rows * width + int(header.get("PCOUNT", 0))]
    columns: list[FitsColumn] = []
    offset = 0
    for i in range(1, count + 1):
        form = FORM.fullmatch(str(header[f"TFORM{i}"]).strip().upper())
        if form is None:
            raise ValueError(f"TFORM{i} {header[f'TFORM{i}']!r} is no format of a column")
        repeat = int(form["repeat"] or 1)
        letter = form["letter"]
        length = _length(letter, repeat)
        if offset + length > width:
            raise ValueError(f"its columns take more than the {width} bytes of a row")
        part = np.ascontiguousarray(cells[:, offset : offset + length])
        offset += length
        need_room(path, rows * max(1, repeat) * NUMBER_BYTES, what=f"column {i}")
        columns.append(_column(path, header, i, part, letter, repeat, form["rest"], heap))
    if offset != width:
        raise ValueError(f"its columns take {offset} bytes, its rows {width}")
    return columns


def _length(letter: str, repeat: int) -> int:
    """Bytes of a column in a row."""
    if letter == "X":
        return (repeat + 7) // 8
    return (
        repeat
        * (1 if letter == "A" else np.dtype(NUMBERS.get(letter, "u1")).itemsize)
        * {"P": 8, "Q": 16}.get(letter, 1)
    )


def _column(
    path: Path, header: Header, i: int, part: NDArray[np.uint8], letter: str, repeat: int, rest: str, heap: memoryview
) -> FitsColumn:
    name, unit = str(header.get(f"TTYPE{i}", f"col{i}")).strip(), header.get(f"TUNIT{i}")
    shape = _shape(header.get(f"TDIM{i}"), repeat)
    law = (header.get(f"TSCAL{i}", 1), header.get(f"TZERO{i}", 0), header.get(f"TNULL{i}"))
    rows = len(part)
    if letter in DESCRIPTORS:
        if repeat == 0:
            return FitsColumn(name, np.array([""] * rows))
        where = part.view(DESCRIPTORS[letter]).reshape(rows, 2)
        return FitsColumn(name, _arrays(path, name, where, rest[:1], heap, law), None, unit)
    if letter == "A":
        texts = _texts(part, shape)
        return FitsColumn(name, texts, _where(texts == ""), unit)
    if letter == "X":
        return FitsColumn(name, np.unpackbits(part, axis=1)[:, :repeat].astype(bool), None, unit)
    raw = part.view(NUMBERS[letter]).reshape(rows, *shape) if repeat else np.zeros((rows, 0))
    raw = raw.reshape(rows) if repeat == 1 and f"TDIM{i}" not in header else raw
    if letter == "L":
        return FitsColumn(name, raw == ord("T"), _where((raw != ord("T")) & (raw != ord("F"))), unit)
    values, mask = scaled(raw, *law)
    scale = str(header.get(f"TCTYP{i}", "")).strip().lower()
    if scale in TIME_SCALES and "TIMESYS" in header and values.shape[1:] == (2,) and values.dtype.kind == "f":
        return FitsColumn(name, values.sum(axis=1) + _reference(header), None, "d", scale)
    return FitsColumn(name, values, _where(mask), unit)


TIME_SCALES = ("tdb", "utc", "tt", "tai", "ut1", "tcb", "tcg", "local")


def _reference(header: Header) -> float:
    """Julian date of the zero of a table's times (d)."""
    if "MJDREF" in header:
        return float(header["MJDREF"]) + 2400000.5
    if any(key in header for key in ("DATEREF", "MJDREFI", "JDREFI")) or "JDREF" not in header:
        raise ValueError("times whose zero is not given by JDREF or MJDREF")
    return float(header["JDREF"])


def _where(mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    return mask if mask is not None and mask.any() else None


def _shape(text: Any, repeat: int) -> tuple[int, ...]:
    """Of a cell, C order; as TDIM has it, where its product is the repeat count."""
    numbers = [int(n) for n in re.findall(r"[0-9]+", str(text or ""))]
    return tuple(reversed(numbers)) if numbers and int(np.prod(numbers)) == repeat else (repeat,)


def _texts(part: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.str_]:
    """Text of fixed width; it ends at the first zero byte, and blanks behind it are padding."""
    rows, width = len(part), shape[-1] if part.shape[1] else 0
    if width == 0:
        return np.full(rows, "")
    words = [bytes(row.tobytes()).partition(b"\0")[0] for row in part.reshape(-1, width)]
    return np.array([decoded(word).rstrip(" ") for word in words], dtype=str).reshape(rows, *shape[:-1])


def decoded(text: bytes) -> str:
    """UTF-8, or else Latin-1: every byte is a character there."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _arrays(
    path: Path, name: str, where: NDArray[Any], letter: str, heap: memoryview, law: tuple[Any, Any, Any]
) -> NDArray[Any]:
    """Arrays of different length, one a row, all of them scaled alike; text where they are such."""
    counts, starts = where[:, 0].astype(np.int64), where[:, 1].astype(np.int64)
    item = 1 if letter == "A" else np.dtype(NUMBERS[letter]).itemsize
    if letter == "X":
        raise ValueError(f"{name}: bits of different number a row, which are not read")
    need_room(path, float(counts.astype(float).sum()) * NUMBER_BYTES, what=f"column {name}")
    some = counts != 0
    if bool(((counts < 0) | (some & ((starts < 0) | (starts + counts * item > len(heap))))).any()):
        raise ValueError(f"{name}: an array that lies outside the file")
    if letter == "A":
        texts = [bytes(heap[s : s + c]).partition(b"\0")[0] for s, c in zip(starts, counts, strict=True)]
        return np.array([decoded(text).rstrip(" ") for text in texts], dtype=str)
    arrays = np.empty(len(counts), dtype=object)
    for row, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        raw = np.frombuffer(heap, NUMBERS[letter], count, start if count else 0)
        if letter == "L":
            arrays[row] = np.where((raw == ord("T")) | (raw == ord("F")), raw == ord("T"), np.nan)
            continue
        values, mask = scaled(raw, *law)
        arrays[row] = np.where(mask, np.nan, values) if mask is not None and mask.any() else values
    return arrays


def ascii_columns(path: Path, header: Header, data: bytes) -> list[FitsColumn]:
    """Columns of an ASCII table; TNULL is compared as text, before anything is read as a number.

    Raises:
        InputError: a cell that is no number.
        ValueError, KeyError: the header does not fit the data.
    """
    rows, width = int(header["NAXIS2"]), int(header["NAXIS1"])
    lines = [data[row * width : (row + 1) * width].decode("ascii", "replace") for row in range(rows)]
    columns: list[FitsColumn] = []
    for i in range(1, int(header["TFIELDS"]) + 1):
        form = ASCII_FORM.fullmatch(str(header[f"TFORM{i}"]).strip().upper())
        start = int(header[f"TBCOL{i}"]) - 1
        if form is None or start < 0 or start + int(form["width"]) > width:
            raise ValueError(f"TFORM{i} or TBCOL{i} does not fit its rows")
        name, unit = str(header.get(f"TTYPE{i}", f"col{i}")).strip(), header.get(f"TUNIT{i}")
        cells = np.array([line[start : start + int(form["width"])].strip() for line in lines], dtype=str)
        null = str(header.get(f"TNULL{i}", "")).strip()
        mask = (cells == "") | (cells == null)
        if form["letter"] == "A":
            columns.append(FitsColumn(name, cells, _where(mask), unit))
            continue
        values = np.full(rows, np.nan)
        for row in np.flatnonzero(~mask).tolist():
            number = as_number(cells[row].upper().replace("D", "E"))
            implied = form["letter"] != "I" and int(form["digits"] or 0) > 0 and "." not in cells[row]
            if number is None or implied:
                raise InputError(f"{path}: {name}, row {row + 1}: expected a number {form[0]}, got {cells[row]!r}")
            values[row] = number
        law = float(header.get(f"TSCAL{i}", 1)), float(header.get(f"TZERO{i}", 0))
        columns.append(FitsColumn(name, values * law[0] + law[1], _where(mask), unit))
    return columns
