"""How much a file may unpack to, checked before anything is allocated; its bytes and its text; the last line of defence."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from simulators.errors import InputError

MOST = "ELBOSCOPE_MOST_GB"
"""Environment variable: gigabytes (1e9 bytes) that a file may take in memory, whatever its size on disk."""
TRUSTED = f"if you trust the file, set {MOST} to the gigabytes that it may take"
EXPANSION = 50
"""Bytes in memory for each on disk without that variable. Compressed images and catalogues take 2 to 20, sparse maps 40."""
ALWAYS = 64_000_000
"""Bytes that the smallest file may take."""
NUMBER_BYTES = 8
"""Of each element, at the least: whatever its type in the file, ingest holds it as float64."""
WORD_BYTES = 64
"""Of each word of text: Python holds it as an object of its own."""
ROW_BYTES = 256
"""Of an observation, for its identifier and its places in tables."""

GZIP, BZIP2, XZ = b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00"
XZ_MEMORY = 128_000_000
"""Bytes that an xz file's dictionary may ask for; `xz -9` asks for 65 MB."""


def most_bytes(size: float) -> float:
    """Bytes in memory that files of `size` bytes on disk may take.

    Raises:
        InputError: the environment variable is no positive number.
    """
    given = os.environ.get(MOST, "").strip()
    if not given:
        return max(ALWAYS, EXPANSION * size)
    try:
        most = float(given) * 1e9
    except ValueError:
        most = 0.0
    if not most > 0:
        raise InputError(f"{MOST}: expected gigabytes, such as 8, got {given!r}")
    return most


def need_room(path: Path, declared: float, size: float | None = None, *, what: str = "it") -> None:
    """Raise InputError where `what` takes more bytes in memory than a file of its size may.

    Args:
        declared: bytes, as the file's own headers say.
        size: bytes on disk; default: of the file.
    """
    size = path.stat().st_size if size is None else size
    most = most_bytes(size)
    if declared > most:
        raise InputError(
            f"{path}: {what} would take {_amount(declared)} in memory, over the bound of {_amount(most)} for "
            f"{_amount(size)} on disk; {TRUSTED}"
        )


def _amount(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Whatever a library raises while it reads a file, as one line: `PATH: not EXPECTED (reason)`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # astropy, expat, zlib and NumPy raise some twenty kinds on damaged files
        raise InputError(f"{path}: not {expected} ({reason(error)})") from None


def reason(error: BaseException) -> str:
    """The first line of an error, in at most 200 characters."""
    if isinstance(error, MemoryError):
        return "more memory needed than there is"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removeprefix("ERROR: ").rstrip(" :.")[:200] if lines else type(error).__name__


def need_regular(path: Path) -> None:
    """Raise InputError unless `path` is a file that ends: a pipe or a device may not."""
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        said = "no such file" if missing else str(getattr(error, "strerror", None) or error).lower()
        raise InputError(f"{path}: {said}") from None
    if not stat.S_ISREG(kind):
        raise InputError(
            f"{path}: {'is a directory' if stat.S_ISDIR(kind) else 'not a regular file: write it to disk'}"
        )


def read_bytes(path: Path) -> bytes:
    """All bytes of a file; unpacked where it is gzip, bzip2 or xz, whatever its suffix says.

    Raises:
        InputError: no such file, damaged, or it unpacks to more than its size allows.
    """
    need_regular(path)
    size = path.stat().st_size
    need_room(path, size, size)
    try:
        data = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or reason(error)})") from None
    if not data.startswith((GZIP, XZ)) and not (data.startswith(BZIP2) and data[4:10] == b"1AY&SY"):
        return data
    most = int(most_bytes(size))
    with reading(path, "a whole compressed file"):
        if data.startswith(XZ):
            stream = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            unpacked = stream.decompress(data, max_length=most + 1)
            if len(unpacked) <= most and not stream.eof:
                raise EOFError("it ends too early")
        else:
            with (gzip if data.startswith(GZIP) else bz2).open(path) as file:
                unpacked = file.read(most + 1)
    if len(unpacked) > most:
        raise InputError(
            f"{path}: unpacks to more than the bound of {_amount(most)} for {_amount(size)} on disk; {TRUSTED}"
        )
    return unpacked


def read_text(path: Path) -> str:
    r"""The text of a file, unpacked where it is compressed, lines ended by \n, without the mark of spreadsheets.

    Raises:
        InputError: as `read_bytes`, or not UTF-8.
    """
    return as_text(path, read_bytes(path))


def as_text(path: Path, data: bytes) -> str:
    """Bytes of a file as text, see `read_text`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def need_words(path: Path, text: str) -> None:
    """Raise InputError where a text has more words than a file of its size may: a gigabyte of `1,1,1` packs into one MB."""
    codes = np.frombuffer(text.encode("utf-8"), np.uint8)
    blank = codes <= ord(" ")
    separators = np.count_nonzero((codes == ord(",")) | (codes == ord(";")))
    words = 1 + int(np.count_nonzero(~blank[1:] & blank[:-1]) + separators)
    need_room(path, words * WORD_BYTES, what=f"its {words} words")
