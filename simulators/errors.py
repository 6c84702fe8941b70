"""The one exception that means "your input", as against a fault of the program, and faults of a user's own code."""

from __future__ import annotations

import re
import traceback

LONGEST, KEPT_END = 480, 140
"""Characters of a message, so that a line of a terminal or a log with the program's name in front stays under 500.

The start names the file and the end what to change: the middle is left out, and this many characters of the end stay.
"""


class InputError(ValueError):
    """Bad configuration, file, simulator or argument: `one_line`. Commands print it and end with exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    r"""Text as one line of at most 480 characters, without control characters (a terminal would obey them).

    >>> one_line("a\nb\x1b[31m")
    'a b [31m'
    """
    line = re.sub(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]+", " ", text).strip()
    if len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST - KEPT_END - 5]} ... {line[-KEPT_END:]}"


def simulator_fault(error: Exception) -> str | None:
    """One line for an error that a user's own simulator raised, or that the contract of simulators did; else None."""
    problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    frames = traceback.extract_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame, module in zip(reversed(frames), reversed(modules), strict=True):
        if module.startswith("elboscope_user_simulator_"):
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}: {problem}"
    return str(error) if modules[-1:] in (["simulators.protocol"], ["simulators.declarations"]) else None
