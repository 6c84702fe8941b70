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
    """What `fetch:NAME` stands for: the file, or the folder where the dataset has several; `fetch:NAME/FILE` is one of them.

    It need not be there yet.

    Raises:
        InputError: no such dataset or file.
    """
    name, _, file = reference.removeprefix(PREFIX).partition("/")
    names = [f.name for f in dataset(name).files]
    if file and file not in names:
        raise InputError(f"{reference}: no such file; the dataset has {', '.join(names)}")
    folder = cache_folder() / name
    return folder / file if file else folder / names[0] if len(names) == 1 else folder


def fetched_or_path(text: str) -> Path:
    """What stands on a command line in place of a file: `fetch:NAME`, or a path."""
    return resolve_fetched(text) if text.startswith(PREFIX) else Path(text)


def fetch_hint(path: Path) -> str:
    """What to run where `path` is a dataset, or a file of one, that has not been fetched; else nothing."""
    cache = cache_folder()
    if not path.is_relative_to(cache) or path == cache:
        return ""
    name = path.relative_to(cache).parts[0]
    if name not in DATASETS:
        return ""
    wanted = [path] if path != cache / name else [path / file.name for file in DATASETS[name].files]
    return "" if all(p.is_file() for p in wanted) else f"; run `elboscope fetch {name}` where there is a network"
