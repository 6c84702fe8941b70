"""The ladder of one observation: amortized, corrected, refined, failed. Climbed only as far as needed.

`exact`      the weights of the amortized q are good;
`corrected`  its weighted draws are reliable;
`refined`    a copy of q, trained on this observation's ELBO, weighs well in mixture with the amortized q;
`failed`     none of these: draws are delivered, and flagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.estimators.importance import (
    Evidence,
    WeightedDraws,
    summarize,
    systematic_resample,
    usable_log_weight,
)
from pipeline.estimators.network import Condition, PosteriorNetwork
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Amortized, Mixture, weigh
from pipeline.progress import progress_bar
from pipeline.rng import generator
from pipeline.settings import InferSettings
from pipeline.training.adaptation import adapt
from pipeline.training.refinement import refine
from simulators.protocol import Data

MOST_MISSED = 0.02
"""Share of all weight that a draw of the amortized q may carry at most under the refined mixture."""


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
        note = why_rejected(refinement.evidence, amortized, settings, missed=refinement.missed)
        if not note:
            chosen, evidence, verdict = refinement.draws, refinement.evidence, "refined"
        elif verdict == "failed" and refinement.earns_corrected(amortized, settings):
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


def why_rejected(refined: Evidence, amortized: Evidence, settings: InferSettings, *, missed: float = 0.0) -> str:
    """Empty if a refinement passes, else the reason.

    It needs what `exact` needs, and must not have lost anything: see `what_it_lost`.
    """
    if not is_exact(refined, settings):
        return f"refinement reached ess_fraction {float(refined.ess_fraction):.3f} and pareto_k {float(refined.pareto_k):.2f} only"
    return what_it_lost(refined, amortized, missed=missed)


def what_it_lost(refined: Evidence, amortized: Evidence, *, missed: float) -> str:
    """Empty if a refinement has kept what the amortized q had seen: a copy must not certify itself by forgetting a mode.

    Its evidence must not fall by more than the errors of both. Where a single draw of the amortized q carries most of
    its weight, that error says nothing; so no amortized draw may be one that the mixture all but misses.

    Args:
        missed: share of all weight that a single amortized draw would carry among the draws of the mixture.
    """
    fall = float(amortized.log_evidence - refined.log_evidence)
    error = float((amortized.log_evidence_error.square() + refined.log_evidence_error.square()).sqrt())
    # two standard errors of the difference, so that one honest refinement in forty is turned away, not one in six
    if fall > 2 * error:
        return f"refinement lost {fall:.4f} nats of evidence, more than the error {error:.4f}: it may have forgotten a mode"
    if missed > MOST_MISSED:
        return f"a draw of the amortized q would carry {missed:.1%} of all weight: the refinement may have forgotten a mode"
    return ""


@dataclass(frozen=True)
class _Refinement:
    """Weighted draws of a refined copy in its mixture, their figures, and the likelihood calls that they cost.

    Attributes:
        missed: largest share of all weight that one of the amortized draws would carry among them.
    """

    draws: WeightedDraws
    evidence: Evidence
    missed: float
    calls: int = 0

    def earns_corrected(self, amortized: Evidence, settings: InferSettings) -> bool:
        """Whether it is at least `corrected`, having lost nothing."""
        lost = what_it_lost(self.evidence, amortized, missed=self.missed)
        return not lost and verdict_of(self.evidence, settings, settings.proposals) == "corrected"


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

    def weighed(purpose: str) -> _Refinement:
        mixture = _mixture(posterior.network, copy, widened, condition, settings)
        stream = _stream(posterior, seed, purpose, index)
        with progress_bar("weigh", settings.proposals) as advance:
            new = weigh(mixture, draws=settings.proposals, generator=stream, advance=advance, **common)
        evidence = summarize(new)
        return _Refinement(new, evidence, _largest_share(mixture, draws, evidence, settings.proposals))

    if float(amortized.ess_fraction) < options.adapt.below:
        with progress_bar("adapt", options.adapt.rounds) as advance:
            stream = _stream(posterior, seed, "adapt", index)
            copy, calls = adapt(
                copy, condition, first=draws, settings=options.adapt, generator=stream, advance=advance, **common
            )
        widened, calls = copy, calls + settings.proposals
        adapted = weighed("weigh-adapted")
    if options.steps == 0 and adapted is not None:
        return replace(adapted, calls=calls)
    with progress_bar("refine", options.steps) as advance:
        stream = _stream(posterior, seed, "refine", index)
        copy = refine(copy, condition, settings=options, generator=stream, advance=advance, **common)
    refined = weighed("weigh-refined")
    calls += options.steps * options.draws + settings.proposals
    if adapted is not None and why_rejected(refined.evidence, adapted.evidence, settings, missed=refined.missed):
        return replace(adapted, calls=calls)
    return replace(refined, calls=calls)


def _mixture(
    amortized: PosteriorNetwork,
    copy: PosteriorNetwork,
    widened: PosteriorNetwork,
    condition: Condition,
    settings: InferSettings,
) -> Mixture:
    """The refined q, the amortized q, and `widened` with wider tails.

    The amortized part keeps a mode that the copy may have left; the wide part bounds the weights where both have
    tails lighter than the posterior's.
    """
    options = settings.refine
    parts = [
        Amortized(copy, condition),
        Amortized(amortized, condition),
        Amortized(widened, condition, base_scale=options.wide_scale),
    ]
    return Mixture(
        parts,
        [1 - options.amortized_share - options.wide_share, options.amortized_share, options.wide_share],
    )


@torch.no_grad()
def _largest_share(mixture: Mixture, draws: WeightedDraws, evidence: Evidence, count: int) -> float:
    r"""$\max_k p(x, \theta_k) / [m(\theta_k) \hat p(x)] / K$ over draws that the mixture m did not make; costs no likelihood."""
    log_weight = usable_log_weight(draws.log_joint - mixture.log_q(draws.theta))
    return float((log_weight.max() - evidence.log_evidence).exp()) / count


def _stream(posterior: Posterior, seed: int, purpose: str, index: int) -> torch.Generator:
    return generator(seed, f"infer-{purpose}", index, device=posterior.device)


def one_row(x: Mapping[str, Tensor], row: int) -> Data:
    """Observation `row` of x, as x of one row."""
    return {name: values[row : row + 1] for name, values in x.items()}
