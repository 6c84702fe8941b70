"""Fixed numbers that the network reads beside the fit: where around the fit to look, and what the residuals look like."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

RADII = (0.7, 1.5, 2.5)
"""Along each axis, in standard deviations."""
DIAGONAL_RADIUS = 2.0
WAVES = 4


def directions(dimension: int) -> Tensor:
    """Points around a fit in units of its standard deviations, (P, D): on each axis, and on the diagonals of each pair.

    >>> [len(directions(d)) for d in (1, 2, 3, 4)]
    [6, 16, 30, 48]
    """
    points = []
    for axis, radius, sign in itertools.product(range(dimension), RADII, (-1.0, 1.0)):
        point = [0.0] * dimension
        point[axis] = sign * radius
        points.append(point)
    for pair in itertools.combinations(range(dimension), 2):
        for signs in itertools.product((-1.0, 1.0), repeat=2):
            point = [0.0] * dimension
            for axis, sign in zip(pair, signs, strict=True):
                point[axis] = sign * DIAGONAL_RADIUS / math.sqrt(2)
            points.append(point)
    return torch.tensor(points, dtype=torch.float64)


def residual_summary(eps: Tensor, redshift: Tensor, present: Tensor) -> Tensor:
    r"""Of whitened residuals (N, M): log rms, asinh of the largest, and asinh of their projections on four waves in ln z, (N, 6).

    $\sum_i \epsilon_i \cos(j \pi s_i) / \sqrt{n/2}$, s from 0 at the lowest to 1 at the highest redshift: of order one for white noise.
    """
    number = present.sum(-1, keepdim=True)
    rms = (eps.square().sum(-1, keepdim=True) / number).sqrt().clamp_min(1e-6)
    there, level = present > 0.5, redshift.log()
    low = torch.where(there, level, torch.inf).amin(-1, keepdim=True)
    high = torch.where(there, level, -torch.inf).amax(-1, keepdim=True)
    s = (level - low) / (high - low).clamp_min(1e-9)
    order = torch.arange(1, WAVES + 1, dtype=eps.dtype, device=eps.device)
    waves = (eps[..., None] * torch.cos(math.pi * s[..., None] * order)).sum(-2) / (number / 2).sqrt()
    return torch.cat([rms.log(), torch.asinh(eps.abs().amax(-1, keepdim=True)), torch.asinh(waves)], dim=-1)
