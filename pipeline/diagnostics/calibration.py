r"""Calibration on held-out simulations: is the true theta a draw from its posterior like any other?

For theta ~ p(theta), x ~ p(x|theta), theta is one exact draw from p(theta|x). Averaged over x, the rank of each
true parameter among L posterior draws is then uniform on 0 .. L, and a region of credibility alpha holds the
truth with frequency alpha. This is the one check that knows of modes which q lacks; but it speaks of the
population, not of one observation, and a q that returns the prior passes it.

Where theta was drawn from a proposal, the draws must come from the posterior that has the proposal as its prior.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, kstwo
from torch import Tensor

from pipeline.diagnostics.uniformity import pointwise_band, simultaneous_band
from pipeline.errors import InputError
from pipeline.rng import derived_seed, generator

Array = NDArray[np.float64]
BAND_PROBABILITY = 0.99
SIGNIFICANCE = 0.01
"""Smallest p-value that passes, shared among the tests (Bonferroni)."""
HISTOGRAM_BINS = 20
ECDF_LEVELS = 100
TARP_BINS = 200


@dataclass(frozen=True)
class Tarp:
    """Tests of accuracy with random points; J levels.

    Attributes:
        alpha: credibility, (J,).
        expected_coverage: frequency with which the region holds the truth, (J,).
        band: lower and upper simultaneous bound of it for an exact posterior, (2, J).
        area_to_curve: area between the two for alpha > 0.5 (sbi's `check_tarp`); negative if too narrow.
        p_value: Kolmogorov-Smirnov.
    """

    alpha: Array
    expected_coverage: Array
    band: Array
    area_to_curve: float
    p_value: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of posterior draws for N simulations, L draws each, D parameters.

    Attributes:
        ranks: (N, D) integers from 0 to L.
        draws: L.
        ks_p_value: Kolmogorov-Smirnov test of uniform ranks, (D,).
        outside: true values below or above all of their draws, (D,).
        outside_p_value: exact binomial test of that number, (D,).
        ecdf_level: (J,).
        ecdf_difference: empirical distribution function of the ranks minus the uniform one, (J, D).
        ecdf_band: simultaneous bounds of it, (2, J).
        histogram_count: ranks in each of B bins, (B, D).
        histogram_expected: (B,); bins differ by one rank where B does not divide L + 1.
        histogram_band: pointwise bounds, (2, B).
        coverage_level: (J,).
        coverage: frequency with which the central interval holds the truth, (J, D).
        tarp: see `Tarp`.
    """

    ranks: NDArray[np.int64]
    draws: int
    ks_p_value: Array
    outside: NDArray[np.int64]
    outside_p_value: Array
    ecdf_level: Array
    ecdf_difference: Array
    ecdf_band: Array
    histogram_count: Array
    histogram_expected: Array
    histogram_band: Array
    coverage_level: Array
    coverage: Array
    tarp: Tarp

    @property
    def least_p_value(self) -> float:
        """The smallest of all p-values."""
        return float(min(self.ks_p_value.min(), self.outside_p_value.min(), self.tarp.p_value))

    @property
    def tests(self) -> int:
        """How many tests are made: two a parameter, and TARP's."""
        return 2 * len(self.ks_p_value) + 1

    @property
    def passed(self) -> bool:
        """Whether no test rejects at 1 %, shared among all of them."""
        return self.least_p_value >= SIGNIFICANCE / self.tests


def calibrate(theta_true: Tensor, theta_draws: Tensor, *, seed: int) -> Calibration:
    """Every calibration figure of given draws.

    Args:
        theta_true: (N, D).
        theta_draws: equally weighted draws of the posterior of each simulation, (L, N, D).
        seed: of TARP's references and of the simulated bands.

    Raises:
        InputError: shapes that do not match, fewer than 20 simulations or draws, or values not finite.
    """
    ranks = sbc_ranks(theta_true, theta_draws)
    draws, count = theta_draws.shape[:2]
    outside, outside_p_value = outside_all_draws(ranks, draws)
    cut = np.unique(np.linspace(1, draws, min(ECDF_LEVELS, draws)).round()).astype(np.int64)  # ranks below it
    level = cut / (draws + 1)
    ecdf = (ranks[:, :, None] < cut).mean(axis=0).T  # (J, D); P(rank < cut) = level, exactly
    lower, upper = simultaneous_band(level, count, probability=BAND_PROBABILITY, seed=derived_seed(seed, "sbc_band"))
    edges = np.linspace(0, draws + 1, min(HISTOGRAM_BINS, draws + 1) + 1).round()
    share = np.diff(edges) / (draws + 1)
    coverage_level, coverage = expected_coverage(ranks, draws)
    return Calibration(
        ranks=ranks,
        draws=draws,
        ks_p_value=_rank_p_values(ranks, draws),
        outside=outside,
        outside_p_value=outside_p_value,
        ecdf_level=level,
        ecdf_difference=ecdf - level[:, None],
        ecdf_band=np.stack([lower - level, upper - level]),
        histogram_count=np.stack([np.histogram(r, bins=edges - 0.5)[0] for r in ranks.T], axis=1).astype(np.float64),
        histogram_expected=count * share,
        histogram_band=np.stack(pointwise_band(share, count, probability=BAND_PROBABILITY)),
        coverage_level=coverage_level,
        coverage=coverage,
        tarp=tarp(theta_true, theta_draws, seed=seed),
    )


def sbc_ranks(theta_true: Tensor, theta_draws: Tensor) -> NDArray[np.int64]:
    r"""Rank of each true parameter among its draws, $r_{nd} = \sum_l 1[\theta_{lnd} < \theta_{nd}]$, (N, D), by sbi.

    Simulation-based calibration (Talts et al. 2018, https://arxiv.org/abs/1804.06788).

    Args:
        theta_true: (N, D).
        theta_draws: (L, N, D).
    """
    from sbi.diagnostics import run_sbc

    theta_true, theta_draws = _check_draws(theta_true, theta_draws)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of (SBC|posterior) samples")  # the bands speak for small numbers
        ranks, _ = run_sbc(
            theta_true,
            torch.zeros(len(theta_true), 1),
            _GivenDraws(theta_draws),  # pyright: ignore[reportArgumentType]
            num_posterior_samples=len(theta_draws),
            show_progress_bar=False,
        )
    return ranks.numpy().astype(np.int64)


def outside_all_draws(ranks: NDArray[np.int64], draws: int) -> tuple[NDArray[np.int64], Array]:
    r"""How many true values lie below or above all of their draws, and the probability of a number as unlikely.

    Of N of them $2N/(L+1)$ are expected, with a binomial distribution. Tails that q lacks show here first: 27 of 948 in
    one end, with 4 expected, pass a Kolmogorov-Smirnov test (p = 0.4).

    Args:
        ranks: (N, D), see `sbc_ranks`.
        draws: L.

    Returns:
        numbers (D,) and two-sided p-values (D,).
    """
    outside = ((ranks == 0) | (ranks == draws)).sum(axis=0)
    chance = 2 / (draws + 1)
    return outside, np.array([binomtest(int(n), len(ranks), chance).pvalue for n in outside])


def expected_coverage(ranks: NDArray[np.int64], draws: int, *, levels: int = 50) -> tuple[Array, Array]:
    r"""How often the central interval of credibility alpha holds the true parameter.

    $c_d(\alpha) = \frac{1}{N} \sum_n 1[\, |2 (r_{nd} + \frac12) / (L+1) - 1| \leq \alpha \,]$; alpha for a
    calibrated posterior, below it for one that is too narrow.

    Args:
        ranks: (N, D), see `sbc_ranks`.
        draws: L.
        levels: number of values of alpha.

    Returns:
        alpha (J,) and coverage (J, D).
    """
    alpha = np.linspace(0.0, 1.0, levels + 1)
    distance = np.abs(2.0 * (ranks + 0.5) / (draws + 1) - 1.0)
    return alpha, (distance[:, :, None] <= alpha).mean(axis=0).T


def tarp(theta_true: Tensor, theta_draws: Tensor, *, seed: int) -> Tarp:
    r"""Coverage of balls around random points, in all D parameters at once, by sbi's `run_tarp`.

    $f_n = \frac{1}{L} \sum_l 1[d(\theta_{ln}, r_n) < d(\theta_n, r_n)]$ is uniform for an exact posterior; the
    expected coverage is its distribution function (Lemos et al. 2023, https://arxiv.org/abs/2302.03026).
    References r are uniform between the least and greatest true value of each parameter, as sbi chooses them,
    but from our own seed. The p-value is that of the one-sample Kolmogorov-Smirnov test of f against the
    uniform distribution; that of sbi's `check_tarp` takes the points of the curve for independent draws.

    Blind spots: references that do not depend on x pass a q that returns the prior; distances are taken after
    scaling each parameter by its range in the simulations, so that a parameter constrained to a small part of
    its range hardly counts, nor does one of very many; and a shift of every posterior in one direction, seen
    from references on all sides, nearly cancels (half a standard deviation in three parameters: p = 0.02 with
    400 simulations, where the ranks give p < 1e-10). Passing is necessary, not sufficient.

    Args:
        theta_true: (N, D).
        theta_draws: (L, N, D).
        seed: of references and band.
    """
    from sbi.diagnostics import check_tarp, run_tarp

    theta_true, theta_draws = _check_draws(theta_true, theta_draws)
    count = len(theta_true)
    low, high = theta_true.min(0).values, theta_true.max(0).values
    uniform = torch.rand(theta_true.shape, generator=generator(seed, "tarp_references"), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of TARP samples")
        coverage, alpha = run_tarp(
            theta_true,
            torch.zeros(count, 1),
            _GivenDraws(theta_draws),  # pyright: ignore[reportArgumentType]
            references=low + (high - low) * uniform,
            num_posterior_samples=len(theta_draws),
            num_bins=min(TARP_BINS, count),
            show_progress_bar=False,
        )
    area, _ = check_tarp(coverage, alpha)
    # sbi's grid runs from the least f to the greatest: the curve is known to start at (0, 0) and end at (1, 1)
    level = np.concatenate([[0.0], alpha.double().numpy().clip(0.0, 1.0), [1.0]])
    curve = np.concatenate([[0.0], coverage.double().numpy().clip(0.0, 1.0), [1.0]])
    band = simultaneous_band(level, count, probability=BAND_PROBABILITY, seed=derived_seed(seed, "tarp_band"))
    return Tarp(
        alpha=level,
        expected_coverage=curve,
        band=np.stack(band),
        area_to_curve=float(area),
        p_value=float(kstwo.sf(np.abs(curve - level).max(), count)),
    )


class _GivenDraws:
    """Draws that exist already, as the posterior that sbi's functions ask for."""

    def __init__(self, theta_draws: Tensor) -> None:
        self._theta_draws = theta_draws

    def sample_batched(self, sample_shape: Any, x: Tensor, *, show_progress_bars: bool = False) -> Tensor:
        """All draws, (L, N, D), whatever x."""
        return self._theta_draws


def _rank_p_values(ranks: NDArray[np.int64], draws: int) -> Array:
    """Kolmogorov-Smirnov p-values of uniform ranks by sbi, (D,)."""
    from sbi.diagnostics.sbc import check_uniformity_frequentist

    return check_uniformity_frequentist(torch.from_numpy(ranks), draws).double().numpy()


def _check_draws(theta_true: Tensor, theta_draws: Tensor) -> tuple[Tensor, Tensor]:
    if theta_true.ndim != 2 or theta_draws.ndim != 3 or theta_draws.shape[1:] != theta_true.shape:
        raise InputError(
            "calibration: expected theta_true (N, D) and theta_draws (L, N, D), "
            f"got {tuple(theta_true.shape)} and {tuple(theta_draws.shape)}"
        )
    if min(theta_draws.shape[:2]) < 20:
        count, draws = theta_draws.shape[1], theta_draws.shape[0]
        raise InputError(f"calibration: expected at least 20 simulations and 20 draws, got {count} and {draws}")
    bad = int((~torch.isfinite(theta_draws)).sum() + (~torch.isfinite(theta_true)).sum())
    if bad:
        raise InputError(f"calibration: {bad} values of theta are not finite")
    return theta_true.detach().cpu().double(), theta_draws.detach().cpu().double()
