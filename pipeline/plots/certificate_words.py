"""The certificate as a table: each number, what it means, and whether it passes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.plots import numbers
from pipeline.plots.certificate_meaning import MEANING, NOT_CHECKED
from pipeline.settings import InferSettings

Mark = Literal["pass", "fail", "info"]

FOLDED = {"log_evidence_error", "amortized_log_evidence_error"}  # beside their value, not on a line of their own
CHECK = "surrogate_check"
COUNTS = {
    "refused", "likelihood_calls", "proposals", "distinct_draws", "search_starts", "search_candidates", "search_optima",
    "surrogate_failed", "predictive_failed", "inputs_held",
}  # fmt: skip
SHARES = ("ess_fraction", "repeated_fraction", "surrogate_outside", "search_missed", "search_uncovered")
PROBABILITIES = {"typicality", "predictive", CHECK}
ALWAYS_MADE = {
    "log_evidence", "elbo", "reconstruction", "regularization", "kl_gap", "ess_fraction", "pareto_k", "proposals",
    "refused", "likelihood_calls", "repeated_fraction",
}  # fmt: skip
"""Of any other number NaN says that nothing was sampled, searched, checked or learned: it has no line."""
EVEN = 3.0
"""Times the mean weight up to which the largest one makes no tail (`stages.verdicts`)."""
MOST_ROUNDING = 0.01
"""Nats of rounding above which log weights are noise."""
MOST_UNCOVERED = 0.005
"""Share of the posterior, found and not covered, above which that is a failure."""


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
    """The table, in the order of MEANING; numbers that the certificate lacks are left out."""
    lines = []
    for name, (title, meaning) in MEANING.items():
        if name == CHECK and is_learned(certificate) and not _known(CHECK, certificate):
            lines.append(CertificateLine(name, title, "not checked", meaning, "info", NOT_CHECKED))
        if name not in certificate or name in FOLDED:
            continue
        if math.isnan(certificate[name]) and not (name in ALWAYS_MADE or name.startswith("amortized_")):
            continue
        if name == "log_evidence" and is_learned(certificate):
            title = "Log evidence of the learned likelihood"
        mark, judgement = _judge(name, certificate, infer)
        lines.append(CertificateLine(name, title, certificate_value(name, certificate), meaning, mark, judgement))
    return lines


def is_learned(certificate: Mapping[str, float]) -> bool:
    """Whether it speaks of a learned likelihood, which alone has a spread."""
    return _known("surrogate_spread", certificate)


def _known(name: str, certificate: Mapping[str, float]) -> bool:
    return not math.isnan(certificate.get(name, math.nan))


def certificate_value(name: str, certificate: Mapping[str, float]) -> str:
    """A number of the certificate with its unit and sensible digits."""
    value = certificate[name]
    if name in ("log_evidence", "amortized_log_evidence"):
        return f"{numbers.with_error(value, certificate.get(f'{name}_error'))} nats"
    if name.endswith(SHARES):
        return numbers.percent(value)
    if name in COUNTS:
        return numbers.count(value)
    if name in PROBABILITIES:
        return numbers.probability(value)
    if name == "largest_weight":
        return f"{numbers.fixed(value, 1)} times the mean"
    if name.endswith("pareto_k") or name == "surrogate_width":
        return numbers.fixed(value, 2)
    if name == "surrogate_shift":
        return f"{numbers.fixed(value, 2)} s.d."
    if name == "r_hat":
        return numbers.fixed(value, 3)
    if name.endswith("kl_gap") or name in ("gap_of_worst_percent", "rounding"):
        return f"{numbers.significant(value, 2)} nats"
    return f"{numbers.fixed(value, nat_places(certificate))} nats"


def nat_places(certificate: Mapping[str, float]) -> int:
    """Decimal places of nats: those of the log evidence, from 2 to 4."""
    return min(4, max(2, numbers.decimals(certificate.get("log_evidence_error", math.nan))))


def _judge(name: str, certificate: Mapping[str, float], infer: InferSettings) -> tuple[Mark, str]:
    value = certificate[name]
    if math.isnan(value):
        return "fail", "not a number"
    amortized = name.startswith("amortized_")
    if name.endswith("ess_fraction"):
        draws = infer.most_proposals if amortized else certificate.get("proposals", infer.most_proposals)
        return _judge_ess(value, draws, infer, amortized)
    if name.endswith("pareto_k"):
        even = not amortized and certificate.get("largest_weight", math.inf) <= EVEN
        return ("pass", "no weight is large: no tail") if even else _judge_pareto_k(value, infer, amortized)
    if name == "log_evidence":
        k = certificate.get("pareto_k", math.inf)
        error = "Monte Carlo error" if is_learned(certificate) else "error"
        even = certificate.get("largest_weight", math.inf) <= EVEN
        reliable = math.isfinite(value) and (even or k <= infer.corrected_pareto_k)
        return ("pass", f"its {error} can be trusted") if reliable else ("fail", f"its {error} cannot be trusted")
    if name == "amortized_log_evidence":
        return _judge_agreement(certificate)
    if name == "elbo":
        below = value <= certificate.get("log_evidence", math.inf) + 3 * certificate.get("log_evidence_error", 0.0)
        return ("pass", "below the log evidence") if below else ("fail", "above the log evidence: something is wrong")
    if name == "refused":
        draws = numbers.count(certificate.get("proposals", infer.most_proposals))
        return ("pass", "none") if value == 0 else ("info", f"of {draws} draws")
    if name.startswith("surrogate_"):
        return _judge_surrogate(name, value, certificate, infer)
    if name in ("typicality", "predictive"):
        level = f"{100 * infer.atypical_below:g} %"
        return ("pass", f"at least {level}") if value >= infer.atypical_below else ("fail", f"below {level}")
    if name == "rounding":
        level = f"{MOST_ROUNDING:g} nats"
        return ("pass", f"at most {level}") if value <= MOST_ROUNDING else ("fail", f"more than {level}")
    if name == "distinct_draws":
        claimed = certificate.get("ess_fraction", math.nan) * certificate.get("proposals", math.nan)
        if value < claimed * (1 - 1e-9):
            return "fail", f"fewer than the {numbers.count(claimed)} effective ones that the weights claim"
        return "pass", "no fewer than are effective"
    if name == "search_uncovered":
        return ("pass", "at most 1 %") if value <= MOST_UNCOVERED else ("fail", "the draws lack it")
    if name == "inputs_held" and value > 0:
        return "info", "q was shown other numbers; weights and evidence use the data as they are"
    return "info", "none" if name in ("inputs_held", "predictive_failed") and value == 0 else ""


def _judge_surrogate(
    name: str, value: float, certificate: Mapping[str, float], infer: InferSettings
) -> tuple[Mark, str]:
    if name == CHECK:
        level = f"{infer.surrogate_below:g}"
        return (
            ("pass", f"at least {level}") if value >= infer.surrogate_below else ("fail", f"below {level}: it is wrong")
        )
    if name == "surrogate_outside":
        level = f"{100 * infer.most_outside:g} %"
        return ("pass", f"at most {level}") if value <= infer.most_outside else ("fail", f"more than {level}")
    if name == "surrogate_error" and value > certificate.get("log_evidence_error", math.inf):
        return "info", "larger than the Monte Carlo error: the evidence is known no better than this"
    if name == "surrogate_failed":
        return "info", "none" if value == 0 else "the simulator failed at these draws"
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
