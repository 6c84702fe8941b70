"""SHA-256 of the files of a run, as `sha256sum --check` reads them in the run folder, and whether they still hold."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.store.complete import write_text
from pipeline.store.keys import file_sha256
from simulators.reading.boundary import reading

FOLDER = "settings"
OWN = "# sha256 of the lines above: "
"""The last line, a comment to sha256sum: without it a flipped bit in a name would take a file out of the list."""
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
OURS = re.compile(r"(simulate|likelihood|train|infer|validate|compare|report|workflow)(\.round-\d+)?\.sha256")
"""Names of such files: a folder above may be somebody else's, and have a folder `settings` too."""
LEVELS = 3
"""Folders above a file in which the run may begin: rounds/1/posterior.safetensors."""
MOST_HASHED = 4_000_000_000
"""Bytes of an HDF5 file that a stage hashes before it reads it: 4 s at 0.9 GB/s."""

_held: dict[tuple[Path, str], tuple[int, int, int]] = {}
"""Files found as recorded by this process, with size, time and inode: several reads of one stage hash once."""


def record_sums(run: Path, name: str, files: Iterable[Path]) -> None:
    """Write settings/<name>.sha256 over files in the run folder."""
    lines = "".join(f"{file_sha256(p)}  {p.relative_to(run).as_posix()}\n" for p in files)
    write_text(run / FOLDER / f"{name}.sha256", f"{lines}{OWN}{hashlib.sha256(lines.encode()).hexdigest()}\n")


def read_sums(path: Path) -> dict[str, str]:
    """Digests by name, from a file of `record_sums`, or of version 0.1: one line without the last.

    Raises:
        InputError: empty, cut short or changed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    *lines, last = text.splitlines(keepends=True) or [""]
    if not last.startswith(OWN):
        lines, last = [*lines, last], ""
    matches = [LINE.fullmatch(line.removesuffix("\n")) for line in lines]
    whole = len(lines) == 1 if not last else last == f"{OWN}{hashlib.sha256(''.join(lines).encode()).hexdigest()}\n"
    found = {m[2]: m[1] for m in matches if m is not None}
    if not whole or len(found) != len(lines):
        raise InputError(
            f"{path}: damaged: expected lines of a SHA-256 and a name, as they were written; remove it, or run "
            "`elboscope verify RUN --repair`"
        )
    return found


def sums_of(run: Path) -> list[Path]:
    """The files of sums in a run folder."""
    return sorted(p for p in (run / FOLDER).glob("*.sha256") if OURS.fullmatch(p.name) and p.is_file())


def recorded_in(path: Path) -> Iterator[tuple[Path, str]]:
    """Each file of sums that lists `path`, and the digest in it.

    Raises:
        InputError: a file of sums that is damaged.
    """
    for run in list(path.absolute().parents)[:LEVELS]:
        name = path.absolute().relative_to(run).as_posix()
        for sums in sums_of(run):
            digest = read_sums(sums).get(name)
            if digest is not None:
                yield sums, digest


def check_zip(path: Path) -> None:
    """Read every entry of a ZIP file, a checkpoint of torch's, and compare its CRC-32.

    Raises:
        InputError: not a ZIP file, or one that is damaged.
    """
    with reading(path), zipfile.ZipFile(path) as file:
        name = file.testzip()
    if name is not None:
        raise InputError(f"{path}: damaged: the checksum of {name} failed; remove it, and the phase begins anew")


def check_sum(path: Path) -> None:
    """Raise where a run has recorded another SHA-256 of `path` than it has; what no run has recorded passes.

    HDF5 files above 4 GB pass too: their chunks and metadata have checksums of their own, which HDF5 compares as they are
    read; `verify` hashes them all the same.

    Raises:
        InputError: damaged, or changed since it was written.
    """
    for sums, digest in recorded_in(path):
        now = path.stat()
        if path.suffix == ".h5" and now.st_size > MOST_HASHED:
            continue
        state = (now.st_size, now.st_mtime_ns, now.st_ino)
        if _held.get((path.absolute(), digest)) == state:
            continue
        if file_sha256(path) != digest:
            raise InputError(
                f"{path}: damaged, or changed since it was written: its SHA-256 is not that in {sums}; run "
                "`elboscope verify RUN --repair`, then the stage that makes it"
            )
        _held[path.absolute(), digest] = state
