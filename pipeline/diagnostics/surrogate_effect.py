r"""What a wrong likelihood does to a posterior, to first order: shift of its mean, and its width.

With f = (w, w^2) of whitened data w and t whitened theta, J = cov(t, <f | theta>), C = <cov(f | theta)>
and m = <f> are slopes, noise and mean of what the learned likelihood draws, J', C' and m' those of
what the simulator gives. The best linear estimate from f has the score J C^-1 (f - m) at the mean
of the delivered posterior, whose precision in t is 1. With the simulator's likelihood in its place

    precision  P = 1 - J C^-1 J^T + J' C'^-1 J'^T
    shift      P^-1 ( J' C'^-1 (f_observed - m') - J C^-1 (f_observed - m) )      standard deviations

(Heyde 1997, Quasi-Likelihood and its Application). Where all is normal this is exact, else a guide.
J', m' and the diagonal of C' differ from J, m and C only in entries whose difference is significant:
noise of K simulations in some hundred entries would add up to a shift of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diagnostics.exchange import FAR, whitened, whitened_theta

SIGNIFICANT = 3.0
"""Standard deviations of its noise below which a difference counts as none."""
RIDGE = 1e-6
LEAST_PRECISION = 0.01
"""Of the true posterior over the delivered one: what K simulations cannot tell from none."""


@dataclass(frozen=True)
class _Side:
    """Slopes of f on t (T, F), noise of f given theta (F, F), and mean (F,)."""

    slope: Tensor
    noise: Tensor
    mean: Tensor

    @property
    def gain(self) -> Tensor:
        """J C^-1, (T, F)."""
        diagonal = self.noise.diagonal()  # features of no width count for nothing
        ridge = torch.diag(RIDGE * diagonal + 1e-12 * diagonal.max().clamp_min(1e-300))
        return torch.linalg.solve(self.noise + ridge, self.slope.T).T


def effect(v: Tensor, observed: Tensor, theta: Tensor) -> tuple[float, float]:
    """Shift of the mean, delivered over true width: of the parameter of which each is worst.

    Args:
        v: simulated at l = 0, drawn at l >= 1, (K, L + 1, S).
        observed: the observation, (S,).
        theta: of the delivered posterior, (K, T).
    """
    t, white = whitened_theta(theta).clamp(-4, 4), whitened(v)
    w = white.residual + white.center[:, None]
    if not t.shape[1] or not w.shape[2]:
        return 0.0, 1.0
    middle, spread = w.mean((0, 1)), w.std((0, 1))
    w_observed = (observed @ white.matrix - middle).clamp(-FAR * spread, FAR * spread)
    f_observed = torch.cat([w_observed, w_observed.square()])
    drawn, true = _sides(torch.cat([w - middle, (w - middle).square()], dim=2), t)
    eye = torch.eye(t.shape[1]).to(t)
    precision = eye - drawn.gain @ drawn.slope.T + true.gain @ true.slope.T
    values, vectors = torch.linalg.eigh((precision + precision.T) / 2)
    inverse = (vectors / values.clamp_min(LEAST_PRECISION)) @ vectors.T
    change = inverse @ (true.gain @ (f_observed - true.mean) - drawn.gain @ (f_observed - drawn.mean))
    z = theta - theta.mean(0)
    scale = z.std(0)
    axes = (z[:, scale > 0] / scale[scale > 0]).T @ t / len(t)  # standardised theta = axes t
    width = (axes.square().sum(1) / (axes @ inverse * axes).sum(1)).sqrt()
    return float((axes @ change).abs().max()), float(width[width.log().abs().argmax()])


def _sides(f: Tensor, t: Tensor) -> tuple[_Side, _Side]:
    """Of what was drawn and of what was simulated, from f (K, L + 1, F) and t (K, T)."""
    count, draws = f.shape[0], f.shape[1] - 1
    expected = f[:, 1:].mean(1)
    within = f[:, 1:] - expected[:, None]
    noise = within.flatten(0, 1).T @ within.flatten(0, 1) / (count * (draws - 1))
    slope, mean = t.T @ (expected - expected.mean(0)) / count, expected.mean(0)
    difference = f[:, 0] - expected  # of which the slope is that of the error alone: less noise
    bias = difference.mean(0)
    change = t.T @ (difference - bias) / count
    left = difference - bias - t @ change
    # expected has noise of its own, a share 1 / L
    freedom = max(1, count - t.shape[1] - 1) * (draws + 1) / draws
    variance, own = left.square().sum(0) / freedom, noise.diagonal().clamp_min(1e-300)
    kurtosis = within.pow(4).mean((0, 1)) / own.square()
    ratio = 1 + _significant(variance / own - 1, ((kurtosis - 1).clamp_min(0.1) / count).sqrt())
    error = (variance / count).sqrt()
    factor = ratio.clamp_min(1e-6).sqrt()
    true = _Side(
        slope + _significant(change, error), factor[:, None] * noise * factor, mean + _significant(bias, error)
    )
    return _Side(slope, noise, mean), true


def _significant(difference: Tensor, error: Tensor) -> Tensor:
    return torch.where(difference.abs() > SIGNIFICANT * error, difference, 0.0)
