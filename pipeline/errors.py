"""The one exception that means "your input", as against a fault of the program, and faults of a user's own code."""

from __future__ import annotations

import traceback

from simulators.errors import InputError

__all__ = ["InputError", "simulator_fault"]


def simulator_fault(error: Exception) -> str | None:
    """One line for an error that a user's own simulator raised, or that the contract of simulators did; else None."""
    problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    frames = traceback.extract_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame, module in zip(reversed(frames), reversed(modules), strict=True):
        if module.startswith("elboscope_user_simulator_"):
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}: {problem}"
    return str(error) if modules[-1:] in (["simulators.protocol"], ["simulators.declarations"]) else None
