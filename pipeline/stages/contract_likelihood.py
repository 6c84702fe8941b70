"""A simulator's log_likelihood, tried in every shape that later stages use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.errors import InputError, simulator_fault
from pipeline.stages.contract import unchanged
from pipeline.stages.shard import numbers
from simulators.protocol import Data, Simulator, canonical, log_likelihood

ROWS, DRAWS = 5, 3
NEAR, NEAR_SHARE = 1e-2, 1e-5
"""Nats, and of the value, by which it may differ between batches: float32 sums over 10^5 pixels."""


def need_likelihood(simulator: Simulator, theta: Tensor, x: Data) -> Tensor:
    """log p(x|theta) of simulations (N,), or a refusal.

    Args:
        theta: (N, D), from which x was simulated.
        x: N rows.

    Raises:
        InputError: another shape, NaN, infinite, values that depend on other rows or on the shape,
            or x changed.
    """
    values = unchanged(simulator, "log_likelihood", x, lambda: _value(simulator, theta, x))
    _need_finite(simulator, theta, values)
    _need_each_shape(simulator, theta, x)
    _need_canonical(simulator, theta, x, values)
    _need_points_without_order(simulator, theta, x, values)
    return values


def _value(simulator: Simulator, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
    """log_likelihood with the shapes in the message, where the simulator raises."""
    try:
        return log_likelihood(simulator, theta, x)
    except InputError:
        raise
    except Exception as error:
        said = simulator_fault(error) or f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        rows = len(next(iter(x.values())))
        raise InputError(
            f"simulator {simulator.name!r}: log_likelihood fails for theta {tuple(theta.shape)} and {rows} rows of x, expected "
            f"{tuple(theta.shape[:-1])}: {said}"
        ) from error


def _need_finite(simulator: Simulator, theta: Tensor, values: Tensor) -> None:
    for word, bad in (("NaN", values.isnan()), ("+inf", values == torch.inf)):
        if bool(bad.any()):
            raise InputError(
                f"simulator {simulator.name!r}: log_likelihood is {word} for {int(bad.sum())} of {len(values)} of its own simulations, the "
                f"first at theta = ({numbers(theta[bad][0])})"
            )
    if bool((values == -torch.inf).all()):
        raise InputError(
            f"simulator {simulator.name!r}: log_likelihood is -inf for all of its own simulations: it contradicts simulate"
        )


def _need_each_shape(simulator: Simulator, theta: Tensor, x: Data) -> None:
    """Values of (K, N) draws and rows are those of each by itself, whatever K, N and D have in common."""
    dimension, have = theta.shape[1], len(theta)
    one_row = [{k: v[n : n + 1] for k, v in x.items()} for n in range(have)]
    columns = [_value(simulator, theta[:, None], row)[:, 0] for row in one_row]  # (I, 1, D) against one row
    table = torch.stack(columns, 1)  # theta i, row j
    for i, j in ((0, 0), (min(1, have - 1), 0)):
        alone = _value(simulator, theta[i : i + 1], one_row[j])
        _need_same(simulator, table[i : i + 1, j], alone, ((have, 1, dimension), 1), ((1, dimension), 1))
    for rows in sorted({min(ROWS, have), min(dimension, have), have}):
        some = {k: v[:rows] for k, v in x.items()}
        for draws in sorted({1, DRAWS, rows, dimension}):
            order = (torch.arange(draws)[:, None] + torch.arange(rows)) % have  # theta of each draw and row
            wide = _value(simulator, theta[order], some)
            _need_same(
                simulator, wide, table[order, torch.arange(rows)], ((draws, rows, dimension), rows), ((1, dimension), 1)
            )
        plain = _value(simulator, theta[:rows], some)
        _need_same(simulator, plain, table.diagonal()[:rows], ((rows, dimension), rows), ((1, dimension), 1))


Shapes = tuple[Sequence[int], int]


def _need_same(simulator: Simulator, got: Tensor, alone: Tensor, here: Shapes, there: Shapes) -> None:
    """Refuse values that differ by more than rounding; NaN and -inf must be so on both sides."""
    got, alone = got.detach().double(), alone.detach().double()
    near = torch.isclose(got, alone, rtol=NEAR_SHARE, atol=NEAR, equal_nan=True)
    if not bool(near.all()):
        a, b = float(got[~near][0]), float(alone[~near][0])
        raise InputError(
            f"simulator {simulator.name!r}: log_likelihood of one draw and row is {a:.6g} for theta {tuple(here[0])} and {here[1]} row(s) of x, and "
            f"{b:.6g} for theta {tuple(there[0])} and {there[1]}: it may depend on its own row and draw alone"
        )


def _need_canonical(simulator: Simulator, theta: Tensor, x: Data, values: Tensor) -> None:
    """What `canonical` takes out must not matter."""
    again = _value(simulator, theta, canonical(simulator, x)).detach()
    if not bool(torch.isclose(again, values.detach(), rtol=NEAR_SHARE, atol=NEAR, equal_nan=True).all()):
        raise InputError(
            f"simulator {simulator.name!r}: log_likelihood changes where `canonical` takes out of x what should not matter"
        )


def _need_points_without_order(simulator: Simulator, theta: Tensor, x: Data, values: Tensor) -> None:
    """The order of `exchangeable` points must not matter."""
    names = [name for name in getattr(simulator, "exchangeable", ()) if name in x]
    if not names:
        return
    turned = dict(x)
    for name in names:
        size = x[names[0]].shape[1]
        turned[name] = x[name].flip([1, 2] if x[name].shape[1:] == (size, size) else [1])
    again = _value(simulator, theta, turned).detach()
    if not bool(torch.isclose(again, values.detach(), rtol=NEAR_SHARE, atol=NEAR, equal_nan=True).all()):
        raise InputError(
            f"simulator {simulator.name!r}: log_likelihood changes with the order of points that are declared `exchangeable`"
        )


def need_gradient(simulator: Simulator, theta: Tensor, x: Data) -> None:
    """Refuse a likelihood without a gradient: objectives elbo and iwelbo and refinement climb it."""
    at = theta.detach().clone().requires_grad_()
    with torch.enable_grad():
        values = _value(simulator, at, x)
        if not values.requires_grad:
            raise InputError(
                f"simulator {simulator.name!r}: log_likelihood has no gradient with theta, which objectives elbo and iwelbo and the "
                "refinement of `infer` climb: write it in torch, without .numpy(), .item() or .detach()"
            )
        usable = torch.where(values.isfinite(), values, 0.0)
        (slope,) = torch.autograd.grad(usable.sum(), at)
    bad = slope.isnan().any(-1)
    if bool(bad.any()):
        raise InputError(
            f"simulator {simulator.name!r}: the gradient of log_likelihood is NaN at theta = ({numbers(theta[bad][0])}): "
            "torch.where keeps the NaN of the side that is not taken"
        )
