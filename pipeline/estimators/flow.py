r"""Conditional normalizing flow on R^D: an inner transform by name, an affine map and one for the tails.

    noise -> inner transform (context) -> y = m(context) + L(context) v -> u = tails(y, context)

The affine map carries location, scale and linear correlations of the posterior, so that the inner transform
sees a target of order one however narrow the posterior is against the prior. Components on a circle have maps
of their own (`circular`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from nflows.nn.nets import ResidualNet
from nflows.transforms.base import CompositeTransform, Transform
from nflows.transforms.permutations import ReversePermutation
from torch import Tensor, nn

from pipeline.config import FlowSettings
from pipeline.errors import InputError
from pipeline.estimators.affine import ConditionalAffine
from pipeline.estimators.base import Base, base_distribution
from pipeline.estimators.spline import SplineCoupling
from pipeline.estimators.tails import ConditionalTails


class ConditionalFlow(nn.Module):
    """Density of u (M, D) given context (M, C).

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
            layers = circular_layers(periodic, context, settings)
            self.base = CircularBase(tuple(periodic), base_distribution(dimension - sum(periodic), settings))
        else:
            layers = [
                ConditionalTails(dimension, context, settings.hidden),
                ConditionalAffine(dimension, context, settings.hidden),
                *inner_layers(dimension, context, settings),
            ]
        self.transform = CompositeTransform(layers)

    def noise(self, count: int, *, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Draws of the base distribution, (count, D): what `sample_and_log_prob` transforms."""
        return self.base.noise(count, generator=generator, device=device, dtype=dtype)

    def log_prob(self, u: Tensor, context: Tensor, *, base_scale: float = 1.0) -> Tensor:
        r"""$\log q(u|c) = \log p_b(f(u)) + \log |\det df/du|$, (M,), $p_b$ the base with scale b = `base_scale`.

        b > 1 is the same flow with wider tails: a defensive proposal where q's are too light.
        """
        noise, log_det = self.transform(u, context)
        return self.base.log_prob(noise, base_scale) + log_det

    def sample_and_log_prob(self, noise: Tensor, context: Tensor, *, base_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """u and log q(u given c) from noise (M, D) of the base, differentiable in the flow's parameters."""
        noise = self.base.widen(noise, base_scale)
        u, log_det = self.transform.inverse(noise, context)
        return u, self.base.log_prob(noise, base_scale) - log_det


def inner_layers(dimension: int, context: int, settings: FlowSettings) -> list[Transform]:
    """The transforms next to the base, of the kind that the settings name; from u to noise."""
    if settings.kind == "coupling":
        return coupling_layers(dimension, context, settings)
    if settings.kind == "autoregressive":
        from pipeline.estimators.autoregressive import autoregressive_layers

        return autoregressive_layers(dimension, context, settings)
    from pipeline.estimators.zuko_transform import ZukoTransform

    return [ZukoTransform(dimension, context, settings)]


def coupling_layers(dimension: int, context: int, settings: FlowSettings) -> list[Transform]:
    """nflows' coupling layers of rational-quadratic splines, each half of the components in turn."""
    layers: list[Transform] = []
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
    return layers
