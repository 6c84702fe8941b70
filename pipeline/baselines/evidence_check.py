r"""Evidence from posterior draws alone, by importance sampling from a mixture fitted to them.

Nested samplers have been seen off by more than ten of their own standard errors; MCMC gives no evidence at
all. Both are checked by the one estimator that needs only draws and the log joint density:

    m(theta) = sum_c pi_c t_nu( theta; mean_c, scale_c ),      log p(x) = log < exp( log_joint - log m ) >_m
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp

from pipeline.baselines.counted_density import CountedDensity
from pipeline.baselines.result import Density
from pipeline.errors import InputError
from pipeline.estimators import importance

DEGREES_OF_FREEDOM = 5  # tails heavier than any Gaussian's, and with a finite variance
WIDENING = 1.1  # of each component's standard deviations: too wide costs draws, too narrow costs the answer
BROAD_SHARE = 0.05  # of a last component as wide as twice the whole posterior, for what the fit has missed
COMPONENTS = (1, 2, 4, 8, 16, 32)
FITTED_DRAWS = 10_000
CHUNK = 10_000  # rows of theta for each call of the log joint density: bounds memory


@dataclass(frozen=True)
class EvidenceCheck:
    """Evidence by importance sampling from a fitted mixture.

    Attributes:
        log_evidence: log p(x), nats.
        log_evidence_error: its standard error (delta method), nats.
        ess_fraction: effective sample size of the weights over their number.
        pareto_k: shape of the tail of the weights; above 0.7 the error is not to be trusted.
        refused: draws of the mixture with weight zero, most of them outside the prior's support.
        components: of the mixture, the broad one not counted.
        likelihood_calls: values of theta at which the log joint density was evaluated.
    """

    log_evidence: float
    log_evidence_error: float
    ess_fraction: float
    pareto_k: float
    refused: int
    components: int
    likelihood_calls: int


@dataclass(frozen=True)
class StudentMixture:
    """Mixture of multivariate Student t distributions with common degrees of freedom.

    Attributes:
        weight: (C,), adding up to one.
        mean: (C, D).
        cholesky: lower triangular factors of the scale matrices, (C, D, D).
    """

    weight: NDArray[np.float64]
    mean: NDArray[np.float64]
    cholesky: NDArray[np.float64]

    def sample(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        r"""$\theta = \mu_c + L_c z \sqrt{\nu / s}$ with $z \sim N(0, I)$, $s \sim \chi^2_\nu$: (count, D)."""
        component = rng.choice(len(self.weight), size=count, p=self.weight)
        z = rng.standard_normal((count, self.mean.shape[1]))
        stretch = np.sqrt(DEGREES_OF_FREEDOM / rng.chisquare(DEGREES_OF_FREEDOM, size=(count, 1)))
        return self.mean[component] + stretch * np.einsum("kij,kj->ki", self.cholesky[component], z)

    def log_prob(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        r"""$\log \sum_c \pi_c t_\nu(\theta; \mu_c, L_c L_c^T)$, (K, D) -> (K,)."""
        parts = [
            np.log(w) + stats.multivariate_t.logpdf(theta, loc=m, shape=c @ c.T, df=DEGREES_OF_FREEDOM)
            for w, m, c in zip(self.weight, self.mean, self.cholesky, strict=True)
        ]
        return np.asarray(logsumexp(np.stack([np.atleast_1d(p) for p in parts]), axis=0))


def evidence_from_draws(
    draws: NDArray[np.float64], log_joint: Density, *, seed: int, count: int = 50_000
) -> EvidenceCheck:
    r"""Log evidence from draws of the posterior and the log joint density.

    $\log \hat p(x) = \log \frac{1}{K} \sum_k p(x, \theta_k) / m(\theta_k)$, $\theta_k \sim m$. The mixture m is
    fitted to one half of the draws; the other half chooses the number of components, by their log density. The
    estimate is unbiased for any m that covers the posterior. It cannot see a mode that the draws lack.

    In a bounded space it is best called with theta mapped to the whole of R^D and the Jacobian in `log_joint`:
    draws of m outside the support are wasted, though they do no harm.

    Args:
        draws: equally weighted draws, in any order, (S, D).
        log_joint: log p(x given theta) + log p(theta) in nats, (B, D) -> (B,); -inf outside the support.
        seed: every random number is a function of it.
        count: K, draws of the mixture.

    Raises:
        InputError: too few or degenerate draws, or none of the mixture's draws has a finite log joint density.
    """
    draws = np.asarray(draws, dtype=np.float64)
    _check_draws(draws, count)
    rng = np.random.default_rng(seed)
    mixture = fit_mixture(draws, rng=rng)
    theta = mixture.sample(count, rng)
    density = CountedDensity(log_joint)
    log_density = np.concatenate([density(theta[k : k + CHUNK]) for k in range(0, count, CHUNK)])
    log_weight = torch.from_numpy(log_density - mixture.log_prob(theta))[:, None]
    refused = int((~torch.isfinite(log_weight)).sum())
    if refused == count:
        raise InputError(
            f"evidence check: log joint density not finite at any of {count} draws; check draws and density"
        )
    return EvidenceCheck(
        log_evidence=float(importance.log_evidence(log_weight)),
        log_evidence_error=float(importance.log_evidence_error(log_weight)),
        ess_fraction=float(importance.ess_fraction(log_weight)),
        pareto_k=float(importance.pareto_k(log_weight)),
        refused=refused,
        components=len(mixture.weight) - 1,
        likelihood_calls=density.calls,
    )


def fit_mixture(draws: NDArray[np.float64], *, rng: np.random.Generator) -> StudentMixture:
    """Fit a Gaussian mixture to half of the draws (S, D), choose its size on the other half, give it heavy tails."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    center, scale = draws.mean(axis=0), draws.std(axis=0)
    z = (rng.permutation(draws) - center) / scale
    half = len(z) // 2
    fitted, held_out = z[:half][:FITTED_DRAWS], z[half:][:FITTED_DRAWS]
    random_state = int(rng.integers(2**31))
    best, best_score = None, -np.inf
    for components in COMPONENTS:
        if components > 1 and len(fitted) < 20 * components * z.shape[1]:
            break
        with warnings.catch_warnings():
            # an unfinished fit is a valid proposal all the same: the weights correct it, the ESS shows it
            warnings.simplefilter("ignore", ConvergenceWarning)
            candidate = GaussianMixture(components, reg_covar=1e-6, max_iter=200, random_state=random_state).fit(fitted)
        score = float(candidate.score(held_out))
        if score > best_score:
            best, best_score = candidate, score
    if best is None:
        raise InputError("evidence check: no mixture could be fitted; the draws may be degenerate")
    weight, mean, fitted_covariance = (np.asarray(v) for v in (best.weights_, best.means_, best.covariances_))
    covariance = np.concatenate([WIDENING**2 * fitted_covariance, 4.0 * np.cov(z.T).reshape(1, z.shape[1], -1)])
    return StudentMixture(
        weight=np.append((1.0 - BROAD_SHARE) * weight, BROAD_SHARE),
        mean=np.concatenate([mean, np.zeros((1, z.shape[1]))]) * scale + center,
        cholesky=scale[:, None] * np.linalg.cholesky(covariance),
    )


def _check_draws(draws: NDArray[np.float64], count: int) -> None:
    if draws.ndim != 2 or len(draws) < max(200, 40 * draws.shape[1]):
        raise InputError(f"evidence check: expected draws (S, D) with S at least 200 and 40 D, got {draws.shape}")
    if not np.isfinite(draws).all():
        raise InputError("evidence check: some draws are not finite")
    if (draws.std(axis=0) == 0).any():
        raise InputError("evidence check: a parameter has the same value in every draw")
    if count < 1000:
        raise InputError(f"evidence check: expected count of at least 1000, got {count}")
