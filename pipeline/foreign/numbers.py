"""From the arrays of a foreign file to numbers in an observable's unit: `column[unit]`, nothing guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.foreign.fields import Field, ForeignFile
from simulators.protocol import Observable
from simulators.reading.words import as_numbers
from simulators.units import check_unit, conversion_factor, parse_unit

BRACKET = re.compile(r"(?P<name>.*[^\[\s])\s*\[(?P<unit>[^\[\]]*)\]")


@dataclass(frozen=True)
class Wanted:
    """What `velocity=rv[km/s]` asks for.

    Attributes:
        name: of a column or array; several with commas, or with * for any characters.
        unit: as given; None: that of the file.
        insist: `[km/s!]`, the file's own unit is wrong.
    """

    name: str
    unit: str | None
    insist: bool = False


def wanted(text: str, what: str) -> Wanted:
    """Parse `NAME`, `NAME[UNIT]` or `NAME[UNIT!]`; `[]` is dimensionless.

    >>> wanted("rv [km / s]", "velocity")
    Wanted(name='rv', unit='km / s', insist=False)
    >>> wanted("[Fe/H][dex]", "metallicity").name
    '[Fe/H]'

    Raises:
        InputError: not a unit that astropy knows, or no name.
    """
    found = BRACKET.fullmatch(text.strip())
    name, unit = (found["name"], found["unit"]) if found else (text.strip(), None)
    if not name:
        raise InputError(f"{what}: expected the name of a column, such as rv or rv[km/s], got {text!r}")
    if unit is None:
        return Wanted(name, None)
    insist = unit.endswith("!")
    unit = unit.removesuffix("!").strip()
    try:
        check_unit(unit, what)
    except ValueError as error:
        raise InputError(str(error).splitlines()[0]) from None
    return Wanted(name, unit, insist)


@dataclass(frozen=True)
class Numbers:
    """Numbers of one observable, in its unit, as they lie in one file.

    Attributes:
        label: of the column, for messages.
        values: (R, *entry) of a table, else the array as it is; NaN where missing. None where ragged.
        by_row: the first axis is the rows of a table.
        lengths: of each row, where rows are of different length; `values` is then all of them, one after the other.
    """

    label: str
    values: NDArray[np.float64]
    by_row: bool
    lengths: NDArray[np.intp] | None = None

    @property
    def entry(self) -> tuple[int, ...]:
        """Shape of one row of a table."""
        return self.values.shape[1:]


def numbers_of(file: ForeignFile, want: Wanted, observable: Observable, *, codes: Sequence[str] = ()) -> Numbers:
    """The numbers that an observable takes from a file.

    Args:
        codes: texts that stand for 0, 1, 2, ...

    Raises:
        InputError: no such column, text in it, no unit, or one that contradicts or cannot be converted.
    """
    fields = _fields(file, want.name)
    parts = [field_numbers(field, want, observable, where=str(file.path), codes=codes) for field in fields]
    if len(parts) == 1:
        return parts[0]
    if not all(p.by_row and p.entry == () and p.lengths is None for p in parts):
        raise InputError(f"{file.path}: {want.name}: several names stand for columns of single numbers, one an element")
    return Numbers(want.name, np.stack([p.values for p in parts], axis=1), True)


def _fields(file: ForeignFile, name: str) -> list[Field]:
    """The array of that name; those of a list with commas; those that a pattern with * matches, in the file's order."""
    if (found := file.find(name)) is not None:
        return [found]
    if "*" in name:
        matching = [f for f in file.fields if fnmatchcase(f.name, name) and not f.is_text]
        if not matching:
            raise InputError(f"{file.path}: no column matches {name!r}")
        return matching
    return [file.get(part.strip()) for part in name.split(",")]


def field_numbers(
    field: Field, want: Wanted, observable: Observable, *, where: str, codes: Sequence[str] = ()
) -> Numbers:
    """One array as numbers in the observable's unit; NaN where it is missing."""
    name = f"{where}: {field.name}"
    if np.iscomplexobj(field.values) or (field.ragged and any(np.iscomplexobj(row) for row in field.values)):
        raise InputError(f"{name} is complex, expected real numbers: give real and imaginary part as two columns")
    inverse = None if codes else _inverse_unit(field, want, observable)
    factor = 1.0 if codes else _factor(field, want, replace(observable, unit=inverse or observable.unit), name)
    if field.ragged:
        rows = [_row(row, f"{name}, row {place}") for place, row in enumerate(field.values, start=1)]
        return Numbers(field.name, np.concatenate(rows) * factor, True, np.array([len(row) for row in rows]))
    if codes or field.is_text:
        values = _coded(field, codes, name)
    else:
        values = np.array(field.values, dtype=np.float64)
    if field.masked is not None:
        values[field.masked] = np.nan
    values = values * factor
    return Numbers(field.name, _inverted(values, name) if inverse else values, field.by_row)


def _inverse_unit(field: Field, want: Wanted, observable: Observable) -> str | None:
    """1 / mag2 for a covariance in mag2 whose inverse is given, as the unit of the file or of the command says."""
    shape = observable.shape
    unit, wanted = parse_unit(want.unit if want.unit is not None else field.unit or ""), parse_unit(observable.unit)
    if len(shape) != 2 or shape[0] != shape[1] or unit is None or hasattr(wanted, "physical_unit"):
        return None
    inverse = wanted**-1
    return inverse.to_string() if unit.is_equivalent(inverse) and not unit.is_equivalent(wanted) else None


def _inverted(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """The inverse of each matrix (..., M, M).

    Raises:
        InputError: not square, or singular.
    """
    try:
        inverse: NDArray[np.float64] = np.linalg.inv(values).astype(np.float64)
    except np.linalg.LinAlgError:
        inverse = np.full(values.shape, np.nan)
    if not np.isfinite(inverse).all():
        raise InputError(f"{name}: an inverse covariance of shape {values.shape} that cannot be inverted")
    return (inverse + inverse.swapaxes(-1, -2)) / 2


def _row(values: NDArray, where: str) -> NDArray[np.float64]:
    if np.asarray(values).dtype.kind not in "biuf":
        raise InputError(f"{where}: expected numbers, got {np.asarray(values).dtype}")
    return np.asarray(values, dtype=np.float64).ravel()


def _factor(field: Field, want: Wanted, observable: Observable, name: str) -> float:
    """What values are multiplied by to be in the observable's unit."""
    declared, given = field.unit, want.unit
    parsed = None if declared is None else parse_unit(declared)
    if given is None:
        if declared is None and observable.unit:
            raise InputError(
                f"{name}: no unit is declared; give it in brackets, such as --column '{observable.name}={want.name}[{observable.unit}]'"
            )
        if declared is not None and parsed is None:
            raise InputError(
                f"{name}: declares the unit {declared!r}, which astropy does not know; give one that it knows: --column '{observable.name}={want.name}[UNIT]'"
            )
    elif parsed is not None and parsed != parse_unit(given) and not want.insist:
        raise InputError(
            f"{name}: the file declares {declared or 'dimensionless'!r}, the command {given!r}: leave the unit out, or write [{given}!] if the file is wrong"
        )
    unit = given if given is not None else declared or ""
    try:
        return conversion_factor(unit, observable.unit, name)
    except (ValueError, TypeError) as error:
        raise InputError(str(error).splitlines()[0]) from None


def _coded(field: Field, codes: Sequence[str], name: str) -> NDArray[np.float64]:
    """Text as numbers: by its place in `codes`, or as it reads; NaN where it is missing."""
    text = field.values.astype(str)
    words = [word.strip() for word in text.ravel().tolist()]
    gone = np.zeros(text.shape, dtype=bool) if field.masked is None else field.masked
    if codes:
        table: Mapping[str, float] = {code: float(i) for i, code in enumerate(codes)} | {"": np.nan}
        unknown = sorted(set(words) - set(table))
        if unknown:
            raise InputError(f"{name}: {unknown[0][:80]!r} is not among the codes {', '.join(codes)}")
        return np.array([table[word] for word in words]).reshape(text.shape)
    if field.values.dtype.kind not in "UO":
        raise InputError(f"{name}: expected numbers, got {field.values.dtype}")
    present = [word for word, missing in zip(words, gone.ravel().tolist(), strict=True) if not missing]
    numbers, wrong = as_numbers(["" if missing else word for word, missing in zip(words, gone.ravel(), strict=True)])
    if wrong is not None:
        labels = sorted(set(present))
        hint = f"; for a column of labels give --codes NAME={','.join(labels[:5])}" if len(labels) <= 20 else ""
        raise InputError(f"{name}, row {wrong + 1}: expected a number, got {words[wrong][:80]!r}{hint}")
    return numbers.reshape(text.shape)
