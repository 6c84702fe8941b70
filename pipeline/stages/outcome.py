"""What the ladder delivers for one observation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from pipeline.estimators.importance import Evidence, WeightedDraws
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Proposal
from pipeline.settings import InferSettings
from pipeline.stages.examine import Examination


@dataclass(frozen=True)
class Search:
    """What a search says of the delivered draws; NaN where none was made.

    Attributes:
        starts: points from which it climbed.
        candidates: how many of them the simulator named.
        optima: where they ended.
        missed: share of the posterior that q lacked, and that became part of the draws.
        uncovered: share that the draws lack, as far as the search knows.
    """

    starts: float = float("nan")
    candidates: float = float("nan")
    optima: float = float("nan")
    missed: float = float("nan")
    uncovered: float = float("nan")

    def found_a_lack(self, matters: float) -> bool:
        """Whether q lacked more than this share of the posterior; not where nothing was searched."""
        return self.missed > matters or self.uncovered > matters


@dataclass(frozen=True)
class Outcome:
    """What the ladder delivers for one observation.

    Attributes:
        verdict: one of `schema.VERDICTS`.
        proposal: of which the weighted draws are; kept for observations that are searched.
        theta: (draws, D), equally weighted.
        proposals: weighted draws behind them, (K, 1).
        met: theta of the densest and heaviest draws of every rung, also of those turned away, (P, D): the search starts there too.
        evidence: their figures, (1,) each.
        amortized: figures of the amortized q, (1,) each.
        repeated_fraction: share of delivered draws that repeat another.
        likelihood_calls: values of theta at which the likelihood was evaluated.
        note: why a repair was rejected, what could not be made, what was found.
        r_hat: of the Markov chains; NaN where nothing was sampled.
        inputs_held: numbers of the network's input that lay far outside training and were held at a bound.
        search: what a search says of the draws.
        examined: what the checks of the observation say.
    """

    verdict: str
    proposal: Proposal | None
    theta: Tensor
    proposals: WeightedDraws
    evidence: Evidence
    amortized: Evidence
    repeated_fraction: float
    likelihood_calls: int
    met: Tensor | None = None
    note: str = ""
    r_hat: float = float("nan")
    inputs_held: float = 0.0
    search: Search = field(default_factory=Search)
    examined: Examination = field(default_factory=Examination)

    def is_atypical(self, level: float) -> bool:
        """Whether any check of the observation rejects at `level`, shared among those that were made (Bonferroni)."""
        values = [v for v in (self.examined.typicality, *self.examined.predictive.values()) if v == v]
        return any(v < level / len(values) for v in values)


def no_outcome(posterior: Posterior, settings: InferSettings, why: str) -> Outcome:
    """Of an observation for which not even the amortized q could be weighed: no draws, which NaN says."""
    nan = torch.full((1,), torch.nan, dtype=torch.float64)
    empty = torch.full((1, 1), torch.nan, dtype=torch.float64)
    theta = torch.full((settings.draws, len(posterior.parameters)), torch.nan, dtype=torch.float64)
    draws = WeightedDraws(theta[:1, None], *[empty] * (len(fields(WeightedDraws)) - 1))
    unknown = Evidence(*[nan] * len(fields(Evidence)))
    return Outcome("failed", None, theta, draws, unknown, unknown, 0.0, 0, note=f"no draws: {why}")
