r"""Coupling layers of rational-quadratic splines: each half of the components in turn, given the other and x.

Durkan et al. 2019, Neural Spline Flows, https://arxiv.org/abs/1906.04032, as nflows has them, but for what costs
time: the networks of all layers read the context through one matrix, once for all draws of an observation, and the
halves stay apart between layers instead of being written into a common array.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from nflows.transforms.base import Transform
from torch import Tensor, nn

from pipeline.estimators.spline import rational_quadratic_spline
from pipeline.settings import FlowSettings


class Conditioner(nn.Module):
    r"""Parameters of a layer's splines: $h_0 = A a + C c$, $h_{i+1} = h_i + W_i\, \mathrm{silu}(h_i)$, last linear.

    Args:
        seen: components a that it reads.
        outputs: numbers it gives.
        hidden: width of h.
        blocks: number of W_i.
    """

    def __init__(self, seen: int, outputs: int, *, hidden: int, blocks: int) -> None:
        super().__init__()
        self.seen = nn.Linear(seen, hidden, bias=False) if seen else None
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.last = nn.Linear(hidden, outputs)
        nn.init.normal_(self.last.weight, std=0.01)  # near the identity at first
        nn.init.zeros_(self.last.bias)

    def forward(self, seen: Tensor, from_context: Tensor) -> Tensor:
        h = from_context.expand(*seen.shape[:-1], -1) if self.seen is None else self.seen(seen) + from_context
        for layer in self.hidden:
            h = h + layer(F.silu(h))
        return self.last(F.silu(h))


class SplineCouplings(Transform):
    """All coupling layers; inputs (..., N, D) with context (N, C).

    Pairs of layers split the components into even and odd ones, then into first and second half, and so on.

    Args:
        dimension: D.
        context: C.
        settings: sizes.
    """

    def __init__(self, dimension: int, context: int, settings: FlowSettings) -> None:
        super().__init__()
        self.bound, self.first = settings.tail_bound, dimension // 2
        count = settings.transforms
        # one parameter alone: all of it is transformed, given the context
        self.turns = [dimension > 1 and i % 2 == 1 for i in range(count)]
        sizes = (self.first, dimension - self.first)
        self.from_context = nn.Linear(context, count * settings.hidden)
        self.conditioners = nn.ModuleList(
            Conditioner(
                sizes[turn],
                sizes[not turn] * (3 * settings.bins - 1),
                hidden=settings.hidden,
                blocks=settings.blocks,
            )
            for turn in self.turns
        )
        odd_even = torch.cat([torch.arange(1, dimension, 2), torch.arange(0, dimension, 2)])
        self.odd_even: Tensor
        self.even_odd: Tensor
        self.register_buffer("odd_even", odd_even, persistent=False)
        self.register_buffer("even_odd", torch.argsort(odd_even), persistent=False)
        self.shuffles = dimension > 2

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u -> noise, and log |d noise / du|."""
        return self._through(inputs, cast(Tensor, context), inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """noise -> u, and log |du / d noise|."""
        return self._through(inputs, cast(Tensor, context), inverse=True)

    def _through(self, inputs: Tensor, context: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        steps = list(enumerate(zip(self.turns, self.conditioners, self._contexts(context), strict=True)))
        halves = list(inputs.tensor_split((self.first,), dim=-1))
        log_det: Tensor = torch.zeros((), dtype=inputs.dtype, device=inputs.device)
        for i, (turn, conditioner, from_context) in reversed(steps) if inverse else steps:
            if not inverse and i % 2 == 0:
                halves = self._shuffle(halves, self.even_odd if i // 2 % 2 else self.odd_even)
            parameters = conditioner(halves[turn], from_context)
            target = halves[not turn]
            halves[not turn], log_slope = rational_quadratic_spline(
                target, parameters.unflatten(-1, (target.shape[-1], -1)), inverse=inverse, bound=self.bound
            )
            log_det = log_det + log_slope.sum(-1)
            if inverse and i % 2 == 0:
                halves = self._shuffle(halves, self.odd_even if i // 2 % 2 else self.even_odd)
        return torch.cat(halves, dim=-1), log_det

    def _contexts(self, context: Tensor) -> tuple[Tensor, ...]:
        """What each layer's network adds for x, (N, hidden)."""
        return self.from_context(context).chunk(len(self.turns), dim=-1)

    def _shuffle(self, halves: list[Tensor], order: Tensor) -> list[Tensor]:
        if not self.shuffles:
            return halves
        return list(torch.cat(halves, dim=-1).index_select(-1, order).tensor_split((self.first,), dim=-1))
