r"""A proposal for the posterior of repeated observations, from the amortized posteriors of each.

    p(theta | x_1 .. x_N)  ∝  p(theta) prod_n p(x_n | theta)  ∝  p(theta)^(1 - N) prod_n p(theta | x_n)

No density that can be sampled is the product of N flows over a power of the prior. On the whole of R^D,
v = T^-1(theta), one is built from Student t components: the product of Gaussians with the moments of each q_n, the
prior counted once; the same twice as wide; a mixture fitted to draws of all q_n, which has every mode that any of them
has. It then follows its own tempered weights (Cappe et al. 2008, https://arxiv.org/abs/0710.4242).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.baselines.evidence_check import StudentMixture, fit_mixture
from pipeline.errors import InputError
from pipeline.estimators.importance import ess_fraction, systematic_resample, usable_log_weight
from pipeline.estimators.network import BLOCK, Condition, draw_in_blocks
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.support import SupportTransform
from pipeline.rng import derived_seed, generator
from pipeline.settings import AdaptSettings
from pipeline.training.adaptation import largest_power
from simulators.priors import prior_of, sample
from simulators.protocol import Data, Simulator

Array = NDArray[np.float64]

MOMENT_DRAWS = 1_000
"""Draws of each q_n for its moments: they put the mean of the product off by 1/sqrt(1,000) of its own width, for any N."""
POOLED_DRAWS = 10_000
START_SHARES = (0.5, 0.2, 0.3)
"""Of the first proposal: product, product twice as wide, mixture fitted to draws of all q_n."""
KEPT_SHARE = 0.1
"""Of the first proposal in every later one, so that no mode that a q_n has is ever without draws."""
WIDE_SHARE = 0.1
"""Of components twice as wide in the mixture that certifies: they bound the weights where its tails are too light."""
STALLED = 1.05
"""A round that gains less than this factor in effective draws, twice in a row, is where adaptation ends."""


@dataclass(frozen=True)
class Coordinates:
    """theta to the whole of R^D and back, periodic parameters cut open opposite to where the draws are.

    On an interval an angle near the end of its period would be in two pieces; turned so that its circular mean lies in the
    middle, it is in one, and the logit takes it to R with no draw refused.

    Attributes:
        support: bijections that take every bounded parameter for an interval.
        periodic: (D,), whether each parameter is.
        low, period, turn: (D,), its period and by how much it is turned; 0, 1 and 0 where it is not periodic.
    """

    support: SupportTransform
    periodic: Tensor
    low: Tensor
    period: Tensor
    turn: Tensor

    def to_real(self, theta: Tensor) -> Tensor:
        """v of theta, (..., D)."""
        return self.support.to_unconstrained(self._turned(theta, -self.turn))

    def to_theta(self, v: Tensor) -> tuple[Tensor, Tensor]:
        r"""theta and $\log |d\theta / dv|$ of v, (..., D) -> (..., D), (...)."""
        theta, log_det = self.support.to_theta(v)
        return self._turned(theta, self.turn), log_det

    def _turned(self, theta: Tensor, by: Tensor) -> Tensor:
        if not bool(self.periodic.any()):
            return theta
        turned = self.low + torch.remainder(theta - self.low + by, self.period)
        high = self.low + self.period
        return torch.where(self.periodic, torch.minimum(turned, torch.nextafter(high, self.low)), theta)


def coordinates_of(simulator: Simulator, theta: Tensor) -> Coordinates:
    """Coordinates for draws theta (S, D), on the CPU."""
    prior = prior_of(simulator)
    parameters = simulator.parameters
    periodic = torch.tensor([p.periodic for p in parameters])
    low, period = torch.zeros(len(parameters)).double(), torch.ones(len(parameters)).double()
    for d, p in enumerate(parameters):
        if p.periodic:
            support: Any = p.prior.support if p.prior else None  # an interval: `Parameter` sees to it
            low[d] = float(support.lower_bound)
            period[d] = float(support.upper_bound) - low[d]
    angle = 2 * math.pi * (theta - low) / period
    middle = torch.atan2(angle.sin().mean(0), angle.cos().mean(0)) / (2 * math.pi) * period
    turn = torch.where(periodic, middle - 0.5 * period, 0.0)
    return Coordinates(SupportTransform(prior), periodic, low, period, turn)


# ---------------------------------------------------------------- the first proposal


def draws_of_each(posterior: Posterior, x: Data, draws: int, *, seed: int, purpose: str) -> list[Tensor]:
    """`draws` draws of every q_n, in blocks of rows: theta (draws, rows, D) each, on the CPU."""
    count = len(next(iter(x.values())))
    step = max(1, BLOCK // draws)
    blocks: list[Tensor] = []
    for start in range(0, count, step):
        condition: Condition = posterior.condition({k: v[start : start + step] for k, v in x.items()})
        stream = generator(seed, f"combine-{purpose}", start, device=posterior.device)
        with torch.no_grad():
            blocks.append(draw_in_blocks(posterior.network, condition, draws, generator=stream)[0].cpu())
    return blocks


def product_moments(mean: Array, covariance: Array, prior_mean: Array, prior_covariance: Array) -> tuple[Array, Array]:
    r"""Mean and covariance of $N(m_0, S_0)^{1 - N} \prod_n N(m_n, S_n)$.

    $P = \sum_n S_n^{-1} - (N - 1) S_0^{-1}$, $\mu = P^{-1} (\sum_n S_n^{-1} m_n - (N - 1) S_0^{-1} m_0)$. In units of the
    prior every eigenvalue of P is kept at 1 or more: data do not make a posterior wider than its prior, and where
    the moments of a q_n with several modes say so, P would not be positive.

    Args:
        mean: (N, D).
        covariance: (N, D, D).
        prior_mean: (D,).
        prior_covariance: (D, D).
    """
    root = np.linalg.cholesky(prior_covariance)
    whitened_mean = np.linalg.solve(root, (mean - prior_mean).T).T
    half = np.linalg.solve(root, covariance)
    whitened = np.linalg.solve(root, half.transpose(0, 2, 1))
    inverse = np.linalg.inv(whitened)
    location = np.einsum("nij,nj->i", inverse, whitened_mean)
    precision = inverse.sum(0) - (len(mean) - 1) * np.eye(mean.shape[1])
    value, vector = np.linalg.eigh(0.5 * (precision + precision.T))
    inverse_precision = (vector / np.maximum(value, 1.0)) @ vector.T
    return prior_mean + root @ inverse_precision @ location, root @ inverse_precision @ root.T


def first_proposal(posterior: Posterior, x: Data, *, seed: int) -> tuple[Coordinates, StudentMixture]:
    """Coordinates, and the mixture of product, wide product and fitted q_n, for N rows of x."""
    rng = np.random.default_rng(derived_seed(seed, "combine-pool"))
    few = {k: v[:: max(1, len(v) // 100)] for k, v in x.items()}
    some = torch.cat([b.flatten(0, 1) for b in draws_of_each(posterior, few, 100, seed=seed, purpose="turn")])
    coordinates = coordinates_of(posterior.simulator, some)
    blocks = (
        coordinates.to_real(b).numpy() for b in draws_of_each(posterior, x, MOMENT_DRAWS, seed=seed, purpose="moments")
    )
    means, covariances, pooled = [], [], []
    rows = len(next(iter(x.values())))
    of_each = min(MOMENT_DRAWS, max(1, POOLED_DRAWS // rows))
    for v in blocks:
        centred = v - v.mean(0)
        means.append(v.mean(0))
        covariances.append(np.einsum("kni,knj->nij", centred, centred) / (len(v) - 1))
        pooled.append(v[:of_each].reshape(-1, v.shape[-1]))
    prior_draws = sample(prior_of(posterior.simulator), POOLED_DRAWS, generator(seed, "combine-prior"))
    prior_v = coordinates.to_real(prior_draws.double()).numpy()
    tiny = 1e-12 * np.eye(prior_v.shape[1]) * prior_v.var(0)
    mean, covariance = product_moments(
        np.concatenate(means),
        np.concatenate(covariances) + tiny,
        prior_v.mean(0),
        np.cov(prior_v.T).reshape(len(tiny), len(tiny)),
    )
    pool = np.concatenate(pooled)
    if len(pool) > POOLED_DRAWS:
        pool = pool[rng.choice(len(pool), POOLED_DRAWS, replace=False)]
    root = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    single = [StudentMixture(np.ones(1), mean[None], scale * root[None]) for scale in (1.0, 2.0)]
    return coordinates, merged([*single, fit_mixture(pool, rng=rng)], START_SHARES)


def merged(parts: Sequence[StudentMixture], shares: Sequence[float]) -> StudentMixture:
    r"""$\sum_j a_j m_j$ of mixtures $m_j$ with shares $a_j$."""
    return StudentMixture(
        weight=np.concatenate([a * p.weight for a, p in zip(shares, parts, strict=True)]),
        mean=np.concatenate([p.mean for p in parts]),
        cholesky=np.concatenate([p.cholesky for p in parts]),
    )


def locally_widened(mixture: StudentMixture) -> StudentMixture:
    """A mixture of `fit_mixture` with each component twice as wide in place of its last one, the broad one."""
    fit = StudentMixture(
        weight=mixture.weight[:-1] / mixture.weight[:-1].sum(), mean=mixture.mean[:-1], cholesky=mixture.cholesky[:-1]
    )
    wide = StudentMixture(weight=fit.weight, mean=fit.mean, cholesky=2.0 * fit.cholesky)
    return merged([fit, wide], (1 - WIDE_SHARE, WIDE_SHARE))


# ---------------------------------------------------------------- adaptation


@dataclass(frozen=True)
class Adapted:
    """A mixture that has followed its weights.

    Attributes:
        mixture: on R^D, the last fit.
        v: every point at which the joint density was evaluated on the way, (K, D).
        log_joint: of each, the Jacobian included, (K,).
    """

    mixture: StudentMixture
    v: Array
    log_joint: Array

    def largest_share(self, log_evidence: float, draws: int) -> float:
        r"""$\max_k p(x, v_k) / [m(v_k) \hat p(x)] / K$ over the points met on the way: one that m has lost would stand out."""
        finite = np.isfinite(self.log_joint)
        if not finite.any():
            return 0.0
        log_weight = self.log_joint[finite] - self.mixture.log_prob(self.v[finite])
        return float(np.exp(min(log_weight.max() - log_evidence, 700.0))) / draws


def adapt_mixture(
    start: StudentMixture,
    log_joint: Callable[[Array], Array],
    *,
    settings: AdaptSettings,
    seed: int,
    advance: Callable[..., None] | None = None,
) -> Adapted:
    """Refit a mixture to its own weighted draws until they are good twice in a row.

    Weights are tempered so that `effective_share` of the draws stay effective. As many draws are resampled as are
    effective, so that a draw of large weight is not taken for a mode. Every round draws a share from the first proposal
    and from a component as wide as everything; in what is returned each component is instead widened for itself. Between
    narrow modes, where N is large, a few draws far out would be most of its KL to the posterior, and say nothing of the rest.

    Args:
        log_joint: log p(x, theta) + log |dtheta / dv|, (K, D) -> (K,).

    Raises:
        InputError: no draw has a likelihood above zero.
    """
    rng, stream = np.random.default_rng(derived_seed(seed, "combine-adapt")), generator(seed, "combine-resample")
    mixture, fitted, met, before, passed, stalled = start, start, [], 0.0, False, 0
    for round_ in range(settings.rounds):
        v = mixture.sample(settings.draws, rng)
        density = log_joint(v)
        met.append((v, density))
        log_weight = usable_log_weight(torch.from_numpy(density - mixture.log_prob(v))[:, None])
        if not bool(log_weight.isfinite().any()):
            raise InputError(
                f"combine: the likelihood of all rows together is zero at each of {settings.draws} draws: rows that do not share one theta?"
            )
        share = float(ess_fraction(log_weight))
        power = float(largest_power(log_weight, settings.effective_share))
        if advance:
            advance(1, note=f"power {power:.3f}, effective {share:.3f}")
        good = power == 1 and share >= settings.enough
        stalled = stalled + 1 if power == 1 and share < STALLED * before else 0
        if (good and passed) or stalled >= 2:
            if advance:
                advance(settings.rounds - round_ - 1)
            break
        passed, before = good, share
        tempered = torch.where(log_weight.isfinite(), power * log_weight, -math.inf)
        count = max(int(float(ess_fraction(tempered)) * settings.draws), 20 * v.shape[1])
        index, _ = systematic_resample(tempered, count, generator=stream)
        fitted = fit_mixture(v[index[:, 0].numpy()], rng=rng)
        mixture = merged([fitted, start], (1 - KEPT_SHARE, KEPT_SHARE))
    return Adapted(locally_widened(fitted), np.concatenate([v for v, _ in met]), np.concatenate([d for _, d in met]))
