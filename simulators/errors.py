"""The one exception that means "your input", as against a fault of the program."""

from __future__ import annotations

LONGEST = 480
"""Characters of a message, so that a line of a terminal or a log with the program's name in front stays under 500."""


class InputError(ValueError):
    """Bad configuration, file, simulator or argument: one line. Commands print it and end with exit code 2.

    A message that quotes too much of a file loses its middle: the start names the file, the end what to change.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(str(message).split("\n"))
        if len(line) > LONGEST:
            half = (LONGEST - 5) // 2
            line = f"{line[:half]} ... {line[-half:]}"
        super().__init__(line)
