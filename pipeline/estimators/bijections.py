"""Bijections from v to bounded theta that stay strictly inside, in float32 too."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform


class Interval(Transform):
    r"""theta = low + (high - low) sigmoid(v), with bounds that follow dtype and device of the argument.

    Strictly inside: in float32 the sigmoid is 1 from v = 17 on, and on [1000, 1001] theta rounds to 1001 from
    v = 10 on, where a uniform density is zero. The gradient is that of the sigmoid all the same.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.low, self.width = low, high - low

    def _call(self, x: Tensor) -> Tensor:
        low, high = self.low.to(x), (self.low + self.width).to(x)
        theta = low + self.width.to(x) * torch.sigmoid(x)
        least = torch.maximum(torch.nextafter(low, high), low + torch.finfo(x.dtype).tiny)
        inside = theta.detach().clamp(least, torch.nextafter(high, low))
        return theta + (inside - theta.detach())

    def _inverse(self, y: Tensor) -> Tensor:
        edge = torch.finfo(y.dtype).eps
        fraction = ((y - self.low.to(y)) / self.width.to(y)).clamp(edge, 1 - edge)
        return torch.log(fraction) - torch.log1p(-fraction)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.width.to(x).log() - torch.nn.functional.softplus(-x) - torch.nn.functional.softplus(x)


class Circle(Transform):
    r"""theta = low + (high - low) fraction of a turn, v an angle in [-pi, pi) or any number of turns away from it.

    $\log d\theta / dv = \log \frac{high - low}{2\pi}$.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.low, self.width = low, high - low

    def _call(self, x: Tensor) -> Tensor:
        low, high = self.low.to(x), (self.low + self.width).to(x)
        theta = low + self.width.to(x) * (torch.remainder(x + math.pi, 2 * math.pi) / (2 * math.pi))
        inside = theta.detach().clamp(low, torch.nextafter(high, low))
        return theta + (inside - theta.detach())

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.low.to(y)) / self.width.to(y) * (2 * math.pi) - math.pi

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.width.to(x).log() - math.log(2 * math.pi)).expand(x.shape)


class StickBreaking(Transform):
    r"""D - 1 numbers to D that are positive and add up to one, as torch's StickBreakingTransform, in log space.

    $\theta_k = s_k \prod_{j<k} (1 - s_j)$, $s_k = \sigma(v_k - \log(D - k))$ for k = 1 .. D - 1, and the rest is
    $\theta_D$. $\log |d\theta_{1..D-1} / dv| = \sum_k \log \theta_k + \log(1 - s_k)$.
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    @staticmethod
    def _log_sticks(x: Tensor) -> tuple[Tensor, Tensor]:
        """log theta_k for k < D, and log(1 - s_k)."""
        remaining = torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device)
        shifted = x - remaining.log()
        log_rest = torch.nn.functional.logsigmoid(-shifted)
        before = torch.nn.functional.pad(log_rest.cumsum(-1), (1, 0))
        log_sticks = torch.nn.functional.logsigmoid(shifted) + before[..., :-1]
        return log_sticks, log_rest

    def _call(self, x: Tensor) -> Tensor:
        log_sticks, log_rest = self._log_sticks(x)
        theta = torch.cat([log_sticks, log_rest.sum(-1, keepdim=True)], -1).exp()
        inside = theta.detach().clamp_min(torch.finfo(x.dtype).tiny)
        return theta + (inside - theta.detach())

    def _inverse(self, y: Tensor) -> Tensor:
        rest = y.flip(-1).cumsum(-1).flip(-1)  # what is left before each stick is broken, summed from the small end
        remaining = torch.arange(y.shape[-1] - 1, 0, -1, dtype=y.dtype, device=y.device)
        least = torch.finfo(y.dtype).tiny
        return y[..., :-1].clamp_min(least).log() - rest[..., 1:].clamp_min(least).log() + remaining.log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        log_sticks, log_rest = self._log_sticks(x)
        return (log_sticks + log_rest).sum(-1)
