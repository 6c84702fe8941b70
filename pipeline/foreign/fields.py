"""What a foreign file holds: named arrays, with the units that it declares and the entries that it marks as missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

LISTED = 12
"""Names in an error."""


@dataclass(frozen=True)
class Field:
    """One named array of a file.

    Attributes:
        name: `velocity`; below a group or in one of several tables `RV/velocity`.
        values: as the file has them: numbers, text, or one array a row (dtype object).
        unit: as the file declares it, "" where it says dimensionless; None where it says nothing.
        masked: entries that the file marks as missing, where it marks any.
        words: a column of a text table as it is written: what an identifier is taken from.
        by_row: the first axis is the rows of a table.
        context: known before the observation, as the times of a series are.
        note: what a reader should know of it.
    """

    name: str
    values: NDArray
    unit: str | None = None
    masked: NDArray[np.bool_] | None = None
    words: NDArray[np.str_] | None = None
    by_row: bool = False
    context: bool = False
    note: str = ""

    @property
    def ragged(self) -> bool:
        """One array of its own length a row."""
        return self.values.dtype == object and self.values.size > 0 and isinstance(self.values.flat[0], np.ndarray)

    @property
    def labels(self) -> list[str]:
        """Entries as text, as they are written where the file is text: 007 is not 7."""
        source = self.values if self.words is None else self.words
        return [str(value).strip() for value in source.ravel().tolist()]

    @property
    def is_text(self) -> bool:
        """Text, or what can only be shown as such."""
        return self.values.dtype.kind not in "biuf" and not self.ragged


@dataclass(frozen=True)
class ForeignFile:
    """A file that somebody else wrote.

    Attributes:
        path: where it is.
        kind: its format, in words.
        fields: its arrays.
        meta: header cards and attributes.
        note: what a reader should know of it.
    """

    path: Path
    kind: str
    fields: tuple[Field, ...]
    meta: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def declares_units(self) -> bool:
        """Whether any array comes with a unit."""
        return any(f.unit for f in self.fields)

    def find(self, name: str) -> Field | None:
        """The array of that name: in full, its last part, without `,EXTVER`, in that case or any, where only one has it.

        Raises:
            InputError: several have it.
        """
        lower = name.lower()
        for same in (
            lambda f: f.name == name,
            lambda f: name in (_last(f.name), _first(f.name)),
            lambda f: lower in (f.name.lower(), _last(f.name).lower(), _first(f.name).lower()),
        ):
            found = [f for f in self.fields if same(f)]
            if len({f.name for f in found}) < len(found):
                raise InputError(
                    f"{self.path}: {len(found)} columns or arrays with the name {name!r}: rename all but one"
                )
            if found:
                if len(found) > 1:
                    names = " or ".join(f.name for f in found[:LISTED])
                    raise InputError(f"{self.path}: {name!r} may be {names}: write it in full")
                return found[0]
        return None

    def get(self, name: str) -> Field:
        """The array of that name.

        Raises:
            InputError: there is none.
        """
        found = self.find(name)
        if found is None:
            names = [f.name for f in self.fields]
            near = get_close_matches(name, names, n=1)
            raise InputError(
                f"{self.path}: no column or array {name!r}{f'; did you mean {near[0]!r}?' if near else ''}; it has {listed(names)}"
            )
        return found


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _first(name: str) -> str:
    """`SCI` of `SCI,2`: the EXTNAME that several images of a FITS file share."""
    start, comma, version = name.rpartition(",")
    return start if comma and version.isdigit() else name


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "nothing") + more
