"""Observations of a simulator from the columns and arrays of foreign files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.foreign.fields import ForeignFile, listed
from pipeline.foreign.layout import Grouping, Laid, group_rows, join, lay_out, rows_are_points
from pipeline.foreign.missing import Settled, check_errors, mask_names, settle
from pipeline.foreign.numbers import Numbers, Wanted, field_numbers, numbers_of, wanted
from pipeline.foreign.read import read_array
from pipeline.ingest_settings import IngestSettings
from simulators.protocol import Observable
from simulators.reading.bounds import ROW_BYTES, need_room
from simulators.reading.tables import COMPRESSED
from simulators.units import parse_unit

DIAGONAL = "_diagonal"  # what the name of an observable gets for the errors on its diagonal


@dataclass(frozen=True)
class Plan:
    """Where each observable comes from.

    Attributes:
        observables: all that are wanted, and the errors of diagonals.
        columns: observable to column, for those that come from the files.
        arrays: observable to file, array and unit.
        diagonal: observable to the name of its diagonal.
        settings: the rest of what the user says.
    """

    observables: tuple[Observable, ...]
    columns: Mapping[str, Wanted]
    arrays: Mapping[str, tuple[Path, Wanted]]
    diagonal: Mapping[str, str]
    settings: IngestSettings


def plan(observables: Sequence[Observable], settings: IngestSettings) -> Plan:
    """Check what the user says against what the simulator wants.

    Raises:
        InputError: an observable that there is not, or one that is given twice.
    """
    by_name = {o.name: o for o in observables}
    said = {
        "columns": settings.columns,
        "arrays": settings.arrays,
        "diagonal": settings.diagonal,
        "codes": settings.codes,
    }
    for option, values in said.items():
        for name in values:
            if name not in by_name:
                raise InputError(f"ingest: {option}: no observable {name!r}; the simulator has {', '.join(by_name)}")
    for name in settings.columns.keys() & settings.arrays.keys():
        raise InputError(f"ingest: observable {name!r} is given both as a column and as an array")
    columns = {name: wanted(text, f"ingest: column of {name}") for name, text in settings.columns.items()}
    arrays = array_files(settings)
    diagonal: dict[str, str] = {}
    extra: list[Observable] = []
    for name, text in settings.diagonal.items():
        o = by_name[name]
        if len(o.shape) != 2 or o.shape[0] != o.shape[1]:
            raise InputError(f"ingest: diagonal: observable {name!r} has shape {o.shape}, which is no covariance")
        diagonal[name] = f"{name}{DIAGONAL}"
        columns[diagonal[name]] = wanted(text, f"ingest: diagonal of {name}")
        extra.append(Observable(diagonal[name], o.shape[:1], _root(o.unit), role="context"))
    return Plan((*observables, *extra), columns, arrays, diagonal, settings)


def _root(unit: str) -> str:
    """The unit whose square is `unit`."""
    return (parse_unit(unit) ** 0.5).to_string() if unit else ""


def array_files(settings: IngestSettings) -> dict[str, tuple[Path, Wanted]]:
    """File, array and unit of each observable that has a file of its own.

    Raises:
        InputError: no such file.
    """
    return {name: _array(text, f"ingest: array of {name}") for name, text in settings.arrays.items()}


def _array(text: str, what: str) -> tuple[Path, Wanted]:
    """FILE, FILE:NAME, either with [UNIT]."""
    want = wanted(text, what)
    path, name = Path(want.name), ""
    if not path.is_file() and ":" in want.name:
        file, _, name = want.name.rpartition(":")
        path = Path(file)
    if not path.is_file():
        raise InputError(f"{what}: {path}: no such file")
    return path, replace(want, name=name)


# ---------------------------------------------------------------- one file


@dataclass(frozen=True)
class Part:
    """What one file gives."""

    laid: dict[str, Laid]
    ids: tuple[str, ...]
    dropped: Dropped


@dataclass(frozen=True)
class Dropped:
    """Points left out for missing values, and the observations of which nothing was left."""

    points: int = 0
    ids: tuple[str, ...] = ()


def read_part(file: ForeignFile, plan: Plan) -> Part:
    """The observables of one file, laid out as observations, gaps included.

    Raises:
        InputError: a column that there is not, a unit, a shape or an identifier that does not fit.
    """
    numbers = _numbers(file, plan)
    if not numbers:
        raise InputError(
            f"{file.path}: none of its columns is an observable; it has {listed([f.name for f in file.fields])}"
        )
    tables = {n.label: len(n.values) if n.lengths is None else len(n.lengths) for n in numbers.values() if n.by_row}
    if len(set(tables.values())) > 1:
        raise InputError(f"{file.path}: columns of tables with different numbers of rows: {tables}")
    rows = next(iter(tables.values()), 0)
    grouping, dropped = None, Dropped()
    if rows and (labels := _point_labels(file, plan, numbers, rows)) is not None:
        numbers, grouping, dropped = _group(numbers, labels, drop=plan.settings.drop_missing)
        if not grouping.labels:
            return Part({}, (), dropped)
    here = [o for o in plan.observables if o.name in numbers]
    laid = {o.name: lay_out(numbers[o.name], o, grouping=grouping, path=file.path) for o in here}
    counts = {laid[o.name].label: len(laid[o.name].values) for o in here}
    if len(set(counts.values())) > 1:
        raise InputError(f"{file.path}: not the same number of observations everywhere: {counts}")
    if grouping is not None and plan.settings.group is not None:
        return Part(laid, grouping.labels, dropped)
    return Part(laid, _identifiers(file, plan.settings.id, next(iter(counts.values())), grouping), dropped)


def _group(
    numbers: dict[str, Numbers], labels: Sequence[str], *, drop: bool
) -> tuple[dict[str, Numbers], Grouping, Dropped]:
    """Rows as points; with `drop` without those in which a value is missing."""
    keep = np.ones(len(labels), dtype=bool)
    points = {name: n for name, n in numbers.items() if n.by_row and n.lengths is None}
    if drop:
        for n in points.values():
            keep &= np.isfinite(n.values).reshape(len(labels), -1).all(axis=1)
    rows = np.flatnonzero(keep)
    kept = [labels[int(i)] for i in rows]
    left = set(kept)
    gone = tuple(dict.fromkeys(label for label in labels if label not in left))
    chosen = numbers | {name: replace(n, values=n.values[rows]) for name, n in points.items()}
    return chosen, group_rows(kept, rows + 1), Dropped(int((~keep).sum()), gone)


def _numbers(file: ForeignFile, plan: Plan) -> dict[str, Numbers]:
    """What each observable takes from the file: the column that is named, else that of its own name."""
    numbers: dict[str, Numbers] = {}
    masks = mask_names(plan.observables)
    for o in plan.observables:
        if o.name in plan.arrays:
            continue
        codes = plan.settings.codes.get(o.name, ())
        if o.name in plan.columns:
            numbers[o.name] = numbers_of(file, plan.columns[o.name], o, codes=codes)
        elif file.find(o.name) is not None:
            numbers[o.name] = numbers_of(file, Wanted(o.name, None), o, codes=codes)
        elif o.name not in masks and o.name not in plan.diagonal and o.default is None:
            raise InputError(
                f"{file.path}: no column {o.name!r} [{o.unit}]; name one with --column '{o.name}=COLUMN[UNIT]'; the file has {listed([f.name for f in file.fields])}"
            )
    return numbers


def _point_labels(file: ForeignFile, plan: Plan, numbers: Mapping[str, Numbers], rows: int) -> list[str] | None:
    """The observation that each row is a point of; None where each is an observation."""
    if plan.settings.group is not None:
        return _labels(file, plan.settings.group, rows)
    points = plan.settings.rows == "points" or (
        plan.settings.rows == "auto" and rows_are_points(numbers, plan.observables)
    )
    return [_stem(file.path)] * rows if points else None


def _labels(file: ForeignFile, name: str, rows: int) -> list[str]:
    """A column as text, a label a row."""
    field = file.get(name)
    if len(field.values) != rows or field.values.ndim != 1 or field.ragged:
        raise InputError(
            f"{file.path}: {name}: expected one label for each of {rows} rows, got shape {field.values.shape}"
        )
    missing = np.zeros(rows, dtype=bool) if field.masked is None else field.masked
    labels = field.labels
    for row, (label, gone) in enumerate(zip(labels, missing, strict=True), start=1):
        if gone or label in ("", "nan"):
            raise InputError(f"{file.path}: {name}, row {row}: no label")
    return labels


def _identifiers(file: ForeignFile, name: str | None, count: int, points: Grouping | None) -> tuple[str, ...]:
    """Identifiers of the observations: a column, a header card, or the file's name with the row."""
    if name is not None and file.find(name) is None:
        card = next((v for k, v in file.meta.items() if k.lower() == name.lower()), None)
        if card is None or count > 1:
            raise InputError(
                f"{file.path}: id: no column {name!r}{'' if card is None else ' (a header card, but there are several observations)'}; it has {listed([f.name for f in file.fields])}"
            )
        return (card.strip(),)
    own = file.find("id")
    if name is None and own is not None and own.is_text and len(own.values) == count:
        name = own.name  # our own layout
    if name is None:
        stem = _stem(file.path)
        need_room(file.path, count * ROW_BYTES, what=f"{count} observations")
        return (stem,) if count == 1 else tuple(f"{stem}-{row}" for row in range(1, count + 1))
    labels = _labels(file, name, len(file.get(name).values))
    if points is None:
        if len(labels) != count:
            raise InputError(f"{file.path}: id: {name} has {len(labels)} rows for {count} observations")
        return tuple(labels)
    if len(set(labels)) > count:
        raise InputError(
            f"{file.path}: id: {name} changes within the file, whose rows are one observation; use it as --group"
        )
    return tuple(labels[:1])


def _stem(path: Path) -> str:
    """The file's name without .gz and its suffix."""
    return COMPRESSED.sub("", path.name).rpartition(".")[0] or path.name


# ---------------------------------------------------------------- all files


def gather(
    files: Sequence[Path], plan: Plan, read: Callable[[Path], ForeignFile], *, done: Callable[[], None] = lambda: None
) -> Settled:
    """The observations of all files, without gaps, covariances with their diagonals.

    Args:
        read: a foreign file.
        done: called after each file.

    Raises:
        InputError: whatever does not fit, in one line.
    """
    parts: list[Part] = []
    for path in files:
        parts.append(read_part(read(path), plan))
        done()
    if not files:
        parts = [_from_arrays_alone(plan)]
    filled = [(path, part) for path, part in zip([*files, Path()], parts, strict=False) if part.ids]
    if not filled:
        raise InputError(f"ingest: all rows of {len(files)} file(s) have missing values: nothing is left")
    ids = [i for _, part in filled for i in part.ids]
    (first, reference), *others = filled
    repeated = next((i for i in ids if ids.count(i) > 1), None) if len(set(ids)) < len(ids) else None
    if repeated is not None:
        raise InputError(
            f"ingest: identifier {repeated!r} stands for more than one observation; choose another with --id"
        )
    for path, part in others:
        if part.laid.keys() != reference.laid.keys():
            differ = ", ".join(sorted(part.laid.keys() ^ reference.laid.keys()))
            raise InputError(f"ingest: {first} and {path}: only one of them has {differ}")
    laid = {name: join([part.laid[name] for _, part in filled]) for name in reference.laid}
    for name in plan.arrays.keys() - laid.keys():
        laid[name] = _shared_array(plan, name, len(ids))
    for o in plan.observables:
        if o.name not in laid and o.default in laid:
            laid[o.name] = laid[o.default]
    masks = mask_names(plan.observables)
    observables = [o for o in plan.observables if o.name in laid or o.name in masks]
    settled = settle(laid, observables, ids, drop_missing=plan.settings.drop_missing)
    x = _with_diagonals(settled.x, plan, len(settled.ids))
    check_errors(x, plan.observables, settled.ids)
    return replace(
        settled,
        x=x,
        points_absent=settled.points_absent + sum(part.dropped.points for part in parts),
        left_out=settled.left_out + tuple(i for part in parts for i in part.dropped.ids),
    )


def _from_arrays_alone(plan: Plan) -> Part:
    """Observations that come from --array alone; as many as the arrays have."""
    if not plan.arrays:
        raise InputError("ingest: nothing to read: give files, or --array")
    laid = {name: _array_laid(plan, name) for name in plan.arrays}
    counts = {len(one.values) for one in laid.values()} - {1}
    if len(counts) > 1:
        raise InputError(f"ingest: arrays of {' and '.join(map(str, sorted(counts)))} observations")
    count = max(counts, default=1)
    stem = _stem(next(iter(plan.arrays.values()))[0])
    ids = [stem] if count == 1 else [f"{stem}-{row}" for row in range(1, count + 1)]
    masks = mask_names(plan.observables)
    missing = [o.name for o in plan.observables if o.name not in laid and o.name not in masks and o.default not in laid]
    if missing:
        raise InputError(f"ingest: nothing given for {', '.join(missing)}: give files with these columns, or --array")
    return Part({}, tuple(ids), Dropped())


def _array_laid(plan: Plan, name: str) -> Laid:
    path, want = plan.arrays[name]
    observable = next(o for o in plan.observables if o.name == name)
    field = replace(read_array(path, want.name or None), by_row=False)
    codes = plan.settings.codes.get(name, ())
    return lay_out(
        field_numbers(field, want, observable, where=str(path), codes=codes), observable, grouping=None, path=path
    )


def _shared_array(plan: Plan, name: str, count: int) -> Laid:
    """An array for all observations, or one row for each."""
    laid = _array_laid(plan, name)
    if len(laid.values) == count:
        return laid
    if len(laid.values) != 1:
        raise InputError(f"{plan.arrays[name][0]}: has {len(laid.values)} observations, the other files {count}")
    counts = None if laid.counts is None else np.repeat(laid.counts, count)
    return Laid(np.repeat(laid.values, count, axis=0), laid.label, counts)


def _with_diagonals(x: Mapping[str, NDArray[np.float64]], plan: Plan, count: int) -> dict[str, NDArray[np.float64]]:
    """C + diag(error^2), in the unit of C; zeros for C where only errors are given."""
    result = {name: values for name, values in x.items() if name not in plan.diagonal.values()}
    for name, errors in plan.diagonal.items():
        size = x[errors].shape[1]
        covariance = np.array(result.get(name, np.zeros((count, size, size))))
        covariance[:, np.arange(size), np.arange(size)] += x[errors] ** 2
        result[name] = covariance
    return result
