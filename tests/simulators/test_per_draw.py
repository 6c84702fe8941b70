"""A function of one theta: rows in order, own seeds, failures by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from simulators.failures import FailureCode, SimulationError
from simulators.per_draw import simulate_each
from simulators.protocol import Observable

OBSERVABLES = (Observable("a", (2,)), Observable("b", ()))
THETA = torch.arange(12, dtype=torch.float64).reshape(6, 2)


def noisy(theta: np.ndarray, seed: int) -> dict[str, Any]:
    return {"a": theta + np.random.default_rng(seed).normal(size=2), "b": theta[0]}


def draw(one: Any, rows: slice = slice(None)) -> tuple[dict[str, torch.Tensor], dict]:
    return simulate_each(one, THETA[rows], OBSERVABLES, generator=torch.Generator().manual_seed(3))


def test_rows_are_in_order_and_every_draw_has_its_own_seed() -> None:
    x, failures = draw(noisy)
    assert not failures
    assert torch.equal(x["b"], THETA[:, 0])
    noise = (x["a"] - THETA).flatten()
    assert len(torch.unique(noise)) == 12
    assert torch.equal(draw(noisy)[0]["a"], x["a"])


def test_a_draw_that_fails_leaves_the_others_as_they_are() -> None:
    whole, _ = draw(noisy)

    def fragile(theta: np.ndarray, seed: int) -> dict[str, Any]:
        match int(theta[0]):
            case 2:
                raise ZeroDivisionError("by zero")
            case 4:
                raise SimulationError(FailureCode.TIME_LIMIT, "too slow")
            case 6:
                return {"a": np.zeros(3), "b": 0.0}
            case 8:
                return {"b": 0.0}
        return noisy(theta, seed)

    x, failures = draw(fragile)
    assert {k: f.code for k, f in failures.items()} == {
        1: FailureCode.EXCEPTION,
        2: FailureCode.TIME_LIMIT,
        3: FailureCode.OUTPUT,
        4: FailureCode.OUTPUT,
    }
    assert failures[1].reason == "ZeroDivisionError: by zero"
    assert "expected (2,)" in failures[3].reason
    assert bool(x["a"][1:5].isnan().all())
    for row in (0, 5):
        assert torch.equal(x["a"][row], whole["a"][row])


def test_codes_have_words() -> None:
    assert len({code.words for code in FailureCode}) == len(FailureCode)
