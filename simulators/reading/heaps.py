"""The heaps in which HDF5 keeps text of variable length: they have no checksum, and damaged ones make HDF5 2.0 loop for ever."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from simulators.errors import InputError

SIGNATURE = b"GCOL\x01\x00\x00\x00"
"""Of a global heap collection, version 1 (HDF5 File Format Specification, III.E)."""
HEADER, OBJECT = 16, 16
MOST_SCANNED = 64_000_000
"""Bytes of a file that is looked through; larger ones are simulations, which have no such text, or have a SHA-256."""

_sound: set[tuple[Path, int, int, int]] = set()


def check_heaps(path: Path) -> None:
    """Walk through the objects of every heap as HDF5 will.

    Raises:
        InputError: one of them has no end within its heap.
    """
    now = path.stat()
    state = (path.absolute(), now.st_size, now.st_mtime_ns, now.st_ino)
    if not 0 < now.st_size <= MOST_SCANNED or state in _sound:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(SIGNATURE)
        while start >= 0:
            size = struct.unpack_from("<Q", data, start + 8)[0] if start + HEADER <= len(data) else 0
            if not HEADER <= size <= len(data) - start or not _ends(data, start + HEADER, start + size):
                raise InputError(f"{path}: damaged, or truncated: the text at byte {start} has no end")
            start = data.find(SIGNATURE, start + 1)
    _sound.add(state)


def _ends(data: mmap.mmap, at: int, stop: int) -> bool:
    """Whether objects of index, count and size follow each other up to `stop`; index 0 is what is free."""
    while at + OBJECT <= stop:
        index, _, size = struct.unpack_from("<HH4xQ", data, at)
        step = size if index == 0 else OBJECT + -(-size // 8) * 8
        if step < OBJECT or at + step > stop:
            return False
        at += step
    return True
