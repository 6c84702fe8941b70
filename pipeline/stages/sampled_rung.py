r"""The rung `sampled`: MCMC started from the weighted draws of q, for an observation that nothing else could repair.

emcee moves in the unconstrained space, and its own convergence checks are the gate (rank-normalised R-hat,
effective sample sizes, autocorrelation times). Its evidence is an importance-sampling estimate from a Student-t
mixture m fitted to its draws,

    log p(x) = log < p(x, theta) / m(theta) >_m

and must not fall below that of the amortized q. Chains started from q cannot find a mode that q lacks: the search can.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.baselines.emcee_sampler import run_emcee
from pipeline.baselines.evidence_check import fit_mixture
from pipeline.diagnostics.landscape import Landscape
from pipeline.estimators.arithmetic import weight_noise
from pipeline.estimators.importance import Evidence, WeightedDraws, replace_rounding, summarize, systematic_resample
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Proposal, weigh
from pipeline.progress import progress_bar
from pipeline.rng import derived_seed, generator
from pipeline.settings import InferSettings
from pipeline.stages.search import Fitted, log_joint_within
from pipeline.stages.verdicts import what_it_lost, why_unsound
from simulators.protocol import Data

LARGEST_PARETO_K = 0.7
"""Of the mixture's weights, above which its evidence is not to be trusted."""


@dataclass(frozen=True)
class Sampled:
    """What MCMC found for one observation.

    Attributes:
        theta: draws of the chains, (S, D).
        proposal: the mixture fitted to them.
        draws: weighted draws of that mixture, (K, 1).
        evidence: their figures, (1,) each.
        r_hat: largest rank-normalised R-hat.
        calls: values of theta at which the likelihood was evaluated.
        why_not: empty if it passes, else the reason.
    """

    theta: Tensor
    proposal: Proposal
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
    options = settings.sample
    stream = generator(seed, "infer-sample-start", index, device=posterior.device)
    landscape = Landscape(posterior.simulator, posterior.prior, x, generator=stream)
    order, _ = systematic_resample(weighted.log_weight, options.walkers, generator=stream)
    start = landscape.to_real(weighted.theta[order[:, 0], 0]).cpu().numpy()
    with progress_bar("emcee", options.walkers * (options.steps + options.burn_in + 1)) as advance:
        done = 0

        def progress(calls: int, expected: int | None) -> None:
            nonlocal done
            advance(calls - done, total=expected)
            done = calls

        result = run_emcee(
            lambda w: log_joint_within(landscape, w),
            start,
            steps=options.steps,
            burn_in=options.burn_in,
            seed=derived_seed(seed, "infer-emcee", index),
            progress=progress,
        )
    rng = np.random.default_rng(derived_seed(seed, "infer-mixture", index))
    proposal = Fitted(fit_mixture(result.draws, rng=rng), landscape)
    draws = weigh(proposal, posterior.simulator, posterior.prior, x, draws=settings.most_proposals, generator=stream)
    noise = weight_noise(draws, proposal, posterior.simulator, posterior.prior, x, generator=stream)
    evidence = replace_rounding(summarize(draws), noise)
    theta = landscape.to_theta(torch.from_numpy(result.draws).to(landscape.center))[0]
    reason = why_unsound(evidence, settings.most_proposals) or what_it_lost(
        evidence, amortized, missed=0.0, rung="MCMC"
    )
    if not result.converged:
        figures = ", ".join(f"{k} {result.checks[k]:.3g}" for k in ("r_hat", "ess_bulk", "acceptance_fraction"))
        reason = f"MCMC did not converge: {figures}"
    elif not reason and float(evidence.pareto_k) > LARGEST_PARETO_K:
        reason = f"the mixture fitted to MCMC draws has pareto_k {float(evidence.pareto_k):.2f}"
    calls = result.likelihood_calls + settings.most_proposals
    return Sampled(theta, proposal, draws, evidence, float(result.checks["r_hat"]), calls, reason)
