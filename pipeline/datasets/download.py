"""Resumable downloads, checked by SHA-256 before a file gets its final name.

urllib and not pooch, which is otherwise what one would take: its HTTPDownloader starts every download from the first byte.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.datasets.cache import cache_folder
from pipeline.datasets.registry import RemoteFile, dataset
from pipeline.errors import InputError
from pipeline.progress import console, progress_bar

BLOCK = 1 << 16
TIMEOUT_S = 30.0
ATTEMPTS = 3
"""At one address, without a byte of progress between them."""
PAUSE_S = 1.0


class _Unreachable(Exception):
    """An address gives nothing: why, in a few words."""


@dataclass(frozen=True)
class _Answer:
    """What a server said: from which byte it sends, how many bytes the whole file has (None: it does not say)."""

    body: Any
    start: int
    size: int | None


def fetch(name: str, *, cache: Path | None = None, files: tuple[RemoteFile, ...] | None = None) -> tuple[Path, ...]:
    """Put the files of a dataset into the cache, and give their paths.

    A file that is there and has the right SHA-256 is left alone. A download that stops leaves `FILE.part`, from which
    the next one goes on.

    Args:
        name: of a registered dataset, or of the folder for `files`.
        cache: folder; default: `cache_folder()`.
        files: in place of the registered ones.

    Raises:
        InputError: no network, no such address, the wrong SHA-256, or a folder that cannot be written: one line.
    """
    folder = (cache or cache_folder()) / name
    done = []
    for file in files or dataset(name).files:
        target = folder / file.name
        if _is_complete(target, file.sha256):
            console.print(f"fetch: {target} is there")
        else:
            _fetch_file(file, target)
            console.print(f"fetch: {target} ({target.stat().st_size:,} bytes, SHA-256 as registered)")
        done.append(target)
    return tuple(done)


def _is_complete(target: Path, sha256: str) -> bool:
    if not target.is_file():
        return False
    if _sha256(target) == sha256:
        return True
    console.print(f"fetch: {target}: its SHA-256 is not {sha256}: fetched again")
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_file(file: RemoteFile, target: Path) -> None:
    """Through the first address that gives the file."""
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as stream:
            reasons = []
            for address in file.addresses:
                try:
                    _download(address, stream, file)
                except _Unreachable as reason:
                    reasons.append(f"{address}: {reason}")
                    continue
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(part, target)
                return
            kept = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise InputError(f"{target}: could not be written ({error.strerror or error})") from None
    if kept == 0:
        part.unlink()
    more = f"; {kept:,} bytes are kept, the same command goes on from there" if kept else ""
    raise InputError(f"fetch: {file.name} could not be had: {'; '.join(reasons)}{more}")


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The partial file, open for reading and writing, for this process alone."""
    with part.open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{part}: another process is fetching this file") from None
        except OSError:
            pass  # a file system without locks: the checksum still guards the result
        if not part.exists() or part.stat().st_ino != os.fstat(stream.fileno()).st_ino:
            raise InputError(f"{part}: another process has just fetched this file")
        yield stream


def _download(address: str, stream: BinaryIO, file: RemoteFile) -> None:
    """Complete the partial file from one address; empty where its content is wrong.

    Raises:
        _Unreachable: why it could not be.
    """
    resumed = os.fstat(stream.fileno()).st_size > 0
    _complete(address, stream, file.name)
    if _stream_sha256(stream) == file.sha256:
        return
    stream.truncate(0)
    if resumed:  # what was kept may have been another file's, or damaged
        _complete(address, stream, file.name)
        if _stream_sha256(stream) == file.sha256:
            return
        stream.truncate(0)
    raise _Unreachable(f"not the registered file: its SHA-256 is not {file.sha256}")


def _stream_sha256(stream: BinaryIO) -> str:
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def _complete(address: str, stream: BinaryIO, name: str) -> None:
    """Append what is missing, over as many connections as make progress."""
    failures = 0
    while True:
        before = os.fstat(stream.fileno()).st_size
        try:
            answer = _ask(address, before)
            if answer is None:
                return  # there is nothing beyond what we have
            with answer.body:
                _copy(answer, stream, name)
            have = os.fstat(stream.fileno()).st_size
            if answer.size is None or have >= answer.size:
                return
            reason = f"the connection ended after {have:,} of {answer.size:,} bytes"
        except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = f"the connection broke ({type(error).__name__}: {error})"
        failures = 0 if os.fstat(stream.fileno()).st_size > before else failures + 1
        if failures >= ATTEMPTS:
            raise _Unreachable(reason)
        time.sleep(PAUSE_S if failures else 0.0)


def _ask(address: str, have: int) -> _Answer | None:
    """Request the bytes from `have` on; None where the server has no more of them.

    Raises:
        _Unreachable: no network, or the server refuses.
    """
    headers = {"User-Agent": "elboscope", "Accept-Encoding": "identity"}  # offsets count the file's own bytes
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        body = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return None
            raise _Unreachable(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, (TimeoutError, ConnectionResetError)):
            raise error.reason from None
        raise _Unreachable(f"no network? ({getattr(error.reason, 'strerror', None) or error.reason})") from None
    length = body.headers.get("Content-Length")
    if body.status != http.HTTPStatus.PARTIAL_CONTENT:
        return _Answer(body, 0, int(length) if length else None)
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", body.headers.get("Content-Range", ""))
    if span is None or int(span[1]) > have:
        body.close()
        raise _Unreachable("the server answers a request for a range with another one")
    return _Answer(body, int(span[1]), int(span[2]) + 1)


def _copy(answer: _Answer, stream: BinaryIO, name: str) -> None:
    """Write the body at its place; every block is a point at which a signal may stop it, with the bytes kept."""
    stream.truncate(answer.start)
    total = answer.size or 0
    with progress_bar(f"fetch {name}", total, completed=answer.start) as advance:
        while block := _read(answer.body):
            stream.write(block)
            stream.flush()
            advance(len(block))


def _read(body: Any) -> bytes:
    """The next block; what goes wrong is the connection's fault, and not the disk's."""
    try:
        return body.read(BLOCK)
    except OSError as error:
        raise ConnectionError(str(error)) from error
