r"""Importance weights of draws from q, and what they say: evidence, ELBO, gap, effective sample size, Pareto k.

    log_weight = log_joint - log_q,     theta_k ~ q(theta given x),  k = 1 .. K

All in float64 and in log space. Shapes: (K, N), draws by observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

MATTERS = 20.0
"""Nats below the largest log weight within which a draw carries weight."""
WORST = 0.01
"""Share of q's draws of whose part in the gap a certificate tells: those of the least weight."""


@dataclass(frozen=True)
class WeightedDraws:
    """K draws for each of N observations, with everything needed to weigh them, in float64.

    Attributes:
        theta: (K, N, D).
        log_q: (K, N).
        log_likelihood: (K, N).
        log_prior: (K, N).
        log_q_itself: density of q itself where the draws are of a mixture m that defends it, and log_q is that of m;
            log_q where they are draws of q, (K, N).
    """

    theta: Tensor
    log_q: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_q_itself: Tensor

    @property
    def log_joint(self) -> Tensor:
        """log p(x given theta) + log p(theta)."""
        return self.log_likelihood + self.log_prior

    @property
    def log_weight(self) -> Tensor:
        """log_joint - log_q; NaN stays NaN and is counted by `refused`."""
        return self.log_joint - self.log_q

    def rows(self, index: Tensor | slice) -> WeightedDraws:
        """Some of the N observations."""
        return WeightedDraws(*(getattr(self, f.name)[:, index] for f in fields(self)))

    def and_then(self, more: WeightedDraws) -> WeightedDraws:
        """These draws and more of the same observations."""
        return WeightedDraws(*(torch.cat([getattr(self, f.name), getattr(more, f.name)]) for f in fields(self)))


@dataclass(frozen=True)
class Evidence:
    """Figures of the weights, one an observation (N,); nats. See `summarize`.

    `rounding` is how well a log weight is known (nats), `distinct_draws` how many different values the draws of a parameter have,
    `largest_weight` is in units of their mean.
    """

    log_evidence: Tensor
    log_evidence_error: Tensor
    elbo: Tensor
    reconstruction: Tensor
    regularization: Tensor
    kl_gap: Tensor
    gap_of_worst_percent: Tensor
    mixture_elbo: Tensor
    mixture_kl_gap: Tensor
    ess_fraction: Tensor
    pareto_k: Tensor
    refused: Tensor
    rounding: Tensor
    distinct_draws: Tensor
    largest_weight: Tensor

    def rows(self, index: Tensor | slice) -> Evidence:
        """Some of the N observations."""
        return Evidence(*(getattr(self, f.name)[index] for f in fields(self)))


def notable(draws: WeightedDraws, count: int) -> Tensor:
    """theta (P, D) of ONE observation's draws with the largest joint density, and of those with the largest weight."""
    best = [
        v[:, 0].nan_to_num(nan=-math.inf, posinf=-math.inf).topk(min(count, len(v))).indices
        for v in (draws.log_joint, draws.log_weight)
    ]
    return draws.theta[torch.cat(best).unique(), 0]


def usable_log_weight(log_weight: Tensor) -> Tensor:
    """log_weight in float64 with NaN and +inf turned into weight zero."""
    log_weight = log_weight.double()
    return torch.where(torch.isnan(log_weight) | (log_weight == math.inf), -math.inf, log_weight)


def log_evidence(log_weight: Tensor) -> Tensor:
    r"""$\log \hat p(x) = \log \frac{1}{K} \sum_k w_k$, (K, N) -> (N,); refused draws count as weight zero."""
    return torch.logsumexp(usable_log_weight(log_weight), 0) - math.log(log_weight.shape[0])


def log_evidence_error(log_weight: Tensor) -> Tensor:
    r"""Standard error of `log_evidence` by the delta method, (K, N) -> (N,).

    $\sigma = \sqrt{ \left( \frac{1}{\mathrm{ess}} - 1 \right) \frac{1}{K - 1} }$ with
    $\mathrm{ess} = (\sum_k w_k)^2 / (K \sum_k w_k^2)$: the sample variance of w over its squared mean.
    """
    count = log_weight.shape[0]
    return ((1 / ess_fraction(log_weight) - 1).clamp_min(0) / max(count - 1, 1)).sqrt()


def ess_fraction(log_weight: Tensor) -> Tensor:
    r"""Kish's effective sample size over K: $(\sum_k w_k)^2 / (K \sum_k w_k^2)$, (K, N) -> (N,); 0 if no weight is usable."""
    w = usable_log_weight(log_weight)
    top = w.max(0).values
    w = (w - torch.where(top.isfinite(), top, 0.0)).exp()
    total, square = w.sum(0), w.square().sum(0)
    return torch.where(square > 0, total.square() / (w.shape[0] * square.clamp_min(1e-300)), 0.0)


def pareto_k(log_weight: Tensor) -> Tensor:
    """Shape of the generalised Pareto fitted to the largest weights, (K, N) -> (N,).

    ArviZ's Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao and Gabry 2024,
    https://arxiv.org/abs/1507.02646). Infinite if no weight is usable.
    """
    import arviz

    w = usable_log_weight(log_weight).cpu().numpy()
    result = np.full(w.shape[1], np.inf)
    for n in range(w.shape[1]):
        finite = np.isfinite(w[:, n])
        if not finite.any():
            continue
        column = np.where(finite, w[:, n], w[finite, n].min() - 700.0)  # exp(-700): zero in all but name
        if np.ptp(column) < 1e-12:
            result[n] = -np.inf  # equal weights have no tail
            continue
        with np.errstate(over="ignore"):  # 1 / exp(800) = 0 in its fit is meant so
            result[n] = float(np.asarray(arviz.psislw(column)[1]))
    return torch.from_numpy(result).to(log_weight.device)


def summarize(draws: WeightedDraws) -> Evidence:
    r"""All figures of weighted draws of m, which is q itself or a mixture that defends it.

    Evidence, its error, ESS and Pareto k are those of the weights p(x, theta) / m. ELBO and gap are those of q itself,

    ELBO = $\langle \log p(x|\theta) \rangle_q - \langle \log q - \log p(\theta) \rangle_q$ = reconstruction - regularization,

    by the same draws with weights r = q / m, which the share of q in m bounds. A draw of weight zero would make it -inf.
    Such draws are counted in `refused`, and the ELBO is that of q restricted to where the weight is not zero, a share s of
    it: a proper density q / s, so that the bound holds: regularization is $\langle \log q - \log s - \log p(\theta) \rangle$.
    """
    log_weight = draws.log_weight.double()
    usable = log_weight.isfinite()
    refused = (~usable).sum(0)
    evidence = log_evidence(log_weight)
    log_ratio = usable_log_weight(draws.log_q_itself - draws.log_q)
    log_ratio = torch.where(draws.log_q.isfinite(), log_ratio, 0.0)  # a draw without a density counts as one of q
    ratio = (log_ratio - log_ratio.max(0).values.clamp_min(-1e300)).exp()
    whole = ratio.sum(0)
    ratio = torch.where(usable, ratio, 0.0)
    log_share = (ratio.sum(0) / whole).log()
    reconstruction = _mean(draws.log_likelihood.double(), ratio)
    regularization = _mean((draws.log_q_itself - draws.log_prior).double(), ratio) - log_share
    elbo = reconstruction - regularization
    mixture_elbo = _mean(log_weight, usable.double()) + usable.double().mean(0).log()
    surprise = evidence - (draws.log_joint - draws.log_q_itself).double() - log_share
    return Evidence(
        log_evidence=evidence,
        log_evidence_error=log_evidence_error(log_weight),
        elbo=elbo,
        reconstruction=reconstruction,
        regularization=regularization,
        kl_gap=evidence - elbo,
        gap_of_worst_percent=_of_worst(surprise, ratio, WORST),
        mixture_elbo=mixture_elbo,
        mixture_kl_gap=evidence - mixture_elbo,
        ess_fraction=ess_fraction(log_weight),
        pareto_k=pareto_k(log_weight),
        refused=refused,
        rounding=_rounding(draws),
        distinct_draws=_distinct(draws.theta),
        largest_weight=(usable_log_weight(log_weight).max(0).values - evidence).exp(),
    )


def replace_rounding(evidence: Evidence, at_least: Tensor) -> Evidence:
    """With a `rounding` (N,) that is no less than `at_least`."""
    return replace(evidence, rounding=torch.maximum(evidence.rounding, at_least))


def _rounding(draws: WeightedDraws) -> Tensor:
    r"""$2^{-52} \max |\log p(x|\theta)|, |\log p(\theta)|, |\log q|$ over draws that carry weight, (N,), nats: float64's own limit."""
    log_weight = usable_log_weight(draws.log_weight)
    matters = log_weight > log_weight.max(0).values - MATTERS
    terms = torch.stack([draws.log_likelihood, draws.log_prior, draws.log_q]).double().abs().amax(0)
    return 2.0**-52 * torch.where(matters, terms, 0.0).amax(0)


def _distinct(theta: Tensor) -> Tensor:
    """Different values among the draws of the parameter that has the fewest, (K, N, D) -> (N,)."""
    ordered = theta.sort(0).values
    return 1 + (ordered[1:] != ordered[:-1]).sum(0).amin(-1)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over draws, of those with a weight; NaN if there are none."""
    return torch.where(weight > 0, weight * values, 0.0).sum(0) / weight.sum(0)


def _of_worst(surprise: Tensor, weight: Tensor, share: float) -> Tensor:
    r"""What the largest values that hold `share` of all weight add to the weighted mean, (K, N) -> (N,)."""
    order = torch.where(weight > 0, surprise, -math.inf).argsort(0, descending=True)
    weight = weight.gather(0, order)
    before = weight.cumsum(0) - weight
    kept = torch.minimum(weight, (share * weight.sum(0) - before).clamp_min(0))
    values = torch.where(kept > 0, surprise.gather(0, order), 0.0)
    return (kept * values).sum(0) / weight.sum(0)


def systematic_resample(log_weight: Tensor, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of `count` equally weighted draws (count, N), in random order, and the share of repeats (N,).

    Systematic resampling: one uniform number a column; a draw of normalised weight w appears floor or ceil of
    count * w times. Where no weight is usable every draw counts the same.
    """
    w = usable_log_weight(log_weight)
    w = torch.where(w.isfinite().any(0), w, 0.0)
    cumulative = torch.softmax(w, 0).cumsum(0).T.contiguous()  # (N, K)
    cumulative = cumulative / cumulative[:, -1:]
    columns = w.shape[1]
    offset = torch.rand(columns, 1, generator=generator, device=w.device, dtype=torch.float64)
    points = (torch.arange(count, device=w.device, dtype=torch.float64) + offset) / count
    index = torch.searchsorted(cumulative, points).clamp_max(w.shape[0] - 1)  # (N, count), sorted
    repeats = (index[:, 1:] == index[:, :-1]).double().sum(1) / count
    order = torch.rand(columns, count, generator=generator, device=w.device).argsort(1)
    return index.gather(1, order).T.contiguous(), repeats
