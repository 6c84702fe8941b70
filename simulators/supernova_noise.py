r"""Noise of supernova magnitudes with a full covariance C.

    r  =  C^(1/2) eps,      eps_i ~ f  independently,      log p(r) = sum_i log f(eps_i) - 1/2 log |C|

f is a law of `simulators.noise_laws`. For the Gaussian any root of C will do. For the others C^(1/2) is the symmetric root, the whitening
that stays nearest to the supernovae themselves (Kessy, Lewin and Strimmer 2018, https://arxiv.org/abs/1512.00809): an outlier is one
supernova as far as C is diagonal, and C is the covariance of the core, not of all. Supernovae that are absent have no part in it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def present_covariance(covariance: Tensor, present: Tensor) -> Tensor:
    """C with rows and columns of absent supernovae replaced by those of the unit matrix, (N, M, M)."""
    both = (present[:, :, None] > 0.5) & (present[:, None, :] > 0.5)
    unit = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.where(both, covariance, unit)


def coloring(covariance: Tensor, *, symmetric: bool) -> Tensor:
    """C^(1/2), (N, M, M): the symmetric root, or the lower Cholesky factor."""
    if not symmetric:
        return torch.linalg.cholesky_ex(covariance)[0]
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.sqrt()[:, None, :]) @ vectors.mT


def whitening(covariance: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """C^(-1/2), (N, M, M), and log |C|, (N,)."""
    if symmetric:
        values, vectors = torch.linalg.eigh(covariance)
        return (vectors * values.rsqrt()[:, None, :]) @ vectors.mT, values.log().sum(-1)
    factor = torch.linalg.cholesky_ex(covariance)[0]
    unit = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, unit, upper=False)
    return inverse, 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
