r"""Autoregressive rational-quadratic splines, the other way round: one pass samples, D passes give a density.

    u_i = spline(noise_i; c, noise_1 .. noise_{i-1})

An inverse autoregressive flow (Kingma et al. 2016, https://arxiv.org/abs/1606.04934) with the splines of Durkan
et al. 2019 (https://arxiv.org/abs/1906.04032). ELBO objectives draw and need log q of the draw: one pass, and
D more for a path gradient. forward_kl needs D passes.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from nflows.transforms.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressiveTransform
from nflows.transforms.base import InverseTransform, Transform
from nflows.transforms.permutations import ReversePermutation
from torch import Tensor

from pipeline.estimators.spline import rational_quadratic_spline
from pipeline.settings import FlowSettings


class SplineAutoregressive(MaskedPiecewiseRationalQuadraticAutoregressiveTransform):
    """nflows' autoregressive spline layer with the static-shape spline; linear tails.

    Args:
        dimension: D.
        context: C.
        settings: sizes.
    """

    def __init__(self, dimension: int, context: int, settings: FlowSettings) -> None:
        super().__init__(
            features=dimension,
            hidden_features=settings.hidden,
            context_features=context,
            num_bins=settings.bins,
            tails="linear",
            tail_bound=settings.tail_bound,
            num_blocks=settings.blocks,
            activation=F.silu,
        )
        # softmax inputs of order one from a wide network, as in the coupling layers
        self.scale = 1 / math.sqrt(settings.hidden)

    def _elementwise(
        self, inputs: Tensor, autoregressive_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        parameters = autoregressive_params.view(*inputs.shape, 3 * self.num_bins - 1)
        outputs, log_slope = rational_quadratic_spline(
            inputs, parameters, inverse=inverse, bound=self.tail_bound, scale=self.scale
        )
        return outputs, log_slope.sum(-1)


def autoregressive_layers(dimension: int, context: int, settings: FlowSettings) -> list[Transform]:
    """Layers from u to noise, the order of the components reversed between them."""
    layers: list[Transform] = []
    for i in range(settings.transforms):
        if i and dimension > 1:
            layers.append(ReversePermutation(dimension))
        layers.append(InverseTransform(SplineAutoregressive(dimension, context, settings)))
    return layers
