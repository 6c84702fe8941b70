"""Watch a process that reads hostile files: what it opens, starts, imports from among them, or writes elsewhere."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import sysconfig
from pathlib import Path
from typing import Any

STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
    "os.spawn",
)
SPEAKS = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "ftplib.connect")
IN_OPEN = 0x20


class Guard:
    """An audit hook of this process; it cannot be taken off, and is silent until `folder` is set.

    Attributes:
        folder: of the inputs, the only one in which files may be read and written.
        seen: what was done that must not be, in words.
    """

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        places = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), str(Path(__file__).parents[2])]
        self.own = tuple(
            {os.path.realpath(p) + os.sep for p in places} | {"/usr/", "/lib", "/proc/self/", "/dev/null", "/sys/"}
        )
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in STARTS or event in SPEAKS:
            self.seen.append(f"{event} {str(arguments)[:200]}")
        elif event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            if name.startswith(self.folder):
                self.seen.append(f"ran {name}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            own = not writes and path.startswith(self.own)
            if not own and not path.startswith(self.folder) and path != "/dev/null":
                self.seen.append(f"opened {path}")


class Watch:
    """Files that nobody may open, seen by the kernel: C libraries do not pass Python's audit hook."""

    def __init__(self, *paths: Path) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self.libc.inotify_init1(os.O_NONBLOCK)
        self.paths = {self.libc.inotify_add_watch(self.descriptor, os.fsencode(p), IN_OPEN): p for p in paths}

    def opened(self) -> list[Path]:
        """Those that were opened since the last question."""
        found = []
        while True:
            try:
                data = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                return found
            while data:
                watch, _, _, length = struct.unpack("iIII", data[:16])
                found.append(self.paths[watch])
                data = data[16 + length :]
