"""A file object for HDF5 to write to, which never fails under its hands."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


class DeferredErrors(io.RawIOBase):
    """A file whose failed writes are remembered in `error` and otherwise pass for done.

    HDF5 kills the process (segmentation fault, h5py 3.16) where a write fails while it closes a file. It never learns
    of one here; whoever opened the file raises `error` after closing it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while self.error is None and written < len(view):
            try:
                written += self._file.write(view[written:]) or 0
            except OSError as error:
                self.error = error
        return len(view)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer) or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def close(self) -> None:
        self._file.close()
        super().close()
