r"""Importance weights of draws from q, and what they say: evidence, ELBO, gap, effective sample size, Pareto k.

    log_weight = log_joint - log_q,     theta_k ~ q(theta given x),  k = 1 .. K

All in float64 and in log space. Shapes: (K, N), draws by observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightedDraws:
    """K draws for each of N observations, with everything needed to weigh them, in float64.

    Attributes:
        theta: (K, N, D).
        log_q: (K, N).
        log_likelihood: (K, N).
        log_prior: (K, N).
    """

    theta: Tensor
    log_q: Tensor
    log_likelihood: Tensor
    log_prior: Tensor

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
    """Figures of the weights, one an observation (N,); nats."""

    log_evidence: Tensor
    log_evidence_error: Tensor
    elbo: Tensor
    reconstruction: Tensor
    regularization: Tensor
    kl_gap: Tensor
    ess_fraction: Tensor
    pareto_k: Tensor
    refused: Tensor

    def rows(self, index: Tensor | slice) -> Evidence:
        """Some of the N observations."""
        return Evidence(*(getattr(self, f.name)[index] for f in fields(self)))


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
    r"""All figures of weighted draws.

    ELBO = $\langle \log p(x|\theta) \rangle_q - \langle \log q - \log p(\theta) \rangle_q$ =
    reconstruction - regularization. A draw of weight zero would make it -inf. Such draws are counted in `refused`,
    and the ELBO is that of q restricted to where the weight is not zero, a share s of it: a proper density
    q / s, so that the bound holds: regularization is $\langle \log q - \log s - \log p(\theta) \rangle$.
    """
    log_weight = draws.log_weight.double()
    usable = log_weight.isfinite()
    refused = (~usable).sum(0)
    reconstruction = _mean(draws.log_likelihood.double(), usable)
    log_share = usable.double().mean(0).log()
    regularization = _mean((draws.log_q - draws.log_prior).double(), usable) - log_share
    elbo = reconstruction - regularization
    evidence = log_evidence(log_weight)
    return Evidence(
        log_evidence=evidence,
        log_evidence_error=log_evidence_error(log_weight),
        elbo=elbo,
        reconstruction=reconstruction,
        regularization=regularization,
        kl_gap=evidence - elbo,
        ess_fraction=ess_fraction(log_weight),
        pareto_k=pareto_k(log_weight),
        refused=refused,
    )


def _mean(values: Tensor, usable: Tensor) -> Tensor:
    """Mean over draws of the usable values; NaN if there are none."""
    return torch.where(usable, values, 0.0).sum(0) / usable.sum(0)


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
