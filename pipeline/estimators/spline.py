r"""Monotonic rational-quadratic splines with static shapes.

The spline of nflows (Durkan et al. 2019, Neural Spline Flows, https://arxiv.org/abs/1906.04032) selects
the points inside the interval with a boolean mask, which makes shapes depend on data: the GPU waits for the
host and the graph cannot be compiled. Here every point goes through the spline and `where` keeps the tails.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from nflows.transforms.coupling import PiecewiseRationalQuadraticCouplingTransform
from torch import Tensor

MIN_BIN = 1e-3
MIN_DERIVATIVE = 1e-3
# softplus(DERIVATIVE_SHIFT) + MIN_DERIVATIVE = 1: the identity for zero network output, and at the ends
DERIVATIVE_SHIFT = math.log(math.exp(1 - MIN_DERIVATIVE) - 1)


def _knots(unnormalized: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Knot positions (..., K + 1) from -bound to bound, and bin sizes (..., K)."""
    bins = unnormalized.shape[-1]
    sizes = MIN_BIN + (1 - MIN_BIN * bins) * F.softmax(unnormalized, dim=-1)
    inner = 2 * bound * torch.cumsum(sizes, dim=-1)[..., :-1] - bound
    knots = F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
    return knots, knots[..., 1:] - knots[..., :-1]


def rational_quadratic_spline(
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    inverse: bool,
    bound: float,
    periodic: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Spline on [-bound, bound], identity outside.

    With $\xi = (x - x_k)/w_k$ and slope $s_k = h_k / w_k$ (Durkan et al. 2019, eqs. 4-6):

    $$ y = y_k + \frac{h_k [s_k \xi^2 + \delta_k \xi(1-\xi)]}{s_k + [\delta_{k+1} + \delta_k - 2 s_k] \xi(1-\xi)} $$

    Args:
        inputs: (...), any real value.
        widths, heights: (..., K), unnormalised bin sizes.
        derivatives: (..., K - 1), unnormalised derivatives at inner knots; those at the ends are 1.
        inverse: solve for x given y.
        bound: half width of the interval.
        periodic: derivatives are (..., K): the first is that at both ends, which are one point of a circle.

    Returns:
        outputs and log |d output / d input|, each (...).
    """
    x_knots, w = _knots(widths, bound)
    y_knots, h = _knots(heights, bound)
    slopes = MIN_DERIVATIVE + F.softplus(derivatives + DERIVATIVE_SHIFT)
    slopes = torch.cat([slopes, slopes[..., :1]], dim=-1) if periodic else F.pad(slopes, (1, 1), value=1.0)
    inside = inputs.abs() <= bound
    v = inputs.clamp(-bound, bound)
    index = (v[..., None] >= (y_knots if inverse else x_knots)[..., 1:-1]).sum(-1, keepdim=True)

    def at(values: Tensor) -> Tensor:
        return values.gather(-1, index)[..., 0]

    x0, y0, wk, hk = at(x_knots), at(y_knots), at(w), at(h)
    d0, d1 = at(slopes), slopes.gather(-1, index + 1)[..., 0]
    s = hk / wk
    curvature = d1 + d0 - 2 * s
    if inverse:
        dy = v - y0
        a = dy * curvature + hk * (s - d0)
        b = hk * d0 - dy * curvature
        c = -s * dy
        # rounding can make the discriminant negative by 1e-7; it is positive in exact arithmetic
        discriminant = (b * b - 4 * a * c).clamp_min(torch.finfo(v.dtype).tiny)
        xi = (2 * c / (-b - discriminant.sqrt())).clamp(0, 1)
        outputs = x0 + xi * wk
    else:
        xi = ((v - x0) / wk).clamp(0, 1)
        outputs = v
    overlap = xi * (1 - xi)
    denominator = s + curvature * overlap
    if not inverse:
        outputs = y0 + hk * (s * xi * xi + d0 * overlap) / denominator
    numerator = d1 * xi * xi + 2 * s * overlap + d0 * (1 - xi) * (1 - xi)
    log_slope = 2 * torch.log(s) + torch.log(numerator) - 2 * torch.log(denominator)
    if inverse:
        log_slope = -log_slope
    return torch.where(inside, outputs, inputs), torch.where(inside, log_slope, 0.0)


class SplineCoupling(PiecewiseRationalQuadraticCouplingTransform):
    """nflows' rational-quadratic coupling layer with the static-shape spline; linear tails."""

    def _piecewise_cdf(self, inputs: Tensor, transform_params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        scale = 1 / math.sqrt(self.transform_net.hidden_features)
        return rational_quadratic_spline(
            inputs,
            transform_params[..., : self.num_bins] * scale,
            transform_params[..., self.num_bins : 2 * self.num_bins] * scale,
            transform_params[..., 2 * self.num_bins :],
            inverse=inverse,
            bound=self.tail_bound,
        )
