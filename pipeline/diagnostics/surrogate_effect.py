r"""What a wrong likelihood does to a posterior, to first order: shift of its mean, and its width.

With f = (w, w^2) of whitened data w and t whitened theta, J = cov(t, <f | theta>) and
C = <cov(f | theta)> are slopes and noise of what the learned likelihood draws, J' and C' those of
what the simulator gives. A posterior that reads f by its best linear estimate, and whose precision
in t is 1, would have with the simulator's own likelihood

    shift      J C^-1 < f' - f >                        in standard deviations
    precision  1 - J C^-1 J^T + J' C'^-1 J'^T

(Heyde 1997, Quasi-Likelihood and its Application). Exact where all is normal; else a guide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.diagnostics.exchange import whitened, whitened_theta

RIDGE = 1e-6
LEAST_PRECISION = 0.01
"""Of the true posterior over the delivered one: what K simulations cannot tell from none."""


def effect(v: Tensor, theta: Tensor) -> tuple[float, float]:
    """Shift of the mean, delivered over true width: of the parameter of which each is worst.

    What noise of K simulations adds to a square on average is subtracted.

    Args:
        v: simulated at l = 0, drawn at l >= 1, (K, L + 1, S).
        theta: of the delivered posterior, (K, T).
    """
    t, white = whitened_theta(theta).clamp(-4, 4), whitened(v)
    count, draws = len(t), v.shape[1] - 1
    w = white.residual + white.center[:, None]
    if not t.shape[1] or not w.shape[2]:
        return 0.0, 1.0
    w = w - w.mean((0, 1))
    f = torch.cat([w, w.square()], dim=2)
    expected = f[:, 1:].mean(1)
    noise = (f[:, 1:] - expected[:, None]).flatten(0, 1)
    covariance = noise.T @ noise / (count * (draws - 1))
    slope = t.T @ (expected - expected.mean(0)) / count
    difference = f[:, 0] - expected
    bias = difference.mean(0)
    change = t.T @ (difference - bias) / count
    left = difference - bias - t @ change
    freedom = max(1, count - t.shape[1] - 1)
    true_covariance = left.T @ left / freedom * draws / (draws + 1)  # without the noise of the L
    gain = torch.linalg.solve(_regular(covariance), slope.T)  # (F, T)
    shrink = max(0.0, (count - f.shape[2] - 2) / (count - 1))  # of an inverse covariance (Hartlap et al. 2007)
    true_slope = slope + change
    information = shrink * true_slope @ torch.linalg.solve(_regular(true_covariance), true_slope.T)
    eye = torch.eye(t.shape[1], dtype=t.dtype, device=t.device)
    precision = eye - slope @ gain + information - f.shape[2] / count * eye
    z = theta - theta.mean(0)
    spread = z.std(0)
    axes = (z[:, spread > 0] / spread[spread > 0]).T @ t / count  # standardised theta = axes t
    return _shift(axes @ gain.T, bias, true_covariance / count), _width(axes, precision)


def _shift(gain: Tensor, bias: Tensor, error: Tensor) -> float:
    """Largest |gain bias| over parameters, its own variance subtracted from the square."""
    square = (gain @ bias).square() - ((gain @ error) * gain).sum(1)
    return float(square.max().clamp_min(0).sqrt())


def _width(axes: Tensor, precision: Tensor) -> float:
    """Delivered over true standard deviation of the parameter for which it is furthest from 1."""
    values, vectors = torch.linalg.eigh((precision + precision.T) / 2)
    turned = axes @ vectors
    variance = (turned.square() / values.clamp_min(LEAST_PRECISION)).sum(1) / turned.square().sum(1)
    ratio = variance.rsqrt()
    return float(ratio[ratio.log().abs().argmax()])


def _regular(covariance: Tensor) -> Tensor:
    """Invertible: features of no width count for nothing."""
    diagonal = covariance.diagonal()
    return covariance + torch.diag(RIDGE * diagonal + 1e-12 * diagonal.max().clamp_min(1e-300))
