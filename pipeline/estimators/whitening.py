r"""A Gaussian picture of a cloud of points, for any number of columns: what distance means within the cloud.

Columns are standardised to y (constant ones are left out). With five points a column or more the covariance is that
of the sample, S = <y y^T>; with fewer it is shrunk towards a multiple of the unit matrix (Ledoit and Wolf 2004,
https://doi.org/10.1016/S0047-259X(03)00096-4),

    C = (1 - a) S + a mu I,     mu = tr S / F

Shrinkage where it is not needed would widen the narrow directions: noise of 2 m/s beside an offset of 500 m/s that is
drawn anew each time has a variance of 2e-5 in units of y, and a of 0.002 hides it. A direction in which the cloud
has no extent keeps the width `least_width`. Where S has more than MAX_DIRECTIONS
eigenvectors the leading R of them are kept, and the others share one width, the mean of what they hold, as in
probabilistic principal components (Tipping and Bishop 1999, https://doi.org/10.1111/1467-9868.00196):

    C  ~  V diag(w_1 .. w_R) V^T + s^2 (I - V V^T),     s^2 = (tr S - sum_r w_r(S)) / (F - R)

s is a mean over many directions and needs no shrinkage, which would hide a faint noise beside a strong signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.estimators.standardize import location_and_scale

MAX_DIRECTIONS = 128
"""R at most: a thousand columns then take half a megabyte in a model file."""
POINTS_A_COLUMN = 5
"""Fewest points a column without shrinkage: the distance of a new point is then 1.25 times too large on average."""


@dataclass(frozen=True)
class Whitening:
    """The picture of F columns in R directions.

    Attributes:
        center: mean of the columns, (F,), float64.
        inverse_scale: 1 / standard deviation of the columns, zero for constant ones, (F,), float64.
        directions: V, (F, R), float32.
        width: sqrt(w), (R,), float64.
        rest: s, () float64; infinite where nothing is left over.
    """

    center: Tensor
    inverse_scale: Tensor
    directions: Tensor
    width: Tensor
    rest: Tensor

    def whiten(self, points: Tensor) -> Tensor:
        r"""(N, F) -> (N, R + 1), float64: $V^T y / \sqrt w$, and $|y - V V^T y| / s$ as the last column.

        The squared length of a row is $y^T C^{-1} y$, the squared Mahalanobis distance from the mean.
        """
        y = (points.double() - self.center) * self.inverse_scale
        directions = self.directions.double()
        along = y @ directions
        across = (y - along @ directions.T).norm(dim=1, keepdim=True)
        return torch.cat([along / self.width, across / self.rest], dim=1)


def fit_whitening(points: Tensor, *, least_width: float, rounding: Tensor | None = None) -> Whitening:
    r"""The picture of N points in F columns, (N, F).

    The eigenvectors of S are taken from the smaller of $Y^T Y / N$ and $Y Y^T / N$, which share their nonzero
    eigenvalues: a thousand points in a million columns cost a thousand by thousand matrix.

    Args:
        points: (N, F).
        least_width: of a direction, relative to the root mean square of all: below it is rounding.
        rounding: of the columns, (F,), below which none is narrow; default: some last digits of their dtype.
    """
    center, scale = location_and_scale(points, least_width=rounding)
    y = (points.double() - center) * scale
    count, columns = len(y), int((scale > 0).sum())
    thin = y.shape[1] > count
    gram = (y @ y.T if thin else y.T @ y) / count
    value, vector = torch.linalg.eigh(gram)
    total = value.clamp_min(0).sum()
    enough = count >= POINTS_A_COLUMN * columns
    shrinkage = torch.zeros_like(total) if enough else shrinkage_intensity(y, gram, columns)
    mean_square = total / max(columns, 1)
    # what is zero up to rounding has no direction in the dual matrix
    rank = int((value > 1e-10 * value[-1].clamp_min(1e-300)).sum())
    kept = min(MAX_DIRECTIONS, rank)
    first = value.shape[0] - kept
    value, vector = value[first:], vector[:, first:]
    directions = y.T @ vector / (count * value).sqrt() if thin else vector
    floor = least_width**2 * mean_square
    width = ((1 - shrinkage) * value + shrinkage * mean_square).clamp_min(floor).sqrt()
    left = columns - kept
    shared = (total - value.sum()) / max(left, 1) if rank > kept else shrinkage * mean_square
    rest = shared.clamp_min(floor).sqrt()
    rest = rest if left > 0 else torch.full_like(rest, torch.inf)
    return Whitening(center, scale, directions.float(), width, rest)


def shrinkage_intensity(y: Tensor, gram: Tensor, columns: int) -> Tensor:
    r"""Ledoit and Wolf's a in [0, 1] for centred y (N, F), of which `columns` vary, () float64.

    $$a = \min\Big(1, \frac{\frac{1}{N} \big(\frac{1}{N}\sum_n |y_n|^4 - |S|^2\big)}{|S|^2 - F \mu^2}\Big)$$

    with Frobenius norms, which `gram` (either of the two matrices) shares with S.
    """
    square = gram.square().sum()
    trace = gram.diagonal().sum()
    distance = square - trace.square() / max(columns, 1)
    noise = (y.square().sum(1).square().mean() - square) / len(y)
    return torch.where(distance > 0, (noise / distance.clamp_min(1e-300)).clamp(0, 1), 1.0)
