"""A process of this program: what it imports comes from where this process imports it, never from the current folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def own_command(module: str) -> list[str]:
    """The command that runs a module of ours; -P keeps Python from putting the current folder first among its sources."""
    return [sys.executable, "-P", "-m", module]


def own_sources() -> dict[str, str]:
    """PYTHONPATH for it: this source tree, which may not be installed, then what the caller has set.

    Not all of `sys.path`: a workflow engine puts its folder there, whose `profile.py` then hides Python's own.
    """
    root = str(Path(__file__).resolve().parents[1])
    return {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
