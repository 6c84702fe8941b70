"""Observables where no simulator declares any: what the files themselves have."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pipeline.errors import InputError
from pipeline.foreign.fields import Field, ForeignFile
from pipeline.foreign.numbers import Wanted, wanted
from pipeline.ingest_settings import IngestSettings
from simulators.protocol import Observable

MASK = "mask"


def observables_of(
    files: Sequence[ForeignFile], settings: IngestSettings
) -> tuple[tuple[Observable, ...], IngestSettings]:
    """Observables for the columns of `settings`, or for every array of numbers; and the settings with these columns.

    Rows of a table are observations, unless `rows` or `group` says that they are points; any other array is one observation.
    Where points differ in number there is a mask.

    Raises:
        InputError: no unit, no numbers, or arrays whose shapes differ from file to file.
    """
    columns = dict(settings.columns) or _all_columns(files[0], settings)
    wants = {name: wanted(text, f"ingest: column of {name}") for name, text in columns.items()}
    observables: list[Observable] = []
    uneven = False
    for name, want in wants.items():
        if not name.isidentifier():
            raise InputError(f"ingest: column {name!r}: expected a name such as {_identifier(name)!r} before the =")
        fields = [file.get(want.name) for file in files]
        sizes = [size for file, field in zip(files, fields, strict=True) for size in _points(file, field, settings)]
        shapes = {_entry(field) for field in fields}
        if len(shapes) > 1:
            raise InputError(
                f"ingest: {name}: arrays of shapes {' and '.join(map(str, sorted(shapes)))} in these files"
            )
        uneven |= len(set(sizes)) > 1
        shape = (max(sizes), *shapes.pop()) if sizes else shapes.pop()
        first = fields[0]
        dtype = "float32" if all(_is_single(field) for field in fields) else "float64"
        role = "context" if first.context else "data"
        observables.append(
            Observable(
                name, shape, "" if name in settings.codes else _unit(files[0], first, want), role, dtype, label=name
            )
        )
    if uneven:
        points = max(o.shape[0] for o in observables if o.shape)
        observables.append(Observable(MASK, (points,), role="context"))
    return tuple(observables), settings.model_copy(update={"columns": columns})


def _is_single(field: Field) -> bool:
    """Whether float32 holds all of its numbers."""
    return all(row.dtype == np.float32 for row in (field.values if field.ragged else [field.values]))


def _all_columns(file: ForeignFile, settings: IngestSettings) -> dict[str, str]:
    """Every array of numbers under a name of its own; single numbers of HDF5, which are no arrays, where they have a unit.

    Text with a unit is meant to be numbers, and is refused where it is none.

    Raises:
        InputError: two of one name, or none at all.
    """
    fields = [
        f
        for f in file.fields
        if (f.unit or not f.is_text)
        and f.name not in (settings.id, settings.group)
        and (f.values.ndim or f.unit is not None)
    ]
    for f in fields:
        file.get(f.name)
    if not fields:
        raise InputError(f"{file.path}: has no arrays of numbers")
    last = [_identifier(f.name.rpartition("/")[2]) for f in fields]
    return {
        one if last.count(one) == 1 else _identifier(field.name): field.name
        for one, field in zip(last, fields, strict=True)
    }


def _identifier(name: str) -> str:
    plain = re.sub(r"\W+", "_", name).strip("_") or "column"
    return plain if plain.isidentifier() else f"column_{plain}"


def _unit(file: ForeignFile, field: Field, want: Wanted) -> str:
    if want.unit is not None:
        return want.unit
    if field.unit is None:
        raise InputError(
            f"{file.path}: {field.name}: no unit is declared; choose columns and give their units, such as --column 'flux={field.name}[Jy]', [] for dimensionless"
        )
    return field.unit


def _entry(field: Field) -> tuple[int, ...]:
    """Shape of one row of a table, or of an array."""
    if field.ragged:
        return ()
    return field.values.shape[1:] if field.by_row else field.values.shape


def _points(file: ForeignFile, field: Field, settings: IngestSettings) -> list[int]:
    """Numbers of points of the observations of one file, where rows are points or rows have arrays of their own length."""
    if field.ragged:
        return [len(row) for row in field.values]
    if not field.by_row:
        return []
    if settings.group is not None:
        labels = file.get(settings.group).labels
        return np.unique(labels, return_counts=True)[1].tolist()
    return [len(field.values)] if settings.rows == "points" else []
