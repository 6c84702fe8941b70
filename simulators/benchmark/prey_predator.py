r"""Batched solution of the equations of prey and predators, which are those of an epidemic too.

In logarithms P, Q (prey and predators, each in units in which the other feels one of it as the rate 1)

    dP/dt = a - exp(Q),    dQ/dt = exp(P) - c,    H = exp(P) - c P + exp(Q) - a Q is conserved

Lotka-Volterra is P = log(delta prey), Q = log(beta predators); the SIR epidemic is a = 0, c = gamma,
P = log(beta S), Q = log(beta I). Each right side depends on the other variable alone, so that a splitting
method moves P and Q in turn, exactly, with one exponential a move. The one used is symplectic, of fourth
order with six stages (S. Blanes and P. C. Moan 2002, J. Comput. Appl. Math. 142, 313,
https://doi.org/10.1016/S0377-0427(01)00492-7): at equal error half the cost of a Runge-Kutta step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_DRIFT = (0.0792036964311957, 0.353172906049774, -0.0420650803577195)
_KICK = (0.209515106613362, -0.143851773179818)
DRIFTS = (*_DRIFT, 1 - 2 * sum(_DRIFT), *_DRIFT[::-1])
"""Shares of the step in which Q moves, P held: a_1 .. a_7."""
KICKS = (*_KICK, 0.5 - sum(_KICK), 0.5 - sum(_KICK), *_KICK[::-1])
"""Shares of the step in which P moves, Q held: b_1 .. b_6."""

LARGEST_EXPONENT = 5.0
"""Rates are cut at exp(5) = 148 a unit of time, so that nothing overflows where theta is absurd (derivatives there are
not those of the cut): 4000 draws of the prior of `lotka_volterra` reach 32, and those of `sir` 3."""


def solve_prey_predator(
    growth: Tensor, decay: Tensor, log_prey: Tensor, log_predator: Tensor, *, interval: float, count: int, steps: int
) -> tuple[Tensor, Tensor]:
    r"""P and Q at t = 0, interval, 2 interval, ...: $dP/dt = a - e^Q,\ dQ/dt = e^P - c$.

    Differentiable once: derivatives with respect to the four arguments are carried along in the same sweep,
    which costs a fraction of what recording every step for a backward pass would.

    Args:
        growth: a, (R,).
        decay: c, (R,).
        log_prey: P(0), (R,).
        log_predator: Q(0), (R,).
        interval: time between two outputs.
        count: T, number of outputs, the start included.
        steps: steps of the method in one interval.

    Returns:
        P and Q, (R, T) each.
    """
    arguments = torch.stack([growth, decay, log_prey, log_predator])
    solution = _Solution.apply(arguments, interval, count, steps)
    return solution[0], solution[1]  # pyright: ignore[reportOptionalSubscript]


class _Solution(torch.autograd.Function):
    """Solution (2, R, T) of the arguments (4, R), with its derivatives."""

    @staticmethod
    def forward(ctx: Any, arguments: Tensor, interval: float, count: int, steps: int) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        solution, derivative = _integrate(arguments, interval / steps, count, steps, with_derivative=wanted)
        ctx.save_for_backward(derivative)
        return solution

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (derivative,) = ctx.saved_tensors
        return torch.einsum("krt,kjrt->jr", gradients[0], derivative), None, None, None


def _integrate(
    arguments: Tensor, step: float, count: int, steps: int, *, with_derivative: bool
) -> tuple[Tensor, Tensor | None]:
    r"""(P, Q), (2, R, T), and their derivatives with respect to (a, c, P(0), Q(0)), (2, 4, R, T).

    A move of Q, $Q \leftarrow Q + h a_i (e^P - c)$, takes its derivatives along:
    $\partial Q \leftarrow \partial Q + h a_i (e^P \partial P - \partial c)$; and likewise for P.
    """
    growth, decay = arguments[0].contiguous(), arguments[1].contiguous()
    p, q = arguments[2].clone(), arguments[3].clone()
    rate = torch.empty_like(p)
    dp, dq = arguments.new_zeros(4, len(p)), arguments.new_zeros(4, len(p))
    dp[2], dq[3] = 1.0, 1.0
    dp_growth, dq_decay = dp[0], dq[1]
    solution = arguments.new_empty(count, 2, len(p))
    derivative = arguments.new_empty(count, 2, 4, len(p)) if with_derivative else None
    shared = (DRIFTS[0] + DRIFTS[-1], *DRIFTS[1:-1])  # the last move of a step and the first of the next are one

    def move_q(share: float) -> None:
        h = share * step
        torch.clamp(p, max=LARGEST_EXPONENT, out=rate).exp_()
        q.add_(rate, alpha=h).sub_(decay, alpha=h)
        if with_derivative:
            dq.addcmul_(rate, dp, value=h)
            dq_decay.sub_(h)

    def move_p(share: float) -> None:
        h = share * step
        torch.clamp(q, max=LARGEST_EXPONENT, out=rate).exp_()
        p.sub_(rate, alpha=h).add_(growth, alpha=h)
        if with_derivative:
            dp.addcmul_(rate, dq, value=-h)
            dp_growth.add_(h)

    for output in range(count):
        if output:
            for n in range(steps):
                move_q(shared[0] if n else DRIFTS[0])
                for kick, drift in zip(KICKS[:-1], DRIFTS[1:-1], strict=True):
                    move_p(kick)
                    move_q(drift)
                move_p(KICKS[-1])
            move_q(DRIFTS[-1])
        solution[output, 0], solution[output, 1] = p, q
        if derivative is not None:
            derivative[output, 0], derivative[output, 1] = dp, dq
    return solution.permute(1, 2, 0), None if derivative is None else derivative.permute(1, 2, 3, 0)
