"""A simulator's random numbers, conditions and inputs of the network, tried on a few rows.

What a call returns is checked at each call (`simulators.protocol`); here is what only several calls
show.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.rng import generator
from simulators.protocol import Data, Simulator, context_of, data_observables, network_features, pilot_of, simulate

GLOBALS = ("torch's", "NumPy's", "Python's")
"""Global generators: torch.manual_seed, numpy.random.seed and random.seed set them."""
BATCH_SHARE = 1e-2
"""Of a column's spread, by which features may differ between a batch and alone: float32 fits."""


@contextmanager
def global_seeds(seeds: tuple[int, int, int]) -> Iterator[None]:
    """The global generators of torch, NumPy and Python with these seeds, and back on the way out."""
    numpys, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002 - the legacy one is meant
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeds[0])
        np.random.set_state(np.random.RandomState(seeds[1]).get_state())  # noqa: NPY002
        random.seed(seeds[2])
        try:
            yield
        finally:
            np.random.set_state(numpys)  # noqa: NPY002
            random.setstate(pythons)


def need_one_stream(simulator: Simulator, theta: Tensor, *, seed: int) -> None:
    """Refuse data that depend on more than theta, context and the state of `generator`.

    Two calls with one state of the generator, and other states of the global ones, must agree; two
    rows with one theta must not.

    Args:
        theta: (N, D), N = 2 is enough.
    """

    def draw(seeds: tuple[int, int, int], number: int = 0) -> Data:
        with global_seeds(seeds):
            return simulate(simulator, theta, generator=generator(seed, "contract", number, device=theta.device))

    first = draw((1, 1, 1))
    if (other := _differing(first, draw((2, 2, 2)))) is None:
        _need_noise_of_each_row(simulator, theta, seed)
        return
    changed = [g for i, g in enumerate(GLOBALS) if _differing(first, draw(_only(i))) is not None]
    steady = _differing(first, draw((1, 1, 1))) is None
    source = (
        f"{' and '.join(changed)} global generator" if steady and changed else "a generator of its own, or the clock"
    )
    raise InputError(
        f"simulator {simulator.name!r}: {other!r} differs between two calls of simulate with one state of `generator`: it draws from "
        f"{source}; take every random number from `generator` (a seed for others: torch.randint(2**62, (), generator=generator))"
    )


def _only(place: int) -> Any:
    return tuple(2 if i == place else 1 for i in range(len(GLOBALS)))


def _differing(x: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """The first observable that differs by more than rounding."""
    for name, values in x.items():
        scale = values.abs().nan_to_num(0.0, posinf=0.0).max() if values.numel() else 0.0
        if not torch.allclose(values, other[name], rtol=1e-5, atol=1e-6 * float(scale), equal_nan=True):
            return name
    return None


def _need_noise_of_each_row(simulator: Simulator, theta: Tensor, seed: int) -> None:
    """Refuse noise that all rows of a call share; no noise at all is the simulator's own affair."""
    same = theta[:1].expand(2, -1)
    context = context_of(
        simulator, simulate(simulator, theta[:1], generator=generator(seed, "contract", device=theta.device))
    )
    repeated = {k: v.expand(2, *v.shape[1:]) for k, v in context.items()} or None
    one, two = (
        simulate(simulator, same, repeated, generator=generator(seed, "contract", n, device=theta.device))
        for n in (1, 2)
    )
    for o in data_observables(simulator):
        values = one[o.name]
        whole = torch.equal(values, values.round())  # whole numbers may agree by chance
        if not whole and not torch.equal(values[0], values[1]) and torch.equal(values, two[o.name]):
            raise InputError(
                f"simulator {simulator.name!r}: the noise of {o.name!r} is the same for two states of `generator`: it has a seed of its own; "
                "take every random number from `generator`"
            )
        if not whole and torch.equal(values[0], values[1]) and not torch.equal(values[0], two[o.name][0]):
            raise InputError(
                f"simulator {simulator.name!r}: {o.name!r} of two rows with the same theta is the same: draw noise for each of the N rows"
            )


def need_context_kept(simulator: Simulator, theta: Tensor, x: Mapping[str, Tensor], *, seed: int) -> None:
    """Refuse a simulator that draws observing conditions anew where they are given: replicates need those.

    Args:
        theta, x: of the same N rows.
    """
    context = context_of(simulator, x)
    if not context:
        return
    again = simulate(simulator, theta, context, generator=generator(seed, "contract", device=theta.device))
    if (name := _differing(context, again)) is not None:
        raise InputError(
            f"simulator {simulator.name!r}: simulate was given {name!r} and returned another: use the context that it is given"
        )


def need_steady_inputs(simulator: Simulator, x: Data, *, dimension: int) -> Tensor:
    """Features of x (N, F), or a refusal: not finite, of other rows, or x changed by them or the pilot.

    Args:
        dimension: numbers in the unconstrained theta.
    """
    features = unchanged(simulator, "features", x, lambda: network_features(simulator, x))
    if not bool(features.isfinite().all()):
        raise InputError(f"simulator {simulator.name!r}: features of simulated data are not finite")
    alone = network_features(simulator, {k: v[:1] for k, v in x.items()})
    if alone.shape[1:] != features.shape[1:]:
        raise InputError(
            f"simulator {simulator.name!r}: features gave {features.shape[1]} numbers a row for {len(features)} rows and {alone.shape[1]} for one"
        )
    _need_near(
        simulator, "features", alone[0], features[0], features.double().std(0) if len(features) > 1 else features[0]
    )
    guess = unchanged(simulator, "pilot", x, lambda: pilot_of(simulator, x, dimension=dimension))
    if guess is not None:
        one = pilot_of(simulator, {k: v[:1] for k, v in x.items()}, dimension=dimension)
        assert one is not None
        for value, single in zip(guess, one, strict=True):
            _need_near(simulator, "pilot", single[0], value[0], guess[1][0])
    return features


def _need_near(simulator: Simulator, method: str, alone: Tensor, together: Tensor, spread: Tensor) -> None:
    apart = (alone.double() - together.double()).abs()
    size = together.double().abs()
    near = apart <= BATCH_SHARE * spread.double().abs() + 1e-5 * size + 1e-9 * size.max()
    if not bool(near.all()):  # NaN is not near
        raise InputError(
            f"simulator {simulator.name!r}: {method} of a row depend on the other rows of x: let each row stand by itself"
        )


def unchanged(simulator: Simulator, method: str, x: Mapping[str, Tensor], ask: Callable[[], Any]) -> Any:
    """What `ask` gives, or a refusal where x is another after it, also through NumPy."""
    before = {k: v.clone() for k, v in x.items()}
    answer = ask()
    for name, values in before.items():
        if not torch.equal(values, x[name]):
            raise InputError(
                f"simulator {simulator.name!r}: {method} changes {name!r} in place, which others read after it: work on a copy"
            )
    return answer
