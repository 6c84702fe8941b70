"""The boundary to files: whatever a library raises while a named file is read becomes one line that names the file."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simulators.errors import InputError, one_line, simulator_fault

FROM_CONTENT = (
    LookupError,  # h5py and JSON: a name that is not there
    ValueError,  # numbers, JSON, Unicode, YAML's dates; NumPy: shapes that do not fit
    TypeError,  # another dtype than expected
    AttributeError,  # a number where text was, a dataset where a group was
    ArithmeticError,
    EOFError,
    RecursionError,
    MemoryError,
)
"""What Python code raises upon content that is not as expected; NameError, ImportError and the like are always faults of ours."""
READERS = ("h5py", "safetensors", "yaml", "json", "zipfile", "gzip", "zlib", "tomllib", "astropy", "numpy")
"""Packages whose every exception, such as h5py's RuntimeError, is about the file."""
SHOWN = 160


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors about the content of `path` that are raised inside become an InputError; its cause keeps the traceback.

    Raises:
        InputError: one line: the file, what was raised, and the place in the program that met it.
    """
    try:
        yield
    except Exception as error:
        raise_about(path, error)
        raise


def raise_about(path: Path, error: BaseException) -> None:
    """Raise InputError from an error that is about the content of `path`; return where it is about anything else.

    Raises:
        InputError: see `reading`.
    """
    if isinstance(error, InputError) or not isinstance(error, Exception):
        return
    if isinstance(error, ValueError) and str(error).startswith(f"{path}: "):  # a simulator's reader has said it
        raise InputError(str(error)) from error
    about_a_file = isinstance(error, OSError) and error.filename is not None  # says itself which
    if about_a_file or not (isinstance(error, (OSError, *FROM_CONTENT)) or _raised_by(error) in READERS):
        return
    if simulator_fault(error) is not None:  # the user's own code, or the contract of simulators: said better there
        return
    detail = one_line(str(error))[:SHOWN]
    if isinstance(error, OSError):
        raise InputError(f"{path}: damaged: a checksum or a read failed ({detail})") from error
    problem = f"{type(error).__name__}{': ' if detail else ''}{detail}"
    raise InputError(f"{path}: damaged, or not written as expected ({problem}; met at {_place(error)})") from error


def _raised_by(error: BaseException) -> str:
    """Top package of the frame that raised, or of the class itself: extension modules have no frame."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    package = frames[-1].partition(".")[0] if frames else ""
    return package if package in READERS else type(error).__module__.partition(".")[0].removesuffix("_rust")


def _place(error: BaseException) -> str:
    """File and line of our own that met the error."""
    frames = [(f.f_globals.get("__name__", ""), line) for f, line in traceback.walk_tb(error.__traceback__)]
    ours = [(name, line) for name, line in frames if name.partition(".")[0] in ("pipeline", "simulators")]
    outer = [(name, line) for name, line in ours if name != __name__]
    name, line = (outer or frames)[-1]
    return f"{name}, line {line}"
