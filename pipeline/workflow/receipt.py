"""A receipt of a finished run: no file that it reads or made has been touched since. Read without importing torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import simulators
from pipeline.settings import CaseSettings

WHERE = "workflow/receipt.json"
CODE = (Path(__file__).parents[1], Path(simulators.__file__).parent)


def is_finished(case: CaseSettings, folder: Path) -> bool:
    """Whether the last run of this case in this folder was complete, and nothing has been touched since.

    Size and time of every file are compared, not its content: false where in doubt, and the stages then look at their
    content keys.
    """
    try:
        return json.loads((folder / WHERE).read_text(encoding="utf-8")) == _receipt(case, folder)
    except (OSError, ValueError):
        return False


def write_receipt(case: CaseSettings, folder: Path) -> None:
    """Note that all stages are up to date."""
    path = folder / WHERE
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_receipt(case, folder)), encoding="utf-8")
    temporary.replace(path)


def _receipt(case: CaseSettings, folder: Path) -> dict[str, str]:
    """Digest of the settings, and of sizes and times of the program, the inputs and the outputs."""
    settings = case.dump()
    code = [path for package in CODE for path in package.rglob("*.py")]
    inputs = [Path(text) for text in _texts(settings) if "/" in text or "." in text]
    outputs = [*folder.glob("*"), *(folder / "simulations").rglob("*")]
    return {
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "code": _stamp(code),
        "inputs": _stamp(inputs),
        "outputs": _stamp(outputs),
    }


def _stamp(paths: list[Path]) -> str:
    """Digest of names, sizes and times of those that are files."""
    rows: list[tuple[str, int, int]] = []
    for path in sorted(paths):
        try:
            if path.is_file():
                rows.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
        except (OSError, ValueError):  # no path at all, but some other text with a dot in it
            continue
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
