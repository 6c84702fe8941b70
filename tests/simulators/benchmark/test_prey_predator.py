"""Prey and predators against scipy, the conserved quantity, and finite differences."""

from __future__ import annotations

import numpy as np
import torch
from scipy.integrate import solve_ivp

from simulators.benchmark.prey_predator import DRIFTS, KICKS, solve_prey_predator

ARGUMENTS = torch.tensor([[0.9, 0.5], [0.9, 1.2], [0.4, 1.0], [-3.0, -2.0]], dtype=torch.float64)


def solve(arguments: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    return solve_prey_predator(*arguments, interval=2.0, count=4, steps=steps)


def error(steps: int) -> float:
    p, q = solve(ARGUMENTS, steps)
    worst = 0.0
    for k, (a, c, p0, q0) in enumerate(ARGUMENTS.T.tolist()):
        exact = solve_ivp(
            lambda _, y, a=a, c=c: [a - np.exp(y[1]), np.exp(y[0]) - c],
            (0, 6), (p0, q0), method="DOP853", t_eval=[0, 2, 4, 6], rtol=1e-12, atol=1e-12,
        )  # fmt: skip
        worst = max(worst, float((torch.stack([p[k], q[k]]) - torch.from_numpy(exact.y)).abs().max()))
    return worst


def test_moves_add_up_to_a_step() -> None:
    assert abs(sum(DRIFTS) - 1) < 1e-15
    assert abs(sum(KICKS) - 1) < 1e-15


def test_the_method_is_of_fourth_order() -> None:
    coarse, fine = error(8), error(16)
    assert fine < 1e-5
    assert 12 < coarse / fine < 22


def test_the_energy_is_conserved() -> None:
    a, c, _, _ = ARGUMENTS[:, :, None]
    p, q = solve(ARGUMENTS, 30)
    energy = p.exp() - c * p + q.exp() - a * q
    torch.testing.assert_close(energy, energy[:, :1].expand_as(energy), rtol=1e-6, atol=1e-6)


def test_derivatives_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda z: solve(z, 3), ARGUMENTS.clone().requires_grad_())
