r"""Conditional normalizing flow on R^D: an inner transform by name, an affine map and one for the tails.

    noise -> inner transform (context) -> y = m(context) + L(context) v -> u = tails(y, context)

The affine map carries location, scale and linear correlations of the posterior, so that the inner transform
sees a target of order one however narrow the posterior is against the prior. Components on a circle have maps
of their own (`circular`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from nflows.transforms.base import CompositeTransform, Transform
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.estimators.affine import ConditionalAffine
from pipeline.estimators.base import Base, base_distribution
from pipeline.estimators.coupling import SplineCouplings
from pipeline.estimators.tails import ConditionalTails
from pipeline.settings import FlowSettings


class ConditionalFlow(nn.Module):
    """Density of u (..., N, D) given context (N, C): what depends on the context alone is computed N times.

    Args:
        dimension: D.
        context: C.
        settings: kind, sizes and base.
        periodic: for each component, whether it is an angle in [-pi, pi); none by default.

    Raises:
        InputError: a kind that has no circular form, with a periodic component.
    """

    def __init__(self, dimension: int, context: int, settings: FlowSettings, *, periodic: Sequence[bool] = ()) -> None:
        super().__init__()
        self.dimension = dimension
        self.base: Base = base_distribution(dimension, settings)
        if any(periodic):
            from pipeline.estimators.circular import CircularBase, circular_layers

            if settings.kind != "coupling":
                raise InputError(f"train.flow.kind: {settings.kind} has no form for periodic parameters; use coupling")
            layers: list[Transform] = [RowByRow(layer) for layer in circular_layers(periodic, context, settings)]
            self.base = CircularBase(tuple(periodic), base_distribution(dimension - sum(periodic), settings))
        else:
            layers = [
                ConditionalTails(dimension, context, settings.hidden),
                ConditionalAffine(dimension, context, settings.hidden),
                inner_transform(dimension, context, settings),
            ]
        self.layers = nn.ModuleList(layers)

    def noise(self, count: int, *, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Draws of the base distribution, (count, D): what `sample_and_log_prob` transforms."""
        return self.base.noise(count, generator=generator, device=device, dtype=dtype)

    def log_prob(self, u: Tensor, context: Tensor, *, base_scale: float = 1.0) -> Tensor:
        r"""$\log q(u|c) = \log p_b(f(u)) + \log |\det df/du|$, (..., N), $p_b$ the base with scale b = `base_scale`.

        b > 1 is the same flow with wider tails: a defensive proposal where q's are too light.
        """
        noise, log_det = self.to_noise(u, context)
        return self.base.log_prob(noise, base_scale) + log_det

    def to_noise(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """f(u), and log |det df/du|."""
        total: Tensor | float = 0.0
        for layer in self.layers:
            u, log_det = layer(u, context)
            total = total + log_det
        return u, cast(Tensor, total)

    def sample_and_log_prob(self, noise: Tensor, context: Tensor, *, base_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """u and log q(u given c) from noise (..., N, D) of the base, differentiable in the flow's parameters."""
        u = noise = self.base.widen(noise, base_scale)
        total: Tensor | float = 0.0
        for layer in reversed(self.layers):
            u, log_det = cast(Any, layer).inverse(u, context)
            total = total + log_det
        return u, self.base.log_prob(noise, base_scale) - total


class RowByRow(Transform):
    """A transform that wants one context for each row of its inputs: (M, D) with (M, C)."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._apply_to(self.transform, inputs, cast(Tensor, context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._apply_to(self.transform.inverse, inputs, cast(Tensor, context))

    def _apply_to(self, transform: object, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        repeated = context.expand(*inputs.shape[:-1], -1).reshape(-1, context.shape[-1])
        outputs, log_det = transform(inputs.reshape(-1, inputs.shape[-1]), repeated)  # pyright: ignore[reportCallIssue]
        return outputs.view(inputs.shape), log_det.view(inputs.shape[:-1])


def inner_transform(dimension: int, context: int, settings: FlowSettings) -> Transform:
    """The transform next to the base, of the kind that the settings name; from u to noise."""
    if settings.kind == "coupling":
        return SplineCouplings(dimension, context, settings)
    if settings.kind == "autoregressive":
        from pipeline.estimators.autoregressive import autoregressive_layers

        return RowByRow(CompositeTransform(autoregressive_layers(dimension, context, settings)))
    from pipeline.estimators.zuko_transform import ZukoTransform

    return RowByRow(ZukoTransform(dimension, context, settings))
