"""The one exception that means "your input": a config, a file, a simulator off its contract."""

from __future__ import annotations


class InputError(ValueError):
    """Bad configuration, file, simulator or argument: one line on the terminal, and exit code 2."""
