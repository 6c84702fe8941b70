"""Distances between the marginals of two posteriors, in units of the reference's width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.diagnostics.c2st import check_pair


@dataclass(frozen=True)
class MarginalDistances:
    """How far each marginal is from the reference's; arrays of shape (D,).

    Attributes:
        mean_shift: mean of the draws minus mean of the reference, in reference standard deviations.
        width_ratio: standard deviation of the draws over the reference's.
        wasserstein: 1-Wasserstein distance in reference standard deviations.
    """

    mean_shift: NDArray[np.float64]
    width_ratio: NDArray[np.float64]
    wasserstein: NDArray[np.float64]


def marginal_distances(reference: NDArray[np.float64], draws: NDArray[np.float64]) -> MarginalDistances:
    r"""Distances of the D marginals.

    $\Delta_d = (\bar\theta_d - \bar\theta^{ref}_d) / s_d$, $r_d = \sigma_d / s_d$ and
    $W_d = \frac{1}{s_d} \int |F_d(t) - F^{ref}_d(t)| \, dt$, with $s_d$ the reference's standard deviation and F
    the empirical distribution functions. Two sets of S independent draws of one Gaussian differ by
    $W \approx 0.8 / \sqrt{S}$, more in long tails.

    Args:
        reference: (S, D).
        draws: (R, D).

    Raises:
        InputError: see `check_pair`.
    """
    from scipy.stats import wasserstein_distance

    reference, draws = check_pair(reference, draws)
    mean, scale = reference.mean(axis=0), reference.std(axis=0, ddof=1)
    a, b = (reference - mean) / scale, (draws - mean) / scale
    return MarginalDistances(
        mean_shift=b.mean(axis=0),
        width_ratio=b.std(axis=0, ddof=1),
        wasserstein=np.array([wasserstein_distance(a[:, d], b[:, d]) for d in range(a.shape[1])]),
    )
