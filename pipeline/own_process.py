"""A process of this program: what it imports comes from where this process imports it, never from the current folder."""

from __future__ import annotations

import os
import sys


def own_command(module: str) -> list[str]:
    """The command that runs a module of ours; -P keeps Python from putting the current folder first among its sources."""
    return [sys.executable, "-P", "-m", module]


def own_sources() -> dict[str, str]:
    """PYTHONPATH for it: the same places in the same order, so that a source tree that is not installed works too."""
    return {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
