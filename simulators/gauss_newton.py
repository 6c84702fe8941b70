r"""A first guess of a posterior: Gauss-Newton on the unconstrained space, batched, for any model of residuals.

    minimise   1/2 sum_m rho(eps_m(u))  +  1/2 sum_d ((u_d - m_d) / s_d)^2

eps are whitened residuals, weight(eps) = rho'(eps) / (2 eps), 1 for a Gaussian, and N(m, s) stands for the prior of u, so that the
fit is well posed whatever the data say. A guess, not a posterior: steps are few and bounded, and nothing is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 8
LARGEST_STEP = 1.5
"""In each component of u: a third of the width of a logistic distribution, u of a uniform prior."""
DIFFERENCE = 1e-3
"""Of the central differences; their error is its square."""


@dataclass(frozen=True)
class PosteriorFit:
    """Attributes: location (N, D) on the unconstrained space; factor (N, D, D), lower triangular, F F^T the covariance there."""

    location: Tensor
    factor: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviations, (N, D)."""
        return self.factor.norm(dim=-1)


def fit_posterior(
    residual: Callable[[Tensor], Tensor],
    weight: Callable[[Tensor], Tensor],
    *,
    count: int,
    start: Tensor,
    spread: Tensor,
) -> PosteriorFit:
    r"""Steps $\delta = (J^T W J + S^{-2})^{-1} (-J^T W \epsilon - S^{-2} (u - m))$ from u = m, J by central differences.

    Args:
        residual: u (..., N, D) -> whitened residuals (..., N, M).
        weight: residuals -> weights, same shape.
        count: N.
        start: m, (D,).
        spread: s, (D,).
    """
    u = start.expand(count, -1)
    precision = spread.square().reciprocal()
    for _ in range(STEPS):
        normal, gradient = _normal_equations(residual, weight, u, precision)
        step = torch.linalg.solve_ex(normal, -gradient - precision * (u - start))[0]
        u = u + step.clamp(-LARGEST_STEP, LARGEST_STEP)
    normal, _ = _normal_equations(residual, weight, u, precision)
    return PosteriorFit(u, torch.linalg.cholesky_ex(torch.cholesky_inverse(torch.linalg.cholesky_ex(normal)[0]))[0])


def _normal_equations(
    residual: Callable[[Tensor], Tensor], weight: Callable[[Tensor], Tensor], u: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor]:
    """J^T W J + S^-2, (N, D, D), and J^T W eps, (N, D), at u (N, D)."""
    dimension = u.shape[-1]
    shift = DIFFERENCE * torch.eye(dimension, dtype=u.dtype, device=u.device)[:, None, :]
    values = residual(torch.cat([u[None], u + shift, u - shift]))  # (1 + 2 D, N, M)
    jacobian = (values[1 : 1 + dimension] - values[1 + dimension :]) / (2 * DIFFERENCE)
    weighted = jacobian * weight(values[0])
    normal = torch.einsum("dnm,enm->nde", weighted, jacobian) + torch.diag(precision)
    return normal, torch.einsum("dnm,nm->nd", weighted, values[0])
