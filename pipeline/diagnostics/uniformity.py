r"""How far an empirical distribution function may stray from the uniform one.

Säilynoja, Bürkner and Vehtari 2022, Graphical test for discrete uniformity and its applications in
goodness-of-fit evaluation and multiple sample comparison, https://arxiv.org/abs/2103.10522.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

SIMULATIONS = 4_000


def simultaneous_band(
    levels: NDArray[np.float64], count: int, *, probability: float = 0.99, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Band that holds the whole empirical distribution function of uniform numbers with a given probability.

    At level z the function is $F_n(z) \sim \mathrm{Bin}(n, z) / n$. The band joins the pointwise intervals
    $[Q_{\gamma/2}, Q_{1-\gamma/2}] / n$ of that binomial, with $\gamma$ such that a fraction `probability` of
    simulated sets stays inside at every level at once (algorithm 1 of the reference).

    Args:
        levels: z, increasing, within [0, 1], (J,).
        count: n, how many numbers.
        probability: of all levels together.
        seed: of the simulated sets.

    Returns:
        lower and upper bound of F_n, (J,) each.
    """
    rng = np.random.default_rng(seed)
    share = np.diff(np.concatenate([[0.0], np.clip(levels, 0.0, 1.0), [1.0]]))
    counts = rng.multinomial(count, share / share.sum(), size=SIMULATIONS)[:, :-1].cumsum(axis=1)  # (M, J)
    tail = np.minimum(binom.cdf(counts, count, levels), binom.sf(counts - 1, count, levels))
    gamma = float(np.quantile(2.0 * tail.min(axis=1), 1.0 - probability))
    return binom.ppf(gamma / 2, count, levels) / count, binom.ppf(1 - gamma / 2, count, levels) / count


def pointwise_band(
    share: NDArray[np.float64], count: int, *, probability: float = 0.99
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Central interval of the number, of n uniform ones, in each bin: quantiles of Bin(n, share), (B,) each."""
    tail = (1.0 - probability) / 2
    return binom.ppf(tail, count, share), binom.ppf(1 - tail, count, share)
