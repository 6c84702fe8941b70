r"""Coupling layers for angles, alone or beside real components: circular rational-quadratic splines.

Rezende et al. 2020, Normalizing Flows on Tori and Spheres, https://arxiv.org/abs/2002.02428.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from nflows.nn.nets import ResidualNet
from nflows.transforms.base import Transform
from torch import Tensor

from pipeline.estimators.spline import rational_quadratic_spline
from pipeline.settings import FlowSettings


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


class CircularCoupling(Transform):
    """Coupling layer of rational-quadratic splines, circular for angles and linear-tailed for real components.

    The network sees the context, the passing real components, and (cos, sin) of the passing angles. For each
    transformed angle it also gives a rotation, so that no point of the circle is fixed.

    Args:
        periodic: for each component, whether it is an angle.
        transformed: for each component, whether this layer transforms it.
        context: size of c.
        settings: sizes.
    """

    def __init__(
        self, periodic: Sequence[bool], transformed: Sequence[bool], context: int, settings: FlowSettings
    ) -> None:
        super().__init__()
        kinds = list(zip(periodic, transformed, strict=True))
        self.seen_real, self.seen_angles, self.real, self.angles = (
            [d for d, kind in enumerate(kinds) if kind == wanted]
            for wanted in ((False, False), (True, False), (False, True), (True, True))
        )
        self.bins, self.bound = settings.bins, settings.tail_bound
        self.scale = 1 / math.sqrt(settings.hidden)
        self.sizes = [len(self.real) * (3 * self.bins - 1), len(self.angles) * (3 * self.bins + 2)]
        self.network = ResidualNet(
            len(self.seen_real) + 2 * len(self.seen_angles),
            sum(self.sizes),
            hidden_features=settings.hidden,
            context_features=context,
            num_blocks=settings.blocks,
            activation=F.silu,
        )

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._couple(inputs, context, inverse=True)

    def _couple(self, inputs: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        angles = inputs[:, self.seen_angles]
        seen = torch.cat([inputs[:, self.seen_real], torch.cos(angles), torch.sin(angles)], dim=1)
        real, circular = self.network(seen, context).split(self.sizes, dim=1)
        outputs = inputs.clone()
        log_det = torch.zeros_like(inputs[:, 0])
        if self.real:
            part, log_slope = self._spline(inputs[:, self.real], real, inverse=inverse)
            outputs[:, self.real] = part
            log_det = log_det + log_slope
        if self.angles:
            count = len(self.angles)
            turns, splines = circular.split([2 * count, self.sizes[1] - 2 * count], dim=1)
            rotation = torch.atan2(turns[:, :count], 1 + turns[:, count:])
            part = inputs[:, self.angles] if inverse else wrap(inputs[:, self.angles] - rotation)
            part, log_slope = self._spline(part, splines, inverse=inverse, periodic=True)
            outputs[:, self.angles] = wrap(part + rotation) if inverse else part
            log_det = log_det + log_slope
        return outputs, log_det

    def _spline(
        self, inputs: Tensor, parameters: Tensor, *, inverse: bool, periodic: bool = False
    ) -> tuple[Tensor, Tensor]:
        outputs, log_slope = rational_quadratic_spline(
            inputs,
            parameters.view(*inputs.shape, -1),
            inverse=inverse,
            bound=math.pi if periodic else self.bound,
            scale=self.scale,
            periodic=periodic,
        )
        return outputs, log_slope.sum(-1)
