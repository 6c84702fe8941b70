"""The ladder of one observation: amortized, corrected, refined, failed. Climbed only as far as needed.

`exact`      the weights of the amortized q are good;
`corrected`  its weighted draws are reliable;
`refined`    a copy of q, trained on this observation's ELBO, weighs well in mixture with the amortized q;
`failed`     none of these: draws are delivered, and flagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config import InferSettings
from pipeline.estimators.importance import Evidence, WeightedDraws, summarize, systematic_resample
from pipeline.estimators.network import Condition, PosteriorNetwork
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Amortized, Mixture, weigh
from pipeline.progress import progress_bar
from pipeline.rng import generator
from pipeline.training.adaptation import adapt
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
        refinement = _refine(posterior, x, condition, draws, amortized, settings, seed, index)
        calls += refinement.calls
        note = why_rejected(refinement.evidence, amortized, settings)
        if not note:
            chosen, evidence, verdict = refinement.draws, refinement.evidence, "refined"
        elif _is_better(refinement.evidence, amortized, settings) and verdict == "failed":
            chosen, evidence, verdict = refinement.draws, refinement.evidence, "corrected"
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


def _is_better(refined: Evidence, amortized: Evidence, settings: InferSettings) -> bool:
    """Whether a refinement that is not exact has at least earned `corrected`, and lost no evidence."""
    fall = float(amortized.log_evidence - refined.log_evidence)
    error = float((amortized.log_evidence_error.square() + refined.log_evidence_error.square()).sqrt())
    return fall <= 2 * error and verdict_of(refined, settings, settings.proposals) == "corrected"


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


@dataclass(frozen=True)
class _Refinement:
    """Weighted draws of a refined copy in its mixture, their figures, and the likelihood calls that they cost."""

    draws: WeightedDraws
    evidence: Evidence
    calls: int


def _refine(
    posterior: Posterior,
    x: Data,
    condition: Condition,
    draws: WeightedDraws,
    amortized: Evidence,
    settings: InferSettings,
    seed: int,
    index: int,
) -> _Refinement:
    """Adapt a copy of q where the amortized one is far off, then raise its ELBO; the second must not undo the first.

    Reverse KL sharpens a copy but may leave a mode. Where the evidence that it finds falls below that of the adapted
    copy, the adapted copy is what is delivered.
    """
    options = settings.refine
    common: dict[str, Any] = {"simulator": posterior.simulator, "prior": posterior.prior, "x": x}
    copy, calls, adapted = posterior.network, 0, None
    widened = posterior.network  # what is widened is the amortized q, unless it is far off
    if float(amortized.ess_fraction) < options.adapt.below:
        with progress_bar("adapt", options.adapt.rounds) as advance:
            stream = _stream(posterior, seed, "adapt", index)
            copy, calls = adapt(
                copy, condition, first=draws, settings=options.adapt, generator=stream, advance=advance, **common
            )
        widened = copy
        stream = _stream(posterior, seed, "weigh-adapted", index)
        adapted = _weigh_mixture(posterior, x, condition, copy, widened, settings, stream)
        calls += settings.proposals
    if options.steps == 0 and adapted is not None:
        return _Refinement(adapted, summarize(adapted), calls)
    with progress_bar("refine", options.steps) as advance:
        stream = _stream(posterior, seed, "refine", index)
        copy = refine(copy, condition, settings=options, generator=stream, advance=advance, **common)
    stream = _stream(posterior, seed, "weigh-refined", index)
    refined = _weigh_mixture(posterior, x, condition, copy, widened, settings, stream)
    calls += options.steps * options.draws + settings.proposals
    evidence = summarize(refined)
    if adapted is not None and why_rejected(evidence, before := summarize(adapted), settings):
        return _Refinement(adapted, before, calls)
    return _Refinement(refined, evidence, calls)


def _weigh_mixture(
    posterior: Posterior,
    x: Data,
    condition: Condition,
    copy: PosteriorNetwork,
    widened: PosteriorNetwork,
    settings: InferSettings,
    stream: torch.Generator,
) -> WeightedDraws:
    """Weighted draws under a mixture of the refined q, the amortized q, and `widened` with wider tails.

    The amortized part keeps a mode that the copy may have left; the wide part bounds the weights where both have
    tails lighter than the posterior's.
    """
    options = settings.refine
    amortized = Amortized(posterior.network, condition)
    wide = Amortized(widened, condition, base_scale=options.wide_scale)
    shares = [1 - options.amortized_share - options.wide_share, options.amortized_share, options.wide_share]
    mixture = Mixture([Amortized(copy, condition), amortized, wide], shares)
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
