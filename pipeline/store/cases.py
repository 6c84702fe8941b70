"""The case that a file of results carries: settings are read from it, code is never run because of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import case_from_values, override_values
from pipeline.errors import InputError
from pipeline.schema import SETTINGS
from pipeline.settings import CaseSettings
from pipeline.store.keys import json_object


def stored_case(text: str | None, path: Path, overrides: Sequence[str] = ()) -> CaseSettings:
    """The settings in the text that `path` carries, with what the command line says on top.

    Args:
        text: JSON, from the attribute or the header; None where it has none.
        path: of the file.
        overrides: `key=value` of the command line.

    Raises:
        InputError: no settings, or not those of a case.
    """
    if text is None:
        raise InputError(f"{path}: not a file that Elboscope has made: it has no {SETTINGS!r}")
    return case_from_values(override_values(json_object(text, f"{path}: {SETTINGS}"), overrides), str(path))


def refuse_own_code(case: CaseSettings, path: Path, overrides: Sequence[str] = (), *, how: str = "--config") -> None:
    """Raise where a file, and not the command line, names a Python file as the simulator.

    Args:
        case: as `path` carries it.
        overrides: of the command line, which may name the file themselves.
        how: a config can be given.

    Raises:
        InputError: says how to name it.
    """
    said = any(o.partition("=")[0].strip() in ("simulator", "simulator.path") for o in overrides)
    if case.simulator.path is not None and not said:
        raise InputError(
            f"{path}: its simulator is the file {case.simulator.path}; give a config that names it ({how})"
        )
