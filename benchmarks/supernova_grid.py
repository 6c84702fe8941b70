r"""The exact posterior of flat LCDM and flat wCDM on a grid, in NumPy and SciPy alone: what the simulator is judged by.

Distances are integrals of 1 / E(z) by Gauss-Legendre from 0 to each redshift, checked against astropy where the grid is made;
the offset is marginalised under a flat prior of density 1 per mag; the prior is uniform, so that the evidence is the mean of the
likelihood over midpoints of equal cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import logsumexp

Array = NDArray[np.float64]
BOUNDS = {"Om": (0.0, 1.0), "w": (-2.0, 0.0)}
CELLS = {1: 4_000, 2: 400}
"""A side, by the number of parameters: a hundredth of the narrowest width or less."""
NODE, WEIGHT = np.polynomial.legendre.leggauss(48)
BLOCK = 2_000
ASTROPY_POINTS = 20


@dataclass(frozen=True)
class GridPosterior:
    """Attributes: names; points (G, D), midpoints; cell (D,), its sides; weight (G,), which sum to one; log_evidence."""

    names: tuple[str, ...]
    points: Array
    cell: Array
    weight: Array
    log_evidence: float

    def moments(self) -> tuple[Array, Array]:
        """Mean and standard deviation, (D,) each."""
        mean = self.weight @ self.points
        return mean, np.sqrt(self.weight @ (self.points - mean) ** 2)

    def draws(self, count: int, seed: int) -> Array:
        """Draws (count, D): a cell by its weight, and a place in it."""
        rng = np.random.default_rng(seed)
        rows = rng.choice(len(self.points), count, p=self.weight)
        return self.points[rows] + self.cell * (rng.random((count, len(self.cell))) - 0.5)


def grid_posterior(x: Mapping[str, Array], names: tuple[str, ...], *, cells: int | None = None) -> GridPosterior:
    """The posterior of one survey: redshift, heliocentric_redshift, magnitude (M,), covariance (M, M); `cells` a side.

    Raises:
        ValueError: distances that astropy does not confirm to 1e-6 mag.
    """
    cells = cells or CELLS[len(names)]
    axes = [low + (high - low) * (np.arange(cells) + 0.5) / cells for low, high in (BOUNDS[n] for n in names)]
    points = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
    check_with_astropy(points[:: len(points) // ASTROPY_POINTS], x)
    log_likelihood = np.concatenate([log_marginal(points[i : i + BLOCK], x) for i in range(0, len(points), BLOCK)])
    total = float(np.asarray(logsumexp(log_likelihood)))
    cell = np.array([(BOUNDS[n][1] - BOUNDS[n][0]) / cells for n in names])
    return GridPosterior(names, points, cell, np.exp(log_likelihood - total), total - float(np.log(len(points))))


def moduli(points: Array, x: Mapping[str, Array]) -> Array:
    """5 log10 of the luminosity distance in units of c / H_0 (mag), points (G, 1 or 2) of Om, w -> (G, M)."""
    matter, w = points[:, 0, None, None], (points[:, 1, None, None] if points.shape[1] > 1 else -1.0)
    z = x["redshift"][:, None] * (NODE + 1) / 2  # (M, J)
    rate = np.sqrt(matter * (1 + z) ** 3 + (1 - matter) * (1 + z) ** (3 * (1 + w)))
    distance = x["redshift"] / 2 * ((1 / rate) @ WEIGHT)
    return 5 * np.log10((1 + x["heliocentric_redshift"]) * distance)


def log_marginal(points: Array, x: Mapping[str, Array]) -> Array:
    """log of the likelihood integrated over the offset, (G,)."""
    factor = cho_factor(x["covariance"], lower=True)
    residual = (x["magnitude"] - moduli(points, x)).T  # (M, G)
    one = np.ones(len(residual))
    solved, solved_one = cho_solve(factor, residual), cho_solve(factor, one)
    precision = one @ solved_one
    chi2 = (residual * solved).sum(0) - (one @ solved) ** 2 / precision
    log_det = 2 * np.log(np.diag(factor[0])).sum()
    return -0.5 * (chi2 + log_det + np.log(precision) + (len(one) - 1) * np.log(2 * np.pi))


def check_with_astropy(points: Array, x: Mapping[str, Array]) -> None:
    """Raise ValueError where `moduli` and astropy differ by more than 1e-6 mag."""
    worst = np.abs(moduli(points, x) - np.stack([astropy_moduli(p, x) for p in points])).max()
    if worst > 1e-6:
        raise ValueError(f"distances differ from astropy's by {worst:.1e} mag")


def astropy_moduli(point: Array, x: Mapping[str, Array]) -> Array:
    """The same by astropy, for one point."""
    from astropy import cosmology

    w = point[1] if len(point) > 1 else -1.0
    make: Any = cosmology.FlatwCDM
    universe = make(H0=299792.458, Om0=point[0], w0=w, Tcmb0=0)  # c / H_0 = 1 Mpc
    transverse = np.asarray(universe.comoving_distance(x["redshift"]).value)
    return 5 * np.log10((1 + x["heliocentric_redshift"]) * transverse)
