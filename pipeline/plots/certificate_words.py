"""The certificate in words: each number, what it means, and whether it passes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.plots import numbers
from pipeline.schema import CERTIFICATE, VERDICTS
from pipeline.settings import InferSettings

Mark = Literal["pass", "fail", "info"]

BLIND_SPOT = (
    "No weight can see a mode of the posterior that q lacks: every number above is computed from draws of q. "
    "Calibration on held-out simulations, where the true parameters are one exact draw from the posterior, bounds "
    "how often that happens, but for the population of simulations only, not for this observation."
)
SURROGATE = (
    "The likelihood here is a learned one: evidence and weights speak of that surrogate. Calibration on the "
    "simulator itself is the check of the surrogate."
)

MEANING: dict[str, tuple[str, str]] = {
    "log_evidence": (
        "Log evidence, log p(x)",
        "Probability of the data under the model, averaged over the prior; what Bayes factors are made of. "
        "Estimated by importance sampling.",
    ),
    "log_evidence_error": ("its standard error", "Monte Carlo error from the scatter of the weights."),
    "elbo": ("ELBO", "Lower bound of the log evidence, reached only if q is the posterior."),
    "reconstruction": ("Reconstruction", "Mean log likelihood over q: how well draws of q fit the data."),
    "regularization": (
        "Regularization",
        "KL divergence of q from the prior: how much was learned from the data.",
    ),
    "kl_gap": (
        "Gap to the evidence",
        "Log evidence minus ELBO: KL divergence of q from the posterior. Small means that q is the posterior wherever "
        "q puts its draws; it says nothing of places where q puts none.",
    ),
    "ess_fraction": (
        "Effective sample size of the weights",
        "Share of the draws that the weights leave effective; 100 % if q is the posterior.",
    ),
    "pareto_k": (
        "Pareto k of the weights",
        "Shape of the tail of the weights: below 0.5 their variance is finite, above 0.7 no estimate made from them "
        "is reliable.",
    ),
    "proposals": ("Weighted draws", "Draws behind these numbers; few where the weights are nearly equal."),
    "refused": ("Refused draws", "Draws whose weight was zero or not a number; they count as weight zero."),
    "likelihood_calls": (
        "Likelihood calls",
        "Values of theta at which the likelihood was evaluated for this observation.",
    ),
    "repeated_fraction": (
        "Repeated draws",
        "Share of delivered draws that repeat another one, from resampling by weight.",
    ),
    "amortized_elbo": ("ELBO of the amortized q", "The same network before it was tuned to this observation."),
    "amortized_kl_gap": ("Gap of the amortized q", "Log evidence minus its ELBO."),
    "amortized_log_evidence": ("Log evidence from the amortized q", "Must agree with the log evidence above."),
    "amortized_log_evidence_error": ("its standard error", "Monte Carlo error from the scatter of its weights."),
    "amortized_ess_fraction": ("Effective sample size of the amortized q", "Share of its draws left effective."),
    "amortized_pareto_k": ("Pareto k of the amortized q", "As above."),
    "r_hat": ("R-hat of the Markov chains", "Rank-normalised; 1 where they have mixed."),
    "surrogate_error": (
        "Log evidence between networks",
        "Standard deviation of the log evidence over the networks of the learned likelihood: what it does not know of itself.",
    ),
    "surrogate_spread": (
        "Spread of the learned likelihood",
        "Mean standard deviation of its log likelihood over its networks, at the delivered draws.",
    ),
    "surrogate_outside": (
        "Draws outside what was simulated",
        "Share of the delivered draws at which the networks disagree more, or simulations are rarer, than at nearly all "
        "held-out simulations. There the learned likelihood is lowered, and is a guess.",
    ),
    "typicality": (
        "Typicality",
        "Probability that a simulated observation lies as far from the others as this one. A small one says that "
        "nothing like it was simulated: the network had no example, and the model may be wrong.",
    ),
    "predictive": (
        "Posterior predictive check",
        "Probability, on both sides, that data replicated under this posterior have a log likelihood as far out as "
        "the observed ones. A small one says that the model does not describe these data.",
    ),
}
"""Name and one sentence for each number of `schema.CERTIFICATE`."""

SURROGATE_NAMES = ("surrogate_error", "surrogate_spread", "surrogate_outside")
WHERE_MADE = {
    "r_hat",
    "typicality",
    "predictive",
    *SURROGATE_NAMES,
}  # not a number where nothing was sampled, checked or learned
FOLDED = {"log_evidence_error", "amortized_log_evidence_error"}  # stand beside their value, not on a line of their own


@dataclass(frozen=True)
class CertificateLine:
    """One line of the table."""

    name: str
    title: str
    value: str
    meaning: str
    mark: Mark
    judgement: str


def certificate_lines(certificate: Mapping[str, float], infer: InferSettings) -> list[CertificateLine]:
    """The table, in the order of `schema.CERTIFICATE`; numbers that the certificate lacks are left out."""
    lines = []
    for name in CERTIFICATE:
        if name not in certificate or name in FOLDED or (name in WHERE_MADE and math.isnan(certificate[name])):
            continue
        title, meaning = MEANING[name]
        mark, judgement = _judge(name, certificate, infer)
        lines.append(CertificateLine(name, title, certificate_value(name, certificate), meaning, mark, judgement))
    return lines


def certificate_value(name: str, certificate: Mapping[str, float]) -> str:
    """A number of the certificate with its unit and sensible digits."""
    value = certificate[name]
    if name in ("log_evidence", "amortized_log_evidence"):
        return f"{numbers.with_error(value, certificate.get(f'{name}_error'))} nats"
    if name.endswith(("ess_fraction", "repeated_fraction", "surrogate_outside")):
        return numbers.percent(value)
    if name.endswith("pareto_k"):
        return numbers.fixed(value, 2)
    if name in ("refused", "likelihood_calls", "proposals"):
        return numbers.count(value)
    if name in ("typicality", "predictive"):
        return numbers.probability(value)
    if name == "r_hat":
        return numbers.fixed(value, 3)
    if name.endswith("kl_gap"):
        return f"{numbers.significant(value, 2)} nats"
    return f"{numbers.fixed(value, nat_places(certificate))} nats"


def nat_places(certificate: Mapping[str, float]) -> int:
    """Decimal places of nats: those of the log evidence, from 2 to 4."""
    return min(4, max(2, numbers.decimals(certificate.get("log_evidence_error", math.nan))))


def verdict_words(verdict: str) -> str:
    """What a verdict means.

    >>> verdict_words("corrected")
    'the network alone is off, but the weighted draws are reliable'
    """
    return VERDICTS.get(verdict, "unknown verdict")


def _judge(name: str, certificate: Mapping[str, float], infer: InferSettings) -> tuple[Mark, str]:
    value = certificate[name]
    if math.isnan(value):
        return "fail", "not a number"
    amortized = name.startswith("amortized_")
    if name.endswith("ess_fraction"):
        draws = infer.most_proposals if amortized else certificate.get("proposals", infer.most_proposals)
        return _judge_ess(value, draws, infer, amortized)
    if name.endswith("pareto_k"):
        return _judge_pareto_k(value, infer, amortized)
    if name == "log_evidence":
        k = certificate.get("pareto_k", math.inf)
        reliable = math.isfinite(value) and k <= infer.corrected_pareto_k
        return ("pass", "its error can be trusted") if reliable else ("fail", "its error cannot be trusted")
    if name == "amortized_log_evidence":
        return _judge_agreement(certificate)
    if name == "elbo":
        below = value <= certificate.get("log_evidence", math.inf) + 3 * certificate.get("log_evidence_error", 0.0)
        return ("pass", "below the log evidence") if below else ("fail", "above the log evidence: something is wrong")
    if name == "refused":
        draws = numbers.count(certificate.get("proposals", infer.most_proposals))
        return ("pass", "none") if value == 0 else ("info", f"of {draws} draws")
    if name in SURROGATE_NAMES:
        return _judge_surrogate(name, value, certificate, infer)
    if name in ("typicality", "predictive"):
        level = f"{100 * infer.atypical_below:g} %"
        return ("pass", f"at least {level}") if value >= infer.atypical_below else ("fail", f"below {level}")
    return "info", ""


def _judge_surrogate(
    name: str, value: float, certificate: Mapping[str, float], infer: InferSettings
) -> tuple[Mark, str]:
    if name == "surrogate_outside":
        level = f"{100 * infer.most_outside:g} %"
        return ("pass", f"at most {level}") if value <= infer.most_outside else ("fail", f"more than {level}")
    if name == "surrogate_error" and value > certificate.get("log_evidence_error", math.inf):
        return "info", "larger than the Monte Carlo error: the evidence is known no better than this"
    return "info", ""


def _judge_ess(value: float, draws: float, infer: InferSettings, amortized: bool) -> tuple[Mark, str]:
    if value >= infer.exact_ess_fraction:
        return "pass", f"at least {100 * infer.exact_ess_fraction:g} %, as 'exact' asks"
    if value * draws >= infer.corrected_ess:
        effective = numbers.count(value * draws)
        return "pass", f"{effective} effective draws; 'corrected' asks for {numbers.count(infer.corrected_ess)}"
    return "info" if amortized else "fail", f"below the {numbers.count(infer.corrected_ess)} effective draws asked for"


def _judge_pareto_k(value: float, infer: InferSettings, amortized: bool) -> tuple[Mark, str]:
    if value <= infer.exact_pareto_k:
        return "pass", f"at most {infer.exact_pareto_k:g}, as 'exact' asks"
    if value <= infer.corrected_pareto_k:
        return "pass", f"at most {infer.corrected_pareto_k:g}, as 'corrected' asks"
    return "info" if amortized else "fail", f"above {infer.corrected_pareto_k:g}"


def _judge_agreement(certificate: Mapping[str, float]) -> tuple[Mark, str]:
    names = ("log_evidence", "log_evidence_error", "amortized_log_evidence", "amortized_log_evidence_error")
    value, error, other, other_error = (certificate.get(n, math.nan) for n in names)
    combined = math.hypot(error, other_error)
    if not combined > 0 or not math.isfinite(value - other):
        return "info", ""
    deviation = abs(value - other) / combined
    words = f"{numbers.fixed(deviation, 1)} combined standard errors apart"
    return ("pass" if deviation <= 3 else "info"), words
