"""Rows of tables and arrays laid out as observations: one a row, or one a group of rows, padded to a common length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.foreign.numbers import Numbers
from simulators.protocol import Observable


@dataclass(frozen=True)
class Grouping:
    """Which observation each row of a table belongs to, and at which place it stands there.

    Attributes:
        labels: of the N observations.
        code: observation of each row, (R,).
        position: place of each row within it, (R,).
        counts: rows of each observation, (N,).
        row: number of each row in its file, from 1, (R,).
    """

    labels: tuple[str, ...]
    code: NDArray[np.intp]
    position: NDArray[np.intp]
    counts: NDArray[np.intp]
    row: NDArray[np.intp]


@dataclass(frozen=True)
class Laid:
    """One observable of N observations.

    Attributes:
        values: (N, *shape), NaN where nothing is known.
        counts: points that there are, (N,), where observations may be shorter than the shape; the rest is padding.
        rows: row of the table that an observation, (N,), or a point, (N, M), comes from, from 1; None for arrays.
        label: name of the column, for messages.
    """

    values: NDArray[np.float64]
    label: str
    counts: NDArray[np.intp] | None = None
    rows: NDArray[np.intp] | None = None


def group_rows(labels: Sequence[str], row: NDArray[np.intp] | None = None) -> Grouping:
    """Rows with the same label are one observation; observations in the order in which they first appear.

    Args:
        labels: of the R rows.
        row: their numbers in the file; default: 1 to R.
    """
    unique, first, inverse = np.unique(np.asarray(labels, dtype=str), return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    code = rank[inverse.reshape(-1)]
    counts = np.bincount(code, minlength=len(order))
    by_group = np.argsort(code, kind="stable")
    position = np.empty_like(code)
    position[by_group] = np.arange(len(code)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Grouping(
        tuple(unique[order].tolist()), code, position, counts, np.arange(1, len(code) + 1) if row is None else row
    )


def rows_are_points(numbers: Mapping[str, Numbers], observables: Sequence[Observable]) -> bool:
    """Whether rows of the table must be points of an observation: a row has one number where an observable wants many."""
    pairs = [(numbers[o.name], o.shape) for o in observables if o.name in numbers]
    return any(
        n.by_row and n.lengths is None and n.entry != shape and n.entry == shape[1:] and shape for n, shape in pairs
    )


def lay_out(numbers: Numbers, observable: Observable, *, grouping: Grouping | None, path: Path) -> Laid:
    """Numbers of one file as (N, *shape).

    Args:
        grouping: of the table's rows, where they are points; None: each row is an observation.

    Raises:
        InputError: a shape that does not fit.
    """
    where = f"{path}: {numbers.label}"
    if not numbers.by_row:
        return _lay_out_array(numbers, observable, where)
    if numbers.lengths is not None:
        if grouping is not None:
            raise InputError(f"{where}: an array a row, where rows are points of one observation")
        return _lay_out_ragged(numbers, numbers.lengths, observable, where)
    if grouping is None:
        if numbers.entry != observable.shape:
            raise InputError(
                f"{where}: a row has shape {numbers.entry}, observable {observable.name!r} wants {observable.shape}"
            )
        return Laid(numbers.values, numbers.label, rows=np.arange(1, len(numbers.values) + 1))
    if numbers.entry == observable.shape[1:] and observable.shape:
        return _scatter(numbers.values, observable, grouping, where)
    if numbers.entry == observable.shape:
        return _constant(numbers, grouping, where)
    raise InputError(
        f"{where}: a row has shape {numbers.entry}, which is no point of observable {observable.name!r}, {observable.shape}"
    )


def _scatter(values: NDArray[np.float64], observable: Observable, grouping: Grouping, where: str) -> Laid:
    """Points to their places in (N, M, ...), NaN behind them."""
    size = observable.shape[0]
    longest = int(np.argmax(grouping.counts))
    if grouping.counts[longest] > size:
        raise InputError(
            f"{where}: observation {grouping.labels[longest]!r} has {grouping.counts[longest]} points, the simulator takes {size}"
        )
    padded = np.full((len(grouping.labels), *observable.shape), np.nan)
    padded[grouping.code, grouping.position] = values
    rows = np.zeros((len(grouping.labels), size), dtype=np.intp)
    rows[grouping.code, grouping.position] = grouping.row
    return Laid(padded, where.rpartition(": ")[2], grouping.counts, rows)


def _lay_out_ragged(numbers: Numbers, lengths: NDArray[np.intp], observable: Observable, where: str) -> Laid:
    """Arrays of different length, one a row."""
    if len(observable.shape) != 1:
        raise InputError(f"{where}: an array a row, observable {observable.name!r} wants {observable.shape}")
    size = observable.shape[0]
    longest = int(np.argmax(lengths))
    if lengths[longest] > size:
        raise InputError(f"{where}, row {longest + 1}: has {lengths[longest]} points, the simulator takes {size}")
    padded = np.full((len(lengths), size), np.nan)
    padded[np.arange(size) < lengths[:, None]] = numbers.values
    return Laid(padded, numbers.label, lengths, np.arange(1, len(lengths) + 1))


def _constant(numbers: Numbers, grouping: Grouping, where: str) -> Laid:
    """A value that belongs to the observation and stands in each of its rows."""
    first = np.flatnonzero(grouping.position == 0)
    first = first[np.argsort(grouping.code[first])]
    expected = numbers.values[first][grouping.code]
    differs = ~((numbers.values == expected) | (np.isnan(numbers.values) & np.isnan(expected)))
    if differs.any():
        i = int(np.argwhere(differs)[0][0])
        raise InputError(
            f"{where}: row {grouping.row[i]} differs from row {grouping.row[first[grouping.code[i]]]} of the same observation {grouping.labels[grouping.code[i]]!r}, which may have one value only"
        )
    return Laid(numbers.values[first], numbers.label, rows=grouping.row[first])


def _lay_out_array(numbers: Numbers, observable: Observable, where: str) -> Laid:
    """An array that is one observation, several, or one of fewer points: shorter, or a matrix over fewer."""
    values, shape = numbers.values, observable.shape
    if values.shape == shape:
        return Laid(values[None], numbers.label)
    if values.ndim == len(shape) + 1 and values.shape[1:] == shape:
        return Laid(values, numbers.label)
    if shape and values.ndim == len(shape) and values.shape[1:] == shape[1:] and len(values) < shape[0]:
        return _scatter(values, observable, group_rows([numbers.label] * len(values)), where)
    if len(shape) == 2 and shape[0] == shape[1] and values.ndim == 2 and values.shape[0] == values.shape[1] < shape[0]:
        padded = np.full((1, *shape), np.nan)
        padded[0, : len(values), : len(values)] = values
        return Laid(padded, numbers.label, np.array([len(values)]))
    raise InputError(
        f"{where}: has shape {values.shape}, observable {observable.name!r} wants {shape}, or (N, ...) of it for N observations"
    )


def join(parts: Sequence[Laid]) -> Laid:
    """The observations of several files, one after the other."""
    if len(parts) == 1:
        return parts[0]
    values = np.concatenate([p.values for p in parts])
    counts = None
    if any(p.counts is not None for p in parts):
        counts = np.concatenate(
            [p.counts if p.counts is not None else np.full(len(p.values), values.shape[1]) for p in parts]
        )
    same = all(
        p.rows is not None and p.rows.ndim == (parts[0].rows.ndim if parts[0].rows is not None else 0) for p in parts
    )
    rows = np.concatenate([p.rows for p in parts if p.rows is not None]) if same else None
    return Laid(values, parts[0].label, counts, rows)
