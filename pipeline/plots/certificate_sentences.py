"""Sentences about a certificate, the same in report and terminal; each is empty where there is nothing to say.

Certificates are mappings by the names of the file. Older files lack some: absent and NaN are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.plots import numbers
from pipeline.plots.certificate_words import MOST_UNCOVERED, is_learned
from pipeline.schema import VERDICTS
from pipeline.settings import InferSettings

LARGE_GAP, SMALL_GAP = 0.5, 0.1
"""Nats; a gap above the first, or below the second, wants a word where the ESS fraction says otherwise."""
HALF = 0.5
OF_THE_LEARNED = "of the learned likelihood"
DEFAULT = InferSettings()
Certificate = Mapping[str, float]


@dataclass(frozen=True)
class Badge:
    """A verdict as it is shown.

    Attributes:
        text: the verdict; under a learned likelihood that is said.
        tone: good: green, amber, or bad: red.
    """

    text: str
    tone: Literal["good", "amber", "bad"]

    @property
    def color(self) -> str:
        """Of a terminal."""
        return {"good": "green", "amber": "yellow", "bad": "red"}[self.tone]


def badge(verdict: str, *, learned: bool) -> Badge:
    """Green is for the simulator's own likelihood alone.

    >>> badge("refined", learned=True)
    Badge(text='refined · learned likelihood', tone='amber')
    """
    if verdict == "failed":
        return Badge(verdict, "bad")
    if learned:
        return Badge(f"{verdict} · learned likelihood", "amber")
    return Badge(verdict, "amber" if verdict == "sampled" else "good")


def verdict_words(verdict: str, *, learned: bool = False) -> str:
    """What a verdict means.

    >>> verdict_words("corrected")
    'the network alone is off, but the weighted draws are reliable'
    """
    words = VERDICTS.get(verdict, "unknown verdict")
    if not learned or verdict == "failed":
        return words
    return f"{words}; posterior and evidence are those {OF_THE_LEARNED}"


def sentences(
    certificate: Certificate, infer: InferSettings = DEFAULT, *, learned: bool | None = None
) -> tuple[str, ...]:
    """All that there is to say, in the order of a reader's questions.

    Args:
        certificate: of one observation.
        infer: thresholds.
        learned: the likelihood is a learned one; default: as its numbers have it.
    """
    of_learned = is_learned(certificate) if learned is None else learned
    said = (
        surrogate_sentence(certificate, infer) if of_learned else "",
        gap_sentence(certificate),
        refinement_sentence(certificate),
        search_sentence(certificate),
        held_sentence(certificate),
        left_out_sentence(certificate),
    )
    return tuple(s for s in said if s)


def gap_sentence(certificate: Certificate) -> str:
    """Why gap and ESS fraction seem to contradict each other, where they do."""
    gap, ess, worst = (_number(certificate, n) for n in ("kl_gap", "ess_fraction", "gap_of_worst_percent"))
    if gap > LARGE_GAP and ess > HALF:
        start = f"Gap and effective sample size count different things: of a gap of {_nats(gap)} nats "
        if worst >= HALF * gap:
            return (
                f"{start}{_nats(worst)} come from the 1 % of draws with the least weight. They cost the ELBO nats and "
                f"the weighted draws nothing, of which {numbers.percent(ess)} are effective."
            )
        of_worst = "" if math.isnan(worst) else f" ({_nats(worst)} of them from the 1 % with the least)"
        return (
            f"{start}most comes from draws of small weight{of_worst}: q is wider than the posterior. The weights take "
            f"those back, and leave {numbers.percent(ess)} effective."
        )
    if gap < SMALL_GAP and ess < HALF:
        return (
            f"The gap is only {_nats(gap)} nats, and only {numbers.percent(ess)} of the draws are effective: a few draws "
            "carry large weights, where q is thinner than the posterior. The gap, a mean over q, hardly sees them; "
            "the evidence and the weighted draws rest on them."
        )
    return ""


def refinement_sentence(certificate: Certificate) -> str:
    """Why a refined q may have the larger gap."""
    names = ("kl_gap", "amortized_kl_gap", "ess_fraction", "amortized_ess_fraction")
    gap, before, ess, ess_before = (_number(certificate, n) for n in names)
    if not (gap > before + 0.01 and ess > ess_before):
        return ""
    return (
        f"The repair raised the effective sample size from {numbers.percent(ess_before)} to {numbers.percent(ess)} and the "
        f"gap from {_nats(before)} to {_nats(gap)} nats: q now also puts draws where it had too few, which the effective "
        "sample size counts, and some where the posterior has little, which the gap counts and the weights take back."
    )


def search_sentence(certificate: Certificate) -> str:
    """What was searched for, beyond q, and what came of it."""
    names = ("search_starts", "search_candidates", "search_optima", "search_missed", "search_uncovered")
    starts, candidates, optima, missed, uncovered = (_number(certificate, n) for n in names)
    if not starts > 0:
        return "Not searched: what q lacks of the posterior was not looked for, and no weight can see it."
    listed = f" and {numbers.count(candidates)} candidates of the simulator" if candidates > 0 else ""
    ends = "1 optimum" if optima == 1 else f"{numbers.count(optima)} optima"
    found = f"Searched for what q lacks: {numbers.count(starts)} starts, from the prior and beside known draws,{listed} ended in {ends}; "
    added = f"q lacked {numbers.percent(missed)} of the posterior, which was added; " if missed > MOST_UNCOVERED else ""
    if uncovered > MOST_UNCOVERED:
        return f"{found}{added}the delivered draws do not cover {numbers.percent(uncovered)} of the posterior."
    it = "it" if optima == 1 else "all of them"
    return f"{found}{added}the delivered draws cover {it}."


def surrogate_sentence(certificate: Certificate, infer: InferSettings = DEFAULT) -> str:
    """What simulations at the delivered draws say of a learned likelihood, or that none were made."""
    p_value, failed = _number(certificate, "surrogate_check"), _number(certificate, "surrogate_failed")
    lost = f"; {numbers.count(failed)} simulations failed and were left out" if failed > 0 else ""
    if math.isnan(p_value):
        return f"Not checked: the learned likelihood was not compared with its simulator at these draws{lost}."
    agrees = p_value >= infer.surrogate_below
    words = "agrees with" if agrees else "differs from"
    shift, width = _number(certificate, "surrogate_shift"), _number(certificate, "surrogate_width")
    size = "" if math.isnan(shift) else f"; to first order {effect_words(shift, width)}"
    return (
        f"Simulated anew at the delivered draws, the learned likelihood {words} the simulator "
        f"(p = {numbers.probability(p_value)}{size}{lost})."
    )


def effect_words(shift: float, width: float) -> str:
    """How wrong the posterior is.

    >>> effect_words(1.08, 1.3)
    'the mean is off by 1.1 s.d. and the width is 1.3 times the true one'
    """
    return f"the mean is off by {numbers.fixed(shift, 1)} s.d. and the width is {numbers.fixed(width, 1)} times the true one"


def held_sentence(certificate: Certificate) -> str:
    """Inputs that the network did not see as they are."""
    held = _number(certificate, "inputs_held")
    if not held > 0:
        return ""
    return (
        f"{numbers.count(held)} numbers of this observation lie far outside what training saw; the network was shown the "
        "bound in their place, and its q is a guess that the weights have to correct."
    )


def left_out_sentence(certificate: Certificate) -> str:
    """Replicates that failed."""
    failed = _number(certificate, "predictive_failed")
    if not failed > 0:
        return ""
    return f"{numbers.count(failed)} replicates of the posterior predictive check failed in the simulator and were left out."


def _number(certificate: Certificate, name: str) -> float:
    return float(certificate.get(name, math.nan))


def _nats(value: float) -> str:
    """As the table has a gap."""
    return numbers.significant(value, 2)
