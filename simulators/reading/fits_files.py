"""FITS files: all tables and images, checksums compared, nothing scaled before what is missing is known."""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulators.errors import InputError
from simulators.reading.bounds import NUMBER_BYTES, need_room, read_bytes, reading
from simulators.reading.fits_columns import FitsColumn, ascii_columns, binary_columns, scaled

PIXELS = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
BLOCK, HDU_BYTES = 2880, 100_000
"""Of a file; and what astropy takes for a header."""
ALL_ONES = 0xFFFFFFFF
CARDS = ("COMMENT", "HISTORY", "")


@dataclass(frozen=True)
class FitsImage:
    """One image: values as BSCALE and BZERO have it, mask where the stored number is BLANK, unit as BUNIT has it."""

    name: str
    values: NDArray[Any]
    mask: NDArray[np.bool_] | None
    unit: str | None


@dataclass(frozen=True)
class FitsTable:
    """One table."""

    name: str
    columns: tuple[FitsColumn, ...]


@dataclass(frozen=True)
class FitsFile:
    """Tables and images by EXTNAME, or number; `SCI,2` where several have that EXTNAME.

    Attributes:
        cards: of the primary header, and of others on which all that have them agree.
    """

    tables: tuple[FitsTable, ...]
    images: tuple[FitsImage, ...]
    cards: dict[str, Any]


def read_fits(path: Path) -> FitsFile:
    """Everything in a FITS file, unpacked where it is compressed.

    Raises:
        InputError: damaged, a checksum that does not fit, or more numbers than the file's size allows.
    """
    from astropy.io import fits

    data = read_bytes(path)
    blocks = np.frombuffer(data, np.uint8, len(data) // BLOCK * BLOCK).reshape(-1, BLOCK)
    count = int((blocks[:, :9] == np.frombuffer(b"XTENSION=", np.uint8)).all(axis=1).sum())
    need_room(path, count * HDU_BYTES, what=f"its {count} extensions")
    tables: list[FitsTable] = []
    images: list[FitsImage] = []
    with warnings.catch_warnings(), reading(path, "a FITS file that astropy reads"):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="(?s).*(truncated|validating header)")  # else the rest is lost
        with fits.open(io.BytesIO(data), memmap=False, disable_image_compression=True) as hdus:
            names = _names(hdus)
            headers: list[Any] = [hdu.header for hdu in hdus]  # pyright: ignore[reportAttributeAccessIssue]
            cards = _cards(headers)
            for number, (hdu, name) in enumerate(zip(hdus, names, strict=True)):
                place = hdu.fileinfo()
                _check_sums(path, name, hdu.header, data, place)
                body = data[place["datLoc"] : place["datLoc"] + place["datSpan"]]
                header: Any = hdu.header
                if header.get("ZTABLE"):
                    raise InputError(f"{path}: {name} is a compressed table: unpack it with funpack or fpack -D")
                if header.get("GROUPS") is True and header.get("NAXIS1") == 0:
                    raise InputError(f"{path}: {name} has random groups, which are not read: convert it to a table")
                if header.get("ZIMAGE"):
                    images.append(_compressed(path, name, header, data, number))
                elif isinstance(hdu, fits.BinTableHDU):
                    tables.append(FitsTable(name, tuple(binary_columns(path, header, body))))
                elif isinstance(hdu, fits.TableHDU):
                    tables.append(FitsTable(name, tuple(ascii_columns(path, header, body))))
                elif header.get("NAXIS", 0) and header.get("BITPIX") in PIXELS:
                    shape = _image_shape(path, name, header, "NAXIS")
                    raw = np.frombuffer(body, PIXELS[header["BITPIX"]], math.prod(shape)).reshape(shape)
                    images.append(_image(name, raw, header))
    return FitsFile(tuple(tables), tuple(images), cards)


def _names(hdus: Any) -> list[str]:
    """EXTNAME or number of each; with EXTVER where several have the same."""
    names = [hdu.name or str(i) for i, hdu in enumerate(hdus)]
    counts = Counter(names)
    return [n if counts[n] == 1 else f"{n},{hdu.ver}" for n, hdu in zip(names, hdus, strict=True)]


def _cards(headers: list[Any]) -> dict[str, Any]:
    agreed = {key: value for key, value in headers[0].items() if key not in CARDS} if headers else {}
    others: dict[str, set[Any]] = {}
    for header in headers[1:]:
        for key, value in header.items():
            if key not in CARDS:
                others.setdefault(key, set()).add(value)
    return {key: next(iter(values)) for key, values in others.items() if len(values) == 1} | agreed


def _check_sums(path: Path, name: str, header: Any, data: bytes, place: dict[str, int]) -> None:
    """DATASUM is the sum of the data; with CHECKSUM that of header and data is all ones, or 0.

    Reference: FITS Standard 4.0, appendix J
    """
    start, stop = place["datLoc"], place["datLoc"] + place["datSpan"]
    given = str(header.get("DATASUM", "")).strip()
    if given and _sum(data[start:stop]) != int(given):
        raise InputError(f"{path}: {name} is damaged: its data do not have the sum that DATASUM says; get it again")
    if str(header.get("CHECKSUM", "")).strip() and _sum(data[place["hdrLoc"] : stop]) not in (0, ALL_ONES):
        raise InputError(f"{path}: {name} is damaged: header and data do not fit CHECKSUM; get the file again")


def _sum(data: bytes) -> int:
    """Sum of 32-bit words with carries added at the other end."""
    total = int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & ALL_ONES) + (total >> 32)
    return total


def _image_shape(path: Path, name: str, header: Any, key: str) -> tuple[int, ...]:
    shape = tuple(int(header[f"{key}{i}"]) for i in range(int(header[key]), 0, -1))
    need_room(path, math.prod(shape) * NUMBER_BYTES, what=f"{name} {shape}")
    return shape


def _image(name: str, raw: NDArray[Any], header: Any) -> FitsImage:
    blank = header.get("BLANK", header.get("ZBLANK"))
    values, mask = scaled(raw, header.get("BSCALE", 1), header.get("BZERO", 0), blank)
    return FitsImage(name, values, mask if mask is not None and mask.any() else None, header.get("BUNIT"))


def _compressed(path: Path, name: str, header: Any, data: bytes, number: int) -> FitsImage:
    """A tile-compressed image, its numbers as they were stored before they were compressed."""
    from astropy.io import fits

    _image_shape(path, name, header, "ZNAXIS")
    tile = math.prod(int(header.get(f"ZTILE{i}", 1)) for i in range(1, int(header["ZNAXIS"]) + 1))
    need_room(path, tile * NUMBER_BYTES, what=f"a tile of {name}")
    with fits.open(io.BytesIO(data), memmap=False, do_not_scale_image_data=True) as hdus:
        hdu: Any = hdus[number]
        return _image(name, np.asarray(hdu.data), hdu.header)
