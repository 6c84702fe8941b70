"""The one exception that means "your input": a config, a file, or a simulator that breaks its contract."""

from __future__ import annotations


class InputError(ValueError):
    """Bad configuration, file, simulator or argument. Commands print it as one line and end with exit code 2."""
