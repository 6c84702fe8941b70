"""The ladder of one observation: amortized, corrected, refined, failed. Climbed only as far as needed.

`exact`      the weights of the amortized q are good;
`corrected`  its weighted draws are reliable;
`refined`    a copy of q, trained on this observation's ELBO, weighs well in mixture with the amortized q;
`failed`     none of these: draws are delivered, and flagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import InferSettings
from pipeline.estimators.importance import Evidence, WeightedDraws, summarize, systematic_resample
from pipeline.estimators.network import Condition
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Amortized, Mixture, weigh
from pipeline.progress import progress_bar
from pipeline.rng import generator
from pipeline.training.refinement import refine
from simulators.protocol import Data


@dataclass(frozen=True)
class Outcome:
    """What the ladder delivers for one observation.

    Attributes:
        verdict: one of `schema.VERDICTS`.
        theta: (draws, D), equally weighted.
        proposals: the weighted draws behind them, of the q that the certificate speaks of.
        evidence: figures of that q, (1,) each.
        amortized: figures of the amortized q, (1,) each.
        repeated_fraction: share of delivered draws that repeat another.
        likelihood_calls: values of theta at which the likelihood was evaluated.
        note: why a refinement was rejected, if it was.
    """

    verdict: str
    theta: Tensor
    proposals: WeightedDraws
    evidence: Evidence
    amortized: Evidence
    repeated_fraction: float
    likelihood_calls: int
    note: str = ""


def climb(posterior: Posterior, x: Data, *, settings: InferSettings, seed: int, index: int) -> Outcome:
    """Posterior and certificate of one observation.

    Args:
        x: one row.
        seed, index: every random number depends on (seed, "infer-...", index).
    """
    condition = posterior.condition(x)
    q = Amortized(posterior.network, condition)
    with progress_bar("weigh", settings.proposals, safe=True) as advance:
        draws = weigh(
            q,
            posterior.simulator,
            posterior.prior,
            x,
            draws=settings.proposals,
            generator=_stream(posterior, seed, "weigh", index),
            advance=advance,
        )
    amortized = summarize(draws)
    verdict = verdict_of(amortized, settings, settings.proposals)
    chosen, evidence, note, calls = draws, amortized, "", settings.proposals
    wanted = settings.refine.when == "always" or (settings.refine.when == "auto" and verdict != "exact")
    if wanted:
        refined_draws = _refined(posterior, x, condition, settings, seed, index)
        refined = summarize(refined_draws)
        calls += settings.refine.steps * settings.refine.draws + settings.proposals
        note = why_rejected(refined, amortized, settings)
        if not note:
            chosen, evidence, verdict = refined_draws, refined, "refined"
    order, repeated = systematic_resample(
        chosen.log_weight, settings.draws, generator=_stream(posterior, seed, "deliver", index)
    )
    return Outcome(verdict, chosen.theta[order[:, 0], 0], chosen, evidence, amortized, float(repeated), calls, note)


def verdict_of(evidence: Evidence, settings: InferSettings, draws: int) -> str:
    """`exact`, `corrected` or `failed`, by the thresholds of the settings."""
    if is_exact(evidence, settings):
        return "exact"
    ess, k = float(evidence.ess_fraction), float(evidence.pareto_k)
    if ess * draws >= settings.corrected_ess and k <= settings.corrected_pareto_k:
        return "corrected"
    return "failed"


def is_exact(evidence: Evidence, settings: InferSettings) -> bool:
    """Whether the weights themselves are good.

    pareto_k is the shape of the tail of the weights and knows nothing of its size. Where the effective sample size
    is nearly the number of draws, the tail carries next to nothing, and the limit of reliability is enough.
    """
    ess, k = float(evidence.ess_fraction), float(evidence.pareto_k)
    limit = settings.equal_pareto_k if ess >= settings.equal_ess_fraction else settings.exact_pareto_k
    return ess >= settings.exact_ess_fraction and k <= limit


def why_rejected(refined: Evidence, amortized: Evidence, settings: InferSettings) -> str:
    """Empty if a refinement passes, else the reason.

    It needs what `exact` needs, and its evidence must not fall by more than the errors of both: a copy must
    not certify itself by forgetting a mode.
    """
    if not is_exact(refined, settings):
        return f"refinement reached ess_fraction {float(refined.ess_fraction):.3f} and pareto_k {float(refined.pareto_k):.2f} only"
    fall = float(amortized.log_evidence - refined.log_evidence)
    error = float((amortized.log_evidence_error.square() + refined.log_evidence_error.square()).sqrt())
    # two standard errors of the difference, so that one honest refinement in forty is turned away, not one in six
    if fall > 2 * error:
        return f"refinement lost {fall:.4f} nats of evidence, more than the error {error:.4f}: it may have forgotten a mode"
    return ""


def _refined(
    posterior: Posterior, x: Data, condition: Condition, settings: InferSettings, seed: int, index: int
) -> WeightedDraws:
    """Weighted draws under a mixture of the refined q, the amortized q, and the latter with widened tails.

    The amortized part keeps a mode that the copy may have left; the wide part bounds the weights where both have
    tails lighter than the posterior's.
    """
    options = settings.refine
    with progress_bar("refine", options.steps) as advance:
        copy = refine(
            posterior.network,
            condition,
            simulator=posterior.simulator,
            prior=posterior.prior,
            x=x,
            settings=options,
            generator=_stream(posterior, seed, "refine", index),
            advance=advance,
        )
    amortized = Amortized(posterior.network, condition)
    wide = Amortized(posterior.network, condition, base_scale=options.wide_scale)
    shares = [1 - options.amortized_share - options.wide_share, options.amortized_share, options.wide_share]
    mixture = Mixture([Amortized(copy, condition), amortized, wide], shares)
    stream = _stream(posterior, seed, "weigh-refined", index)
    with progress_bar("weigh", settings.proposals) as advance:
        return weigh(
            mixture,
            posterior.simulator,
            posterior.prior,
            x,
            draws=settings.proposals,
            generator=stream,
            advance=advance,
        )


def _stream(posterior: Posterior, seed: int, purpose: str, index: int) -> torch.Generator:
    return generator(seed, f"infer-{purpose}", index, device=posterior.device)


def one_row(x: Mapping[str, Tensor], row: int) -> Data:
    """Observation `row` of x, as x of one row."""
    return {name: values[row : row + 1] for name, values in x.items()}
