"""One observation's failure is its own: what goes wrong becomes its note, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.errors import InputError
from pipeline.interrupt import Interrupted

T = TypeVar("T")
LONGEST = 200


def attempt(make: Callable[[], T]) -> tuple[T | None, str]:
    """What `make` returns and no words, or None and the reason in words."""
    try:
        return make(), ""
    except Interrupted:
        raise
    except Exception as error:  # whatever a likelihood, a sampler or a library raises belongs to this observation
        return None, reason_of(error)


def each(rows: Sequence[int], together: Callable[[Sequence[int]], Sequence[T]]) -> dict[int, tuple[T | None, str]]:
    """Results of many rows, made together; where that fails, of each half by itself, down to the row that is at fault."""
    if not rows:
        return {}
    found, reason = attempt(lambda: together(rows))
    if found is not None:
        return {n: (value, "") for n, value in zip(rows, found, strict=True)}
    if len(rows) == 1:
        return {rows[0]: (None, reason)}
    half = len(rows) // 2
    return each(rows[:half], together) | each(rows[half:], together)


def reason_of(error: Exception) -> str:
    """An error in one line, with its kind unless it is ours."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no message"
    text = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def joined(*notes: str) -> str:
    """Notes in one, without those that are empty."""
    return "; ".join(n for n in notes if n)
