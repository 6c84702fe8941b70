"""Why a simulation has no data: a code that is stored for every row, and words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class FailureCode(IntEnum):
    """Stored as `/failed`; 0 is a simulation that succeeded."""

    NOT_FINITE = 1
    EXIT_CODE = 2
    TIME_LIMIT = 3
    OUTPUT = 4
    EXCEPTION = 5

    @property
    def words(self) -> str:
        """The code in words."""
        return {1: "NaN or infinite", 2: "exit code", 3: "time limit", 4: "output not readable", 5: "exception"}[self]


@dataclass(frozen=True)
class Failure:
    """Why one simulation failed.

    Attributes:
        code: the kind.
        reason: in words, such as an exit code and the end of stderr.
    """

    code: FailureCode
    reason: str


class SimulationError(Exception):
    """Raised by the function of one draw: this simulation failed, and why."""

    def __init__(self, code: FailureCode, reason: str) -> None:
        super().__init__(reason)
        self.failure = Failure(code, reason)
