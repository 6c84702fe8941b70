"""Where fetched datasets lie, and what `fetch:NAME` stands for in a config."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.datasets.registry import DATASETS, dataset
from pipeline.errors import InputError

PREFIX = "fetch:"


def cache_folder() -> Path:
    """$ELBOSCOPE_CACHE, else elboscope in $XDG_CACHE_HOME, else in ~/.cache."""
    given = os.environ.get("ELBOSCOPE_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elboscope"


def resolve_fetched(reference: str) -> Path:
    """The file that `fetch:NAME`, or `fetch:NAME/FILE` where the dataset has several, stands for; it may not be there yet.

    Raises:
        InputError: no such dataset or file, or several files and none named.
    """
    name, _, file = reference.removeprefix(PREFIX).partition("/")
    names = [f.name for f in dataset(name).files]
    if not file and len(names) > 1:
        raise InputError(
            f"{reference}: the dataset has {len(names)} files; write {' or '.join(f'{PREFIX}{name}/{n}' for n in names)}"
        )
    if file and file not in names:
        raise InputError(f"{reference}: no such file; the dataset has {', '.join(names)}")
    return cache_folder() / name / (file or names[0])


def fetch_hint(path: Path) -> str:
    """What to run where `path` is a dataset's file that has not been fetched; else nothing."""
    name = path.parent.name
    ours = name in DATASETS and path == cache_folder() / name / path.name
    return f"; run `elboscope fetch {name}` where there is a network" if ours and not path.is_file() else ""
