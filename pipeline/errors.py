"""The one exception that means "your input", and what is said of other faults: see `simulators.errors`."""

from __future__ import annotations

from simulators.errors import LONGEST, InputError, one_line, simulator_fault

__all__ = ["LONGEST", "InputError", "one_line", "simulator_fault"]
