r"""What a linear fit says about a set of velocities: the network's inputs, and a first guess of the posterior.

For orbits whose period and conjunction are fixed, the velocity is linear in the amplitudes, the trend, the
curvature and the offset; only their logarithms and the jitter are not. The fit takes out what is linear, so
that the network is left with what is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.least_squares import weighted_least_squares

LEAST_RMS = 0.3
"""Least reduced rms with which standard errors are scaled: a fit that is too good by chance is no better than this."""


@dataclass(frozen=True)
class VelocitySummary:
    """A weighted linear fit to N sets of M velocities.

    Attributes:
        amplitude: (N, J), of the columns of the basis, offset first (m/s).
        error: their standard errors (m/s), (N, J), for the scatter that the residuals show.
        residual: in units of the expected scatter times the reduced rms, (N, M).
        rms: reduced rms of the residuals in units of the expected scatter, (N, 1).
        mean_variance: mean over the points of err^2 + typical jitter^2, (N, 1) (m^2/s^2).
        mean_error_variance: mean of err^2, (N, 1) (m^2/s^2).
        freedom: degrees of freedom, M - J.
    """

    amplitude: Tensor
    error: Tensor
    residual: Tensor
    rms: Tensor
    mean_variance: Tensor
    mean_error_variance: Tensor
    freedom: int

    def significance(self, columns: list[int]) -> Tensor:
        """amplitude / error of some columns, (N, len(columns))."""
        return self.amplitude[:, columns] / self.error[:, columns]

    def jitter(self) -> tuple[Tensor, Tensor]:
        r"""Jitter (m/s) by moments, and its error, (N,) each.

        $\hat\jmath^2 = \mathrm{rms}^2 \langle err^2 + j_0^2 \rangle - \langle err^2 \rangle$, floored at its error,
        where the variance of a variance over $\nu$ degrees of freedom is $2 \sigma^4 / \nu$.
        """
        total = self.rms.square() * self.mean_variance
        error_of_square = total * (2 / self.freedom) ** 0.5
        square = torch.maximum(total - self.mean_error_variance, 0.5 * error_of_square)
        jitter = square.sqrt()
        return jitter[:, 0], (error_of_square / (2 * jitter))[:, 0]


def summarize_velocities(basis: Tensor, velocity: Tensor, error: Tensor, typical_jitter: float) -> VelocitySummary:
    """Fit `basis` (N, M, J) to velocities (N, M) (m/s) with weights 1 / (err^2 + typical_jitter^2)."""
    variance = error.square() + typical_jitter**2
    fit = weighted_least_squares(basis, velocity, 1 / variance)
    freedom = max(basis.shape[-2] - basis.shape[-1], 1)
    rms = ((fit.residual.square() / variance).sum(-1, keepdim=True) / freedom).sqrt().clamp_min(1e-6)
    return VelocitySummary(
        amplitude=fit.amplitude,
        error=fit.standard_error * rms.clamp_min(LEAST_RMS),
        residual=fit.residual / (variance.sqrt() * rms),
        rms=rms,
        mean_variance=variance.mean(-1, keepdim=True),
        mean_error_variance=error.square().mean(-1, keepdim=True),
        freedom=freedom,
    )
