r"""Conditional affine map: location, scale and linear correlations of u, given x."""

from __future__ import annotations

from typing import cast

import torch
from nflows.transforms.base import Transform
from torch import Tensor, nn


class ConditionalAffine(Transform):
    r"""u = m(c) + L(c) v, L lower triangular with positive diagonal; inputs (..., N, D) with context (N, C).

    Args:
        dimension: D.
        context: size of c.
        hidden: width of the network for m and L.
    """

    def __init__(self, dimension: int, context: int, hidden: int) -> None:
        super().__init__()
        self.dimension = dimension
        below = torch.tril_indices(dimension, dimension, -1)
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", below[0])
        self.register_buffer("columns", below[1])
        last = nn.Linear(hidden, 2 * dimension + below.shape[1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(context, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)
        # what is linear in the context, as in every Gaussian model, costs the network nothing
        self.linear = nn.Linear(context, dimension, bias=False)
        nn.init.zeros_(self.linear.weight)

    def _coefficients(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (N, D), log diagonal (N, D), L (N, D, D)."""
        d = self.dimension
        mean, log_diagonal, below = self.network(context).split([d, d, len(self.rows)], dim=-1)
        mean = mean + self.linear(context)
        # at most a factor e^8 each way: an untrained network cannot overflow
        log_diagonal = 8 * torch.tanh(log_diagonal / 8)
        lower = torch.diag_embed(log_diagonal.exp())
        lower = lower.index_put(
            (torch.arange(len(lower), device=lower.device)[:, None], self.rows, self.columns), below
        )
        return mean, log_diagonal, lower

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u -> v, and log |dv/du|."""
        mean, log_diagonal, lower = self._coefficients(cast(Tensor, context))
        v = torch.linalg.solve_triangular(lower, _columns(inputs - mean), upper=False)
        return _rows(v, inputs), -log_diagonal.sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """v -> u, and log |du/dv|."""
        mean, log_diagonal, lower = self._coefficients(cast(Tensor, context))
        return mean + _rows(lower @ _columns(inputs), inputs), log_diagonal.sum(-1)


def _columns(rows: Tensor) -> Tensor:
    """(N, D) -> (N, D, 1) and (..., N, D) -> (N, D, K): each observation's draws as columns, for its one matrix."""
    return rows[..., None] if rows.dim() == 2 else rows.flatten(0, -3).permute(1, 2, 0)


def _rows(columns: Tensor, like: Tensor) -> Tensor:
    return columns[..., 0] if like.dim() == 2 else columns.permute(2, 0, 1).reshape(like.shape)
