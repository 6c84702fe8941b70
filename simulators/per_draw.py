"""A function of one theta as a batched simulator: failures are kept row by row, and every draw has a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulators.failures import Failure, FailureCode, SimulationError
from simulators.protocol import Data, Observable

OneDraw = Callable[[np.ndarray, int], Mapping[str, Any]]
"""theta (D,) in float64 and a seed give one array an observable."""


def simulate_each(
    one: OneDraw, theta: Tensor, observables: Sequence[Observable], *, generator: torch.Generator
) -> tuple[Data, dict[int, Failure]]:
    """x of N draws by N calls, and why some of them failed; x of those is NaN.

    A draw whose function raises has failed: `SimulationError` says how, any other exception stands for itself.

    Args:
        one: simulates one draw; the seed is its only source of random numbers.
        theta: (N, D).
        observables: what each call must give, of the shapes declared.
        generator: source of the N seeds, all drawn before the first call.
    """
    seeds = torch.randint(2**63 - 1, (len(theta),), generator=generator, device=generator.device).tolist()
    x = {o.name: np.full((len(theta), *o.shape), np.nan) for o in observables}
    failures: dict[int, Failure] = {}
    for row, (values, seed) in enumerate(zip(theta.cpu().double().numpy(), seeds, strict=True)):
        try:
            drawn = one(values, seed)
            arrays = {o.name: _of_shape(drawn, o) for o in observables}
        except SimulationError as error:
            failures[row] = error.failure
            continue
        except Exception as error:
            failures[row] = Failure(FailureCode.EXCEPTION, f"{type(error).__name__}: {error}")
            continue
        for name, array in arrays.items():
            x[name][row] = array
    return {k: torch.from_numpy(v).to(theta.device) for k, v in x.items()}, failures


def _of_shape(drawn: Mapping[str, Any], observable: Observable) -> np.ndarray:
    if observable.name not in drawn:
        raise SimulationError(FailureCode.OUTPUT, f"no {observable.name!r} among {', '.join(drawn) or 'nothing'}")
    array = np.asarray(drawn[observable.name], dtype=np.float64)
    if array.shape != observable.shape:
        raise SimulationError(
            FailureCode.OUTPUT, f"{observable.name!r} has shape {array.shape}, expected {observable.shape}"
        )
    return array
