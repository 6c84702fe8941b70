r"""Monotonic rational-quadratic splines with static shapes and a derivative of their own.

The spline of nflows (Durkan et al. 2019, Neural Spline Flows, https://arxiv.org/abs/1906.04032) selects
the points inside the interval with a boolean mask, which makes shapes depend on data: the GPU waits for the
host and the graph cannot be compiled. Here every point goes through the spline and `where` keeps the tails; and the
derivative is written down once instead of being recorded from some fifty operations at every call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_BIN = 1e-3
MIN_DERIVATIVE = 1e-3
# softplus(DERIVATIVE_SHIFT) + MIN_DERIVATIVE = 1: the identity for zero network output, and at the ends
DERIVATIVE_SHIFT = math.log(math.exp(1 - MIN_DERIVATIVE) - 1)


def rational_quadratic_spline(
    inputs: Tensor, parameters: Tensor, *, inverse: bool, bound: float, scale: float = 1.0, periodic: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Spline of K bins on [-bound, bound], identity outside.

    With $\xi = (x - x_k)/w_k$ and slope $s_k = h_k / w_k$ (Durkan et al. 2019, eqs. 4-6):

    $$ y = y_k + \frac{h_k [s_k \xi^2 + \delta_k \xi(1-\xi)]}{s_k + [\delta_{k+1} + \delta_k - 2 s_k] \xi(1-\xi)} $$

    Args:
        inputs: (...), any real value.
        parameters: (..., 3K - 1), unnormalised: K bin widths, K bin heights, K - 1 derivatives at inner knots. Those at
            the ends are 1.
        inverse: solve for x given y.
        bound: half width of the interval.
        scale: factor of the unnormalised widths and heights.
        periodic: parameters are (..., 3K): the first derivative is that at both ends, which are one point of a circle.

    Returns:
        outputs and log |d output / d input|, each (...); differentiable once.
    """
    return _Spline.apply(inputs, parameters, inverse, bound, scale, periodic)  # pyright: ignore[reportReturnType]


def _softmax(values: Tensor) -> Tensor:
    """Over the last dimension. torch's on a CPU takes four to six times as long where that is as short as here."""
    if values.is_cuda:
        return torch.softmax(values, dim=-1)
    exponential = (values - values.amax(-1, keepdim=True)).exp_()
    return exponential.div_(exponential.sum(-1, keepdim=True))


class _Spline(torch.autograd.Function):
    """The spline and its derivative, in the names of `rational_quadratic_spline`."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, inputs: Tensor, parameters: Tensor, inverse: bool, bound: float, scale: float, periodic: bool
    ) -> tuple[Tensor, Tensor]:
        bins = (parameters.shape[-1] + 1) // 3
        share = _softmax((parameters[..., : 2 * bins] * scale).unflatten(-1, (2, bins)))
        sizes = share * (2 * bound * (1 - MIN_BIN * bins)) + 2 * bound * MIN_BIN  # (..., 2, K): widths, heights
        ends = torch.cumsum(sizes, dim=-1).sub_(bound)
        v = inputs.clamp(-bound, bound)
        index = (v[..., None] >= ends[..., int(inverse), :-1]).sum(-1)

        at = index[..., None, None].expand(*index.shape, 2, 1)
        size = sizes.gather(-1, at)[..., 0]
        w, h = size.unbind(-1)
        x0, y0 = (ends.gather(-1, at)[..., 0] - size).unbind(-1)
        knots = torch.stack([index, index + 1], dim=-1)
        raw = parameters[..., 2 * bins :]
        if periodic:
            knots = torch.where(knots == bins, 0, knots)
        else:
            raw = F.pad(raw, (1, 1))
        raw = raw.gather(-1, knots) + DERIVATIVE_SHIFT
        d0, d1 = (F.softplus(raw) + MIN_DERIVATIVE).unbind(-1)

        s = h / w
        curvature = d0 + d1 - 2 * s
        if inverse:
            dy = v - y0
            b = h * d0 - dy * curvature
            # 4 a c of the quadratic equation, negative; rounding can spoil the discriminant by 1e-7
            product = (dy * curvature + h * (s - d0)) * (s * dy)
            discriminant = (b * b + 4 * product).clamp_min_(torch.finfo(v.dtype).tiny)
            xi = (2 * s * dy / (b + discriminant.sqrt_())).clamp_(0, 1)
        else:
            xi = ((v - x0) / w).clamp_(0, 1)
        rest = 1 - xi
        overlap = xi * rest
        denominator = s + curvature * overlap
        r = (s * xi * xi + d0 * overlap) / denominator  # (y - y0) / h
        numerator = d1 * xi * xi + 2 * s * overlap + d0 * rest * rest
        slope = (s / denominator).square() * numerator
        inside = inputs.abs() <= bound
        outputs = torch.where(inside, x0 + xi * w if inverse else y0 + h * r, inputs)
        log_slope = torch.where(inside, slope.log().neg_() if inverse else slope.log(), 0.0)
        ctx.save_for_backward(share, index, knots, raw, w, h, d0, d1, xi, denominator, numerator, r, slope, inside)
        ctx.inverse, ctx.periodic = inverse, periodic
        ctx.factor = 2 * bound * (1 - MIN_BIN * bins) * scale
        return outputs, log_slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, out: Tensor, log: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        r"""Gradients given those of outputs (`out`) and log slope (`log`).

        With $y = y_0 + h\, r(\xi, s, \delta)$ and $L = \log dy/dx$, of either direction, for a parameter p:
        $\bar p = e\, h\, \partial_p r + \bar L\, \partial_p L$. Forward e is the gradient of y. Inverse, $\xi$ solves y = const:
        e is minus the gradient of the input, $-\bar\xi / (w\, dy/dx)$.
        """
        share, index, knots, raw, w, h, d0, d1, xi, denominator, numerator, r, slope, inside = ctx.saved_tensors
        g = torch.where(inside, out, 0.0)
        g_log = torch.where(inside, log, 0.0)
        if ctx.inverse:
            g_log = -g_log
        s, rest = h / w, 1 - xi
        overlap, tilt = xi * rest, rest - xi
        twice = 2 / denominator
        by_numerator = g_log / numerator
        g_xi = g_log * (2 * (d1 * xi + s * tilt - d0 * rest) / numerator - twice * tilt * (d0 + d1 - 2 * s))
        if ctx.inverse:
            g_input = (g * w + g_xi) / (slope * w)
            e, g_x0, g_w = -g_input, g, g * xi
        else:
            g_input = g * slope + g_xi / w
            e, g_x0, g_w = g, -g_input, -g_input * xi
        by_r = e * h / denominator
        outer = 1 - 2 * overlap
        g_s = by_r * (xi * xi - r * outer) + g_log * (2 / s - twice * outer) + 2 * overlap * by_numerator
        both = g_log * twice * overlap
        g_d0 = by_r * overlap * (1 - r) + by_numerator * rest * rest - both
        g_d1 = by_numerator * xi * xi - by_r * r * overlap - both
        g_h = e * r + g_s / w
        g_w = g_w - g_s * s / w

        # a bin to the left of xi moves its knot; the bin itself has its own size; softmax
        before = torch.stack([g_x0, e], dim=-1)[..., None]
        within = torch.stack([g_w, g_h], dim=-1)[..., None]
        bins = torch.arange(share.shape[-1], device=index.device)
        k = index[..., None, None]
        g_share = share * torch.where(bins < k, before, torch.where(bins == k, within, 0.0))
        g_sizes = (g_share - share * g_share.sum(-1, keepdim=True)) * ctx.factor
        g_knots = torch.stack([g_d0, g_d1], dim=-1) * torch.sigmoid(raw)
        count = len(bins) + (0 if ctx.periodic else 1)
        g_raw = g_knots.new_zeros(*index.shape, count).scatter_add_(-1, knots, g_knots)
        if not ctx.periodic:
            g_raw = g_raw[..., 1:-1]
        g_parameters = torch.cat([g_sizes.flatten(-2), g_raw], dim=-1)
        return torch.where(inside, g_input, out), g_parameters, None, None, None, None
