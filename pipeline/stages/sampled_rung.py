r"""The rung `sampled`: MCMC started from the weighted draws of q, for an observation that nothing else could repair.

emcee moves in the unconstrained space, and its own convergence checks are the gate (rank-normalised R-hat,
effective sample sizes, autocorrelation times). Its evidence is an importance-sampling estimate from a Student-t
mixture m fitted to its draws,

    log p(x) = log < p(x, theta) / m(theta) >_m

and must not fall below that of the amortized q. Chains started from q cannot find a mode that q lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.baselines.emcee_sampler import run_emcee
from pipeline.baselines.evidence_check import fit_mixture
from pipeline.estimators.importance import Evidence, WeightedDraws, summarize, systematic_resample
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.support import SupportTransform
from pipeline.progress import progress_bar
from pipeline.rng import derived_seed, generator
from pipeline.settings import InferSettings
from pipeline.stages.verdicts import what_it_lost
from simulators.protocol import Data, log_likelihood

LARGEST_PARETO_K = 0.7
"""Of the mixture's weights, above which its evidence is not to be trusted."""


@dataclass(frozen=True)
class Sampled:
    """What MCMC found for one observation.

    Attributes:
        theta: draws of the chains, (S, D).
        draws: weighted draws of the mixture fitted to them, (K, 1).
        evidence: their figures, (1,) each.
        r_hat: largest rank-normalised R-hat.
        calls: values of theta at which the likelihood was evaluated.
        why_not: empty if it passes, else the reason.
    """

    theta: Tensor
    draws: WeightedDraws
    evidence: Evidence
    r_hat: float
    calls: int
    why_not: str


def sample_one(
    posterior: Posterior,
    x: Data,
    weighted: WeightedDraws,
    amortized: Evidence,
    *,
    settings: InferSettings,
    seed: int,
    index: int,
) -> Sampled:
    """MCMC of one observation.

    Args:
        x: one row.
        weighted: the best weighted draws so far, (K, 1).
        amortized: figures of the amortized q, which the evidence must not fall below.

    Raises:
        InputError: too few walkers or steps, no walker that can start, or chains to which no mixture can be fitted.
    """
    joint = _Joint(posterior, x)
    options = settings.sample
    stream = generator(seed, "infer-sample-start", index, device=posterior.device)
    order, _ = systematic_resample(weighted.log_weight, options.walkers, generator=stream)
    start = joint.support.to_unconstrained(weighted.theta[order[:, 0], 0]).cpu().numpy()
    with progress_bar("emcee", options.walkers * (options.steps + options.burn_in + 1)) as advance:
        done = 0

        def progress(calls: int, expected: int | None) -> None:
            nonlocal done
            advance(calls - done, total=expected)
            done = calls

        result = run_emcee(
            joint.log_density,
            start,
            steps=options.steps,
            burn_in=options.burn_in,
            seed=derived_seed(seed, "infer-emcee", index),
            progress=progress,
        )
    draws = joint.weigh_mixture(
        result.draws, count=settings.most_proposals, seed=derived_seed(seed, "infer-mixture", index)
    )
    evidence = summarize(draws)
    reason = what_it_lost(evidence, amortized, missed=0.0, rung="MCMC")
    if not result.converged:
        figures = ", ".join(f"{k} {result.checks[k]:.3g}" for k in ("r_hat", "ess_bulk", "acceptance_fraction"))
        reason = f"MCMC did not converge: {figures}"
    elif not reason and float(evidence.pareto_k) > LARGEST_PARETO_K:
        reason = f"the mixture fitted to MCMC draws has pareto_k {float(evidence.pareto_k):.2f}"
    theta = joint.to_theta(result.draws)[0]
    calls = result.likelihood_calls + settings.most_proposals
    return Sampled(theta, draws, evidence, float(result.checks["r_hat"]), calls, reason)


class _Joint:
    """Densities of one observation over the unconstrained space."""

    def __init__(self, posterior: Posterior, x: Data) -> None:
        self.posterior, self.x = posterior, x
        self.support = SupportTransform(posterior.prior)

    def to_theta(self, v: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """theta (B, D) and log |d theta / dv| (B,)."""
        return self.support.to_theta(torch.from_numpy(np.ascontiguousarray(v)).to(self.posterior.device))

    @torch.no_grad()
    def parts(self, v: NDArray[np.float64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """theta (B, D); log_likelihood, log_prior and log |d theta / dv| (B,)."""
        theta, log_det = self.to_theta(v)
        likelihood = log_likelihood(self.posterior.simulator, theta[:, None], self.x)[:, 0]
        return theta, likelihood.double(), self.posterior.prior.log_prob(theta).double(), log_det

    def log_density(self, v: NDArray[np.float64]) -> NDArray[np.float64]:
        r"""$\log p(x|\theta) + \log p(\theta) + \log |d\theta/dv|$, (B, D) -> (B,); -inf where it is not a number."""
        _, likelihood, prior, log_det = self.parts(v)
        total = likelihood + prior + log_det
        return torch.where(total.isnan(), -torch.inf, total).cpu().numpy()

    def weigh_mixture(self, v: NDArray[np.float64], *, count: int, seed: int) -> WeightedDraws:
        """Draws of the mixture fitted to v (S, D), weighted, (K, 1)."""
        rng = np.random.default_rng(seed)
        mixture = fit_mixture(v, rng=rng)
        at = mixture.sample(count, rng)
        theta, likelihood, prior, log_det = self.parts(at)
        log_q = torch.from_numpy(mixture.log_prob(at)).to(theta) - log_det
        return WeightedDraws(*(t[:, None] for t in (theta, log_q, likelihood, prior)))
