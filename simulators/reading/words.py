"""Numbers in text: what everybody reads as the same number, and nothing that only Python does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulators.errors import InputError
from simulators.reading.bounds import need_words, read_text

NUMBER = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|NaN|NAN|inf|Inf|INF|infinity|Infinity)"
)
"""Python's float also reads 1_5 as 15, and digits of other scripts."""
COMMENTS = ("#", "%")
"""What a line of text that is no data begins with."""
PADDED = re.compile(r"[+-]?0[0-9]+")
"""007: a number to some, an identifier to others."""


def as_number(word: str) -> float | None:
    """The number that `word` is; None where it is none.

    >>> as_number(" 1.5e3 "), as_number("1_5"), as_number("1,5"), as_number("0x10"), as_number("1e")
    (1500.0, None, None, None, None)
    """
    return float(word) if NUMBER.fullmatch(word.strip()) else None


def as_numbers(words: Sequence[str] | NDArray[np.str_]) -> tuple[NDArray[np.float64], int | None]:
    """Numbers of words, NaN where a word is empty; and the place of the first that is no number, if any.

    >>> as_numbers(["1", "", "x"])
    (array([ 1., nan, nan]), 2)
    """
    values = np.full(len(words), np.nan)
    wrong: int | None = None
    for place, word in enumerate(words):
        stripped = word.strip()
        if NUMBER.fullmatch(stripped):
            values[place] = float(stripped)
        elif stripped and wrong is None:
            wrong = place
    return values, wrong


def as_values(words: NDArray[np.str_]) -> NDArray:
    """The numbers of a column where all of its words are such; the words where one is not, or is padded with zeros.

    Whole numbers stay whole as far as int64 holds them.

    >>> as_values(np.array(["007", "07"])).tolist(), as_values(np.array(["7", "8"])).tolist()
    (['007', '07'], [7, 8])
    """
    filled = [word for word in words.tolist() if word]
    if not filled or not all(map(NUMBER.fullmatch, filled)) or any(map(PADDED.fullmatch, filled)):
        return words
    if len(filled) == len(words) and all(word.lstrip("+-").isdigit() and len(word) < 19 for word in filled):
        return np.array([int(word) for word in filled], dtype=np.int64)
    return as_numbers(words)[0]


def number_rows(path: Path) -> list[list[float]]:
    """The numbers of each line of a text file that is no comment.

    Raises:
        InputError: a word that is no number.
    """
    text = read_text(path)
    need_words(path, text)
    rows: list[list[float]] = []
    for place, line in enumerate(text.split("\n"), start=1):
        words = [] if line.lstrip().startswith(COMMENTS) else line.split("#")[0].split()
        numbers = [as_number(word) for word in words]
        if None in numbers:
            wrong = words[numbers.index(None)]
            raise InputError(f"{path}: not rows of numbers (line {place}: {wrong[:80]!r} is no number)")
        if words:
            rows.append([number for number in numbers if number is not None])
    return rows
