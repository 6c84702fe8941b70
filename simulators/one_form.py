r"""One form of data that say the same: what stands in absent slots, and the order of points.

Simulations, observed files and context are brought to it where they enter the pipeline, so that
nothing behind can depend on

- a slot whose mask (`Observable.present`) is 0: data become 0, observing conditions the first value
  that is present, and a matrix over points (a covariance) the identity there: finite, and of a kind
  that the simulator knows;
- the order of points that the simulator declares `exchangeable`: they come in rising order of the
  first observable that it names there, absent ones last; points that agree in it in the order of
  the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simulators.declarations import Observable

if TYPE_CHECKING:
    from simulators.protocol import Data, Simulator


def in_one_form(simulator: Simulator, x: Mapping[str, Tensor]) -> Data:
    """x of N rows with one value in absent slots and exchangeable points in order."""
    return filled(simulator.observables, _ordered(simulator, x))  # the first present one is so in that order


def masks_of(observables: Sequence[Observable]) -> dict[str, str]:
    """Observable to the mask that says which of its numbers are there.

    That is its own `present`, or that of the data whose error or abscissa it is. An observing
    condition called `present` is the mask of whatever names no other and has its shape, or more
    axes after it.
    """
    named = {o.name: o.present for o in observables if o.present}
    for o in observables:
        for other in (o.against, o.error):
            if o.present and other:
                named.setdefault(other, o.present)
    for mask in (o for o in observables if o.name == "present" and o.role == "context" and o.shape):
        for o in observables:
            if o.shape[: len(mask.shape)] == mask.shape:
                named.setdefault(o.name, mask.name)
    return {name: mask for name, mask in named.items() if name not in named.values()}


def filled(observables: Sequence[Observable], x: Mapping[str, Tensor]) -> Data:
    """x of N rows with one value in absent slots; a tensor that has it already is x's own."""
    result = dict(x)
    masks = masks_of(observables)
    for o in (o for o in observables if o.name in masks and o.name in x):
        there = ~(x[masks[o.name]] <= 0.5)  # NaN, of a failed simulation, hides nothing
        one = _fill(x[o.name], there, is_data=o.role == "data")
        if not torch.equal(one, x[o.name]):
            result[o.name] = one
    return result


def _fill(values: Tensor, there: Tensor, *, is_data: bool) -> Tensor:
    """Values (N, *mask, ...) or (N, M, M) under a mask (N, *mask)."""
    if there.dim() == 2 and values.shape[1:] == there.shape[1:] * 2:
        unit = torch.eye(values.shape[-1], dtype=values.dtype, device=values.device)
        return torch.where(there[:, :, None] & there[:, None, :], values, unit)
    used = there.reshape(there.shape + (1,) * (values.dim() - there.dim()))
    if is_data:
        return torch.where(used, values, 0.0)
    flat = values.flatten(1, there.dim() - 1) if there.dim() > 1 else values[:, None]
    first = there.flatten(1).to(torch.uint8).argmax(1)  # the first that is present, or the first of all
    rows = torch.arange(len(values), device=values.device)
    kept = flat[rows, first].reshape(len(values), *(1,) * (there.dim() - 1), *flat.shape[2:])
    return torch.where(used, values, kept)


def _ordered(simulator: Simulator, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    names = [name for name in getattr(simulator, "exchangeable", ()) if name in x]
    if not names:
        return x
    mask = masks_of(simulator.observables).get(names[0], "")
    there = x[mask] > 0.5 if mask in x else torch.ones_like(x[names[0]], dtype=torch.bool)
    key = torch.where(there, x[names[0]].double(), torch.inf)
    later, earlier = key[:, 1:], key[:, :-1]
    if bool(((later > earlier) | (later == torch.inf)).all()):
        return x
    order = _order(key, [x[name] for name in names[1:] if x[name].dim() == 2])
    return dict(x) | {name: _taken(x[name], order) for name in names}


def _order(key: Tensor, others: list[Tensor]) -> Tensor:
    """Places in rising order of `key`, where that ties of the first of `others`, and so on, (N, M)."""
    order = torch.arange(key.shape[1], device=key.device).expand_as(key)
    for values in (*reversed(others), key):
        order = order.gather(1, values.double().gather(1, order).argsort(dim=1, stable=True))
    return order


def _taken(values: Tensor, order: Tensor) -> Tensor:
    """Points of (N, M, ...), or rows and columns of (N, M, M), in another order."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    if values.dim() == 3 and values.shape[1:] == order.shape[1:] * 2:
        return values[rows[:, :, None], order[:, :, None], order[:, None, :]]
    return values[rows, order]
