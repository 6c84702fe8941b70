r"""Conditional normalizing flow on R^D: nflows coupling splines, an affine map and one for the tails.

    noise -> spline couplings (context) -> y = m(context) + L(context) v -> u = tails(y, context)

The affine map carries location, scale and linear correlations of the posterior, so that the splines see a
target of order one however narrow the posterior is against the prior.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from nflows.nn.nets import ResidualNet
from nflows.transforms.base import CompositeTransform, Transform
from nflows.transforms.permutations import ReversePermutation
from torch import Tensor, nn

from pipeline.config import FlowSettings
from pipeline.estimators.spline import SplineCoupling
from pipeline.estimators.tails import ConditionalTails


class ConditionalAffine(Transform):
    r"""u = m(c) + L(c) v, L lower triangular with positive diagonal.

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
        v = torch.linalg.solve_triangular(lower, (inputs - mean)[..., None], upper=False)[..., 0]
        return v, -log_diagonal.sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """v -> u, and log |du/dv|."""
        mean, log_diagonal, lower = self._coefficients(cast(Tensor, context))
        return mean + (lower @ inputs[..., None])[..., 0], log_diagonal.sum(-1)


class ConditionalFlow(nn.Module):
    """Density of u (M, D) given context (M, C).

    Args:
        dimension: D.
        context: C.
        settings: sizes.
    """

    def __init__(self, dimension: int, context: int, settings: FlowSettings) -> None:
        super().__init__()
        self.dimension = dimension
        layers: list[Transform] = [
            ConditionalTails(dimension, context, settings.hidden),
            ConditionalAffine(dimension, context, settings.hidden),
        ]
        for i in range(settings.transforms):
            # one parameter alone: all of it is transformed, given the context
            mask = torch.ones(1) if dimension == 1 else (torch.arange(dimension) + i) % 2

            def network(inputs: int, outputs: int) -> nn.Module:
                return ResidualNet(
                    inputs,
                    outputs,
                    hidden_features=settings.hidden,
                    context_features=context,
                    num_blocks=settings.blocks,
                    activation=F.silu,
                )

            layers.append(
                SplineCoupling(mask, network, num_bins=settings.bins, tails="linear", tail_bound=settings.tail_bound)
            )
            if i % 2 and dimension > 2:
                layers.append(ReversePermutation(dimension))
        self.transform = CompositeTransform(layers)

    def log_prob(self, u: Tensor, context: Tensor, *, base_scale: float = 1.0) -> Tensor:
        r"""$\log q(u|c) = \log N(f(u); 0, b^2 I) + \log |\det df/du|$, (M,), b = `base_scale`.

        b > 1 is the same flow with wider tails: a defensive proposal where q's are too light.
        """
        noise, log_det = self.transform(u, context)
        return _normal_log_prob(noise, base_scale) + log_det

    def sample_and_log_prob(self, noise: Tensor, context: Tensor, *, base_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """u and log q(u given c) from standard normal noise (M, D), differentiable in the flow's parameters."""
        noise = base_scale * noise
        u, log_det = self.transform.inverse(noise, context)
        return u, _normal_log_prob(noise, base_scale) - log_det


def _normal_log_prob(noise: Tensor, scale: float) -> Tensor:
    dimension = noise.shape[-1]
    return -0.5 * (noise / scale).square().sum(-1) - dimension * (0.5 * math.log(2 * math.pi) + math.log(scale))
