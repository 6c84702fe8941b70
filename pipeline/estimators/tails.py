r"""Conditional sinh-arcsinh map: skewness and tail weight of each marginal, given x.

A spline on [-B, B] maps onto [-B, B]: to reach far out on one side it has to reach as far on the other. Real
posteriors do the one and not the other: the logarithm of an amplitude that may vanish has a tail to the left.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from nflows.transforms.base import Transform
from torch import Tensor, nn

MAX_SKEW = 2.0
MAX_LOG_WEIGHT = 1.0


class ConditionalTails(Transform):
    r"""u = sinh( (arcsinh(y) + e(c)) w(c) ), elementwise; the identity where e = 0 and w = 1.

    Jones and Pewsey 2009, Sinh-arcsinh distributions, https://doi.org/10.1093/biomet/asp053. e > 0 draws the
    right tail out and the left one in; w > 1 makes both heavier. |e| < 2 and 1/2.7 < w < 2.7: nothing
    overflows in float32.

    Args:
        dimension: D.
        context: size of c.
        hidden: width of the network for e and w.
    """

    def __init__(self, dimension: int, context: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, 2 * dimension)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(context, hidden), nn.SiLU(), last)

    def _coefficients(self, context: Tensor) -> tuple[Tensor, Tensor]:
        skew, log_weight = self.network(context).chunk(2, dim=-1)
        return MAX_SKEW * torch.tanh(skew / MAX_SKEW), MAX_LOG_WEIGHT * torch.tanh(log_weight / MAX_LOG_WEIGHT)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u -> y, and log |dy/du|."""
        skew, log_weight = self._coefficients(cast(Tensor, context))
        z = torch.asinh(inputs)
        y_angle = z * torch.exp(-log_weight) - skew
        y = torch.sinh(y_angle)
        # dy/du = cosh(arcsinh(y)) / (w cosh(arcsinh(u)))
        return y, (_log_cosh(y_angle) - log_weight - _log_cosh(z)).sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """y -> u, and log |du/dy|."""
        skew, log_weight = self._coefficients(cast(Tensor, context))
        y_angle = torch.asinh(inputs)
        z = (y_angle + skew) * torch.exp(log_weight)
        return torch.sinh(z), (_log_cosh(z) + log_weight - _log_cosh(y_angle)).sum(-1)


def _log_cosh(z: Tensor) -> Tensor:
    return z.abs() + F.softplus(-2 * z.abs()) - math.log(2)
