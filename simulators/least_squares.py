r"""Weighted linear least squares, batched, for summaries of data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-9
"""Added to the normal matrix, relative to its trace: more columns than points must give numbers, not NaN."""


@dataclass(frozen=True)
class LinearFit:
    """Attributes: amplitude (N, J), standard_error (N, J) for weights of inverse variance, residual (N, M)."""

    amplitude: Tensor
    standard_error: Tensor
    residual: Tensor


def weighted_least_squares(basis: Tensor, values: Tensor, weight: Tensor) -> LinearFit:
    r"""Minimise $\sum_i w_i (y_i - \sum_j B_{ij} a_j)^2$ by $a = (B^T W B)^{-1} B^T W y$.

    Cholesky without error check, so that nothing waits for a GPU.

    Args:
        basis: B, (N, M, J), columns of order one.
        values: y, (N, M).
        weight: w, (N, M).

    >>> t = torch.linspace(-1, 1, 5, dtype=torch.float64)
    >>> fit = weighted_least_squares(torch.stack([t**0, t], -1)[None], (3 + 2 * t)[None], torch.ones(1, 5).double())
    >>> [round(v, 9) for v in fit.amplitude[0].tolist()]
    [3.0, 2.0]
    """
    weighted = basis * weight[..., None]
    normal = weighted.mT @ basis
    ridge = RIDGE * normal.diagonal(dim1=-2, dim2=-1).sum(-1)
    normal = normal + ridge[..., None, None] * torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    factor, _ = torch.linalg.cholesky_ex(normal)
    values = values[..., None]
    amplitude = torch.cholesky_solve(weighted.mT @ values, factor)
    # once more on the residual: takes the ridge's bias, 1e-9 of the amplitude, out of it
    amplitude = amplitude + torch.cholesky_solve(weighted.mT @ (values - basis @ amplitude), factor)
    standard_error = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1).sqrt()
    return LinearFit(amplitude[..., 0], standard_error, (values - basis @ amplitude)[..., 0])
