r"""Offsets of instruments marginalised: in closed form for Gaussian noise, by quadrature for other laws.

    log L  =  sum_i log Integral d gamma_i  prod_{m in i} f((r_m - gamma_i) / s_m) / s_m

Given theta the instruments are independent, and each integral has one dimension: gamma = c + h sinh(u) with c a robust mean and h its
error, by the trapezoidal rule in u, which converges exponentially for smooth integrands and reaches far into heavy tails
(Trefethen and Weideman 2014, SIAM Review 56, 385). c and h move the nodes, not the integral: no gradient goes through them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simulators.noise_laws import NoiseLaw

STEP = 0.3
"""In u, and so in standard deviations near the peak."""
REACH = 6.6
"""Largest u: 370 standard deviations from the peak."""
REWEIGHTINGS = 6
NODES = 2 * round(REACH / STEP) + 1


def log_marginal(
    law: NoiseLaw, residual: Tensor, scale: Tensor, membership: Tensor, *, laplace: bool = False
) -> Tensor:
    """log L of N stars under flat densities of 1 per unit of each offset, (..., N).

    Good to 1e-5 nats where one peak holds the integral. Peaks that lie tens of errors apart, which takes an instrument of a few points
    that contradict each other, fall between the nodes.

    Args:
        law: f, whose tensors broadcast with (..., N, M).
        residual: r, (..., N, M).
        scale: s, (..., N, M).
        membership: 1 where point m is there and of instrument i, (N, M, I).
        laplace: a Gaussian about c with h for its width in place of the rule: one node of 45, off by tenths of a nat.
    """
    with torch.no_grad():
        center, width = robust_mean(law, residual, scale, membership)
    reach, nodes, spacing = (0.0, 1, math.sqrt(2 * math.pi)) if laplace else (REACH, NODES, STEP)
    u = torch.linspace(-reach, reach, nodes, dtype=residual.dtype, device=residual.device)
    u = u.reshape(-1, *(1 for _ in center.shape))
    per_point = membership.mT  # (N, I, M)
    offset = ((center + width * u.sinh())[..., None, :] @ per_point)[..., 0, :]  # (G, ..., N, M)
    density = (law.log_density((residual - offset) / scale) - scale.log()) * membership.sum(-1)
    integrand = (density[..., None, :] @ membership)[..., 0, :] + u.cosh().log()  # (G, ..., N, I)
    integral = integrand.logsumexp(0) + (spacing * width).log()
    return torch.where(membership.sum(-2) > 0, integral, 0.0).sum(-1)


def gaussian_log_marginal(residual: Tensor, variance: Tensor, membership: Tensor) -> Tensor:
    r"""The same for Gaussian noise, where the integral is known, (..., N).

    With $w_m = 1/s_m^2$, $W_i = \sum_{m \in i} w_m$ and $\bar r_i = \sum_{m \in i} w_m r_m / W_i$, over instruments with points,

    $$-\frac{1}{2} \Big[ \sum_m w_m (r_m - \bar r_{i(m)})^2 + \sum_m \log 2\pi s_m^2 - \sum_i \log\frac{2\pi}{W_i} \Big]$$

    Args:
        residual, variance: r and s^2, (..., N, M).
        membership: see `log_marginal`.
    """
    there = membership.sum(-1)
    weight = there / variance
    total, mean = weighted_mean(residual, weight, membership)
    chi2 = (weight * (residual - (membership @ mean[..., None])[..., 0]).square()).sum(-1)
    used = membership.sum(-2) > 0  # (N, I)
    log_total = torch.where(used, total.clamp_min(1e-30).log(), 0.0).sum(-1)
    constant = (there.sum(-1) - used.sum(-1)) * math.log(2 * math.pi)
    return -0.5 * (chi2 + (there * variance.log()).sum(-1) + log_total + constant)


def robust_mean(law: NoiseLaw, residual: Tensor, scale: Tensor, membership: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each instrument with outliers weighted down, from the median on, and its error, (..., N, I) each; 0 and 1 without points."""
    apart = torch.where(membership.mT > 0.5, residual[..., None, :], torch.nan)  # (..., N, I, M)
    center = apart.nanmedian(-1).values.nan_to_num(0.0)
    weight = scale.reciprocal().square()
    total = torch.ones_like(center)
    for _ in range(REWEIGHTINGS):
        offset = (center[..., None, :] @ membership.mT)[..., 0, :]
        counted = weight * law.weight((residual - offset) / scale)
        total, center = weighted_mean(residual, counted, membership)
    return center, torch.where(membership.sum(-2) > 0, total.clamp_min(1e-30).rsqrt(), 1.0)


def weighted_mean(residual: Tensor, weight: Tensor, membership: Tensor) -> tuple[Tensor, Tensor]:
    """Total weight and weighted mean of each instrument, (..., N, I) each; the mean is zero where there are no points."""
    total = (weight[..., None, :] @ membership)[..., 0, :]
    return total, ((weight * residual)[..., None, :] @ membership)[..., 0, :] / total.clamp_min(1e-30)
