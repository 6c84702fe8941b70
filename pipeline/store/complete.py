"""Files that are complete or absent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import InputError


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success flush it to disk and give it the final name.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # two hosts may share a pid
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: could not be written ({error.strerror or error}); nothing was changed") from error
    finally:
        with suppress(OSError):  # gone already, or its folder could not be made: the error above says so
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or absent."""
    with complete_or_absent(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
