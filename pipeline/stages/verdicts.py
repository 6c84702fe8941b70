"""Verdicts, by the thresholds of the settings: what the weights of a q must show, and what a repair must not lose."""

from __future__ import annotations

from pipeline.estimators.importance import Evidence
from pipeline.settings import InferSettings

EVEN = 3.0
"""Times the mean weight up to which the largest one makes no tail."""
MOST_ROUNDING = 0.01
"""Nats of rounding in the log weights above which no weight is to be trusted."""
MOST_MISSED = 0.02
"""Share of all weight that a draw of the amortized q may carry at most under the refined mixture."""


def verdict_of(evidence: Evidence, settings: InferSettings, draws: int) -> str:
    """`exact`, `corrected` or `failed` for the weights of one observation."""
    if why_unsound(evidence, draws):
        return "failed"
    if is_exact(evidence, settings):
        return "exact"
    if float(evidence.ess_fraction) * draws >= settings.corrected_ess and tail_is_light(
        evidence, settings.corrected_pareto_k
    ):
        return "corrected"
    return "failed"


def why_unsound(evidence: Evidence, draws: int) -> str:
    """Empty where the arithmetic of the weights can be trusted, else the reason: numbers that are equal weigh alike.

    Of theta = 4.7e14 with a log likelihood of -2.3e29 all draws coincide: an ESS fraction of 1, a Pareto k of -inf.
    """
    rounding, distinct = float(evidence.rounding), float(evidence.distinct_draws)
    if rounding > MOST_ROUNDING or rounding != rounding:
        return f"log weights are known to {rounding:.2g} nats only: rounding or noise of the likelihood, the limit is {MOST_ROUNDING:g}"
    claimed = float(evidence.ess_fraction) * draws
    if distinct < min(0.9 * claimed, claimed - 1):
        return f"a parameter has {distinct:.0f} different values in {draws} draws where {claimed:.0f} are effective: it is narrower than float64 resolves"
    return ""


def is_equal(evidence: Evidence, settings: InferSettings) -> bool:
    """Whether weights are so nearly equal that a few draws say all about them."""
    ess, k = float(evidence.ess_fraction), float(evidence.pareto_k)
    return ess >= settings.equal_ess_fraction and k <= settings.equal_pareto_k


def is_exact(evidence: Evidence, settings: InferSettings) -> bool:
    """Whether the weights themselves are good.

    pareto_k is the shape of the tail of the weights and knows nothing of its size. Where the effective sample size
    is nearly the number of draws, the tail carries next to nothing, and the limit of reliability is enough.
    """
    enough = float(evidence.ess_fraction) >= settings.exact_ess_fraction
    return is_equal(evidence, settings) or (enough and tail_is_light(evidence, settings.exact_pareto_k))


def tail_is_light(evidence: Evidence, most_pareto_k: float) -> bool:
    """Whether Pareto k is within its limit, or no draw counts for more than three.

    A second mode in which all weights are a little larger than elsewhere looks to the fit like the beginning of a tail:
    k = 1.4 where the largest of 5,000 weights is 1.5 times their mean.
    """
    return float(evidence.pareto_k) <= most_pareto_k or float(evidence.largest_weight) <= EVEN


def why_rejected(
    refined: Evidence, amortized: Evidence, settings: InferSettings, *, draws: int, missed: float = 0.0
) -> str:
    """Empty if a refinement passes, else the reason.

    It needs what `exact` needs, and must not have lost anything: see `what_it_lost`.
    """
    unsound = why_unsound(refined, draws)
    if unsound:
        return unsound
    if not is_exact(refined, settings):
        return f"refinement reached ess_fraction {float(refined.ess_fraction):.3f} and pareto_k {float(refined.pareto_k):.2f} only"
    return what_it_lost(refined, amortized, missed=missed)


def is_better(refined: Evidence, adapted: Evidence, settings: InferSettings, *, missed: float) -> bool:
    """Whether the ELBO's descent lost nothing that the copy before it has, and weighs well, or at least better."""
    if what_it_lost(refined, adapted, missed=missed):
        return False
    return is_exact(refined, settings) or bool(refined.ess_fraction > adapted.ess_fraction)


def what_it_lost(repaired: Evidence, amortized: Evidence, *, missed: float, rung: str = "refinement") -> str:
    """Empty if a repair has kept what the amortized q had seen: it must not certify itself by forgetting a mode.

    Its evidence must not fall by more than the errors of both. Where a single draw of the amortized q carries most of
    its weight, that error says nothing; so no amortized draw may be one that the repaired q all but misses.

    Args:
        missed: share of all weight that a single amortized draw would carry among the draws of the repaired q.
        rung: what repaired it, for the reason.
    """
    fall = float(amortized.log_evidence - repaired.log_evidence)
    error = float((amortized.log_evidence_error.square() + repaired.log_evidence_error.square()).sqrt())
    # two standard errors of the difference, so that one honest repair in forty is turned away, not one in six
    if fall > 2 * error:
        return f"{rung} lost {fall:.4f} nats of evidence, more than the error {error:.4f}: it may have forgotten a mode"
    if missed > MOST_MISSED:
        return f"a draw of the amortized q would carry {missed:.1%} of all weight: the {rung} may have forgotten a mode"
    return ""
