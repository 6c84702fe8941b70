"""What is missing in observations: refused with its row, left out and counted, or absent under the simulator's mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.foreign.layout import Laid
from simulators.protocol import Observable

Flags = NDArray[Any]


@dataclass(frozen=True)
class Settled:
    """Observations without gaps.

    Attributes:
        x: (N, *shape) of every observable, finite.
        ids: of the N observations that are left.
        points_absent: points with a missing value, now absent under a mask.
        left_out: identifiers of the observations that were left out.
    """

    x: dict[str, NDArray[np.float64]]
    ids: tuple[str, ...]
    points_absent: int
    left_out: tuple[str, ...]


def mask_names(observables: Sequence[Observable]) -> frozenset[str]:
    """Observables that say which points there are: those that others name as `present`, or called so, or with mask in the name."""
    named = {getattr(o, "present", None) for o in observables}
    return frozenset(
        o.name
        for o in observables
        if o.shape
        and (o.name in named or (o.role == "context" and not o.unit and ("mask" in o.name or o.name == "present")))
    )


def settle(
    laid: Mapping[str, Laid], observables: Sequence[Observable], ids: Sequence[str], *, drop_missing: bool
) -> Settled:
    """Fill in the masks, and settle every gap.

    A mask that no column gives is 1 where there is a point and 0 where there is none. At an absent point stands the last
    present value before it, or the first one: finite and of a kind that the simulator knows; in a matrix over points the
    identity. No likelihood looks at it.

    Args:
        laid: what the files have; only masks may be left out.
        drop_missing: NaN and masked values become absent points where a mask covers them, else their observation is
            left out. False: they are an error.

    Raises:
        InputError: a missing value, too few points and no mask, or an observation without points.
    """
    count = len(ids)
    names = mask_names(observables)
    masks = [o for o in observables if o.name in names]
    others = [o for o in observables if o.name not in names]
    cover = {o.name: _cover(o, masks) for o in others}
    present: dict[str, Flags] = {}
    absent = np.zeros(count, dtype=int)
    for mask in masks:
        covered = [laid[o.name] for o in others if cover[o.name] is mask]
        flags = _given_mask(laid[mask.name], ids) if mask.name in laid else _padding(mask, covered, ids)
        if drop_missing:
            whole = flags
            for o in (o for o in others if cover[o.name] is mask and not _is_matrix(o, mask)):
                flags = flags & np.isfinite(laid[o.name].values).reshape(*flags.shape, -1).all(axis=-1)
            absent += (whole & ~flags).reshape(count, -1).sum(axis=1)
        present[mask.name] = flags
    bad = np.zeros(count, dtype=bool)
    filled: dict[str, NDArray[np.float64]] = {}
    for o in others:
        mask = cover[o.name]
        _need_mask(o, laid[o.name], ids, mask)
        there = np.array(True) if mask is None else _there(o, mask, present[mask.name], laid[o.name].values.ndim)
        gaps = ~np.isfinite(laid[o.name].values) & there
        rows = gaps.reshape(count, -1).any(axis=1)
        if rows.any() and not drop_missing:
            raise InputError(_describe_gap(o, laid[o.name], gaps, ids))
        bad |= rows
        filled[o.name] = (
            laid[o.name].values if mask is None else _filled(o, mask, laid[o.name].values, present[mask.name])
        )
    for name, flags in present.items():
        empty = ~flags.reshape(count, -1).any(axis=1)
        if empty.any() and not drop_missing:
            raise InputError(f"observation {ids[int(np.argmax(empty))]!r} has no point: {name!r} is zero everywhere")
        bad |= empty
    if bad.all():
        raise InputError(f"all {count} observations have missing values: nothing is left")
    keep = np.flatnonzero(~bad)
    x = filled | {name: flags.astype(np.float64) for name, flags in present.items()}
    x = {o.name: x[o.name][keep] for o in observables}
    left_out = tuple(ids[int(i)] for i in np.flatnonzero(bad))
    return Settled(x, tuple(ids[int(i)] for i in keep), int(absent[keep].sum()), left_out)


def _cover(observable: Observable, masks: Sequence[Observable]) -> Observable | None:
    """The mask that it names as `present`, or else the one with whose shape its own begins."""
    named = next((m for m in masks if m.name == getattr(observable, "present", None)), None)
    return named or next((m for m in masks if observable.shape[: len(m.shape)] == m.shape), None)


def _is_matrix(observable: Observable, mask: Observable) -> bool:
    """A matrix over points, as a covariance is: a point that is absent has neither row nor column."""
    return len(mask.shape) == 1 and observable.shape == mask.shape * 2


def _there(observable: Observable, mask: Observable, flags: Flags, dimensions: int) -> Flags:
    """Where a value is needed, of `dimensions` dimensions."""
    if _is_matrix(observable, mask):
        return flags[:, :, None] & flags[:, None, :]
    return _expand(flags, dimensions)


def _expand(flags: Flags, dimensions: int) -> Flags:
    return flags.reshape(flags.shape + (1,) * (dimensions - flags.ndim))


def _given_mask(laid: Laid, ids: Sequence[str]) -> Flags:
    """A mask that the file has; padding is absent."""
    values = np.where(_inside(laid), laid.values, 0.0)
    wrong = ~np.isin(values, (0.0, 1.0)).reshape(len(ids), -1).all(axis=1)
    if wrong.any():
        raise InputError(
            f"{laid.label}: a mask is 1 for present and 0 for absent; observation {ids[int(np.argmax(wrong))]!r} has other values"
        )
    return values == 1.0


def _inside(laid: Laid) -> Flags:
    """Which entries are not padding, of the shape of values."""
    inside = np.ones(laid.values.shape, dtype=bool)
    if laid.counts is not None:
        inside &= _expand(np.arange(laid.values.shape[1]) < laid.counts[:, None], inside.ndim)
    return inside


def _padding(mask: Observable, covered: Sequence[Laid], ids: Sequence[str]) -> Flags:
    """Points that are there, (N, *mask.shape), which all observables under the mask must agree on."""
    shape = (len(ids), *mask.shape)
    flags: list[Any] = [_inside(one).reshape(*shape, -1).all(axis=-1) for one in covered]
    for one, other in zip(covered[1:], flags[1:], strict=True):
        differs = (other != flags[0]).reshape(len(ids), -1).any(axis=1)
        if differs.any():
            i = int(np.argmax(differs))
            raise InputError(
                f"observation {ids[i]!r}: {covered[0].label!r} has {int(flags[0][i].sum())} points and {one.label!r} {int(other[i].sum())}"
            )
    return flags[0] if flags else np.ones(shape, dtype=bool)


def _need_mask(observable: Observable, laid: Laid, ids: Sequence[str], mask: Observable | None) -> None:
    """Refuse observations that are shorter than the simulator's shape where nothing can say so."""
    size = laid.values.shape[1] if laid.counts is not None else 0
    if mask is not None or laid.counts is None or bool((laid.counts == size).all()):
        return
    short = int(np.argmax(laid.counts < size))
    raise InputError(
        f"observation {ids[short]!r} has {laid.counts[short]} points of {observable.name!r}, the simulator wants {size} and has no mask for fewer"
    )


def _filled(
    observable: Observable, mask: Observable, values: NDArray[np.float64], present: Flags
) -> NDArray[np.float64]:
    """Values with the last present one, or else the first, in place of absent ones; a matrix with the identity there."""
    if _is_matrix(observable, mask):
        return np.where(_there(observable, mask, present, 3), values, np.eye(values.shape[1]))
    flags = present.reshape(len(values), -1)
    places = np.where(flags, np.arange(flags.shape[1]), -1)
    source = np.maximum.accumulate(places, axis=1)
    source = np.where(source < 0, np.argmax(flags, axis=1)[:, None], source)
    flat = values.reshape(*flags.shape, -1)
    return np.take_along_axis(flat, source[..., None], axis=1).reshape(values.shape)


def _describe_gap(observable: Observable, laid: Laid, gaps: Flags, ids: Sequence[str]) -> str:
    """One line about the first missing value."""
    first = tuple(int(i) for i in np.argwhere(gaps)[0])
    place = f"observation {ids[first[0]]!r}"
    if laid.rows is not None and laid.rows[first[: laid.rows.ndim]] > 0:
        place += f", row {laid.rows[first[: laid.rows.ndim]]}"
        rest = first[laid.rows.ndim :]
    else:
        rest = first[1:]
    place += f", element {list(rest)}" if rest else ""
    total = int(gaps.sum())
    return (
        f"{laid.label}, {place}: no value for {observable.name!r} (NaN, infinite, or marked as missing)"
        f"{f', the first of {total}' if total > 1 else ''}; correct the file, or leave such values out with --drop-missing"
    )


def check_errors(x: Mapping[str, NDArray[np.float64]], observables: Sequence[Observable], ids: Sequence[str]) -> None:
    """Raise InputError where a 1-sigma error, or the diagonal of a covariance, is not positive."""
    for o in (o for o in observables if o.error in x):
        errors = x[str(o.error)]
        covariance = errors.ndim == 3 and errors.shape[1:] == o.shape * 2
        wrong = ~((np.diagonal(errors, axis1=1, axis2=2) if covariance else errors) > 0)
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            which = f"{o.error}{', diagonal' if covariance else ''}, element {list(first[1:])}"
            raise InputError(f"observation {ids[first[0]]!r}: {which}: an error must be positive")
