"""What a search found becomes part of the proposal: the delivered draws are weighed anew, or the verdict is `failed`.

A mixture of Student t components follows its own weights over all that was found (`stages.product.adapt_mixture`), and joins
the proposal beside q. Where that is not enough, copies of q are adapted and refined from the new draws as usual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.baselines.evidence_check import StudentMixture
from pipeline.errors import InputError
from pipeline.estimators.arithmetic import weight_noise
from pipeline.estimators.importance import Evidence, WeightedDraws, replace_rounding, summarize
from pipeline.estimators.network import Condition
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Mixture, Proposal, log_q_in_blocks, weigh
from pipeline.progress import progress_bar
from pipeline.rng import derived_seed, generator
from pipeline.settings import InferSettings
from pipeline.stages.product import adapt_mixture, merged
from pipeline.stages.refined_rung import refine_all
from pipeline.stages.search import Fitted, Found, Lack, lack_by_weights, lack_of, log_joint_within, search, with_twins
from pipeline.stages.verdicts import verdict_of, what_it_lost
from simulators.protocol import Data

SHARES = (0.4, 0.3, 0.3)
"""Of the new proposal: the old one, the adapted mixture, and one with shares by the root of mass, so that a small mode gets more draws than it has mass: weights that
are largest there would look like the beginning of a heavy tail (Pareto k of 2.2 at an ESS fraction of 0.82)."""
LEAST_EFFECTIVE = 100.0
"""Draws of a repaired proposal from which their weights say what was lacking."""


@dataclass(frozen=True)
class Standing:
    """The best that earlier rungs have for one observation.

    Attributes:
        verdict: one of `schema.VERDICTS`.
        proposal: of which the draws are.
        draws: weighted, (K, 1).
        evidence: their figures, (1,) each.
        met: theta of notable draws of every rung, (P, D): further starts.
    """

    verdict: str
    proposal: Proposal
    draws: WeightedDraws
    evidence: Evidence
    met: Tensor | None = None

    @property
    def count(self) -> int:
        """K."""
        return len(self.draws.log_q)


@dataclass(frozen=True)
class Searched:
    """What came of a search.

    Attributes:
        standing: what is delivered, the old or a repaired one.
        found: what the search found.
        missed: share of the posterior that the old draws lacked, found and confirmed by new draws.
        uncovered: share that what is delivered lacks, as far as the search knows.
        calls: values of theta at which the likelihood was evaluated.
        note: in words, where something was lacking.
    """

    standing: Standing
    found: Found
    missed: float
    uncovered: float
    calls: int
    note: str


def search_one(
    posterior: Posterior,
    x: Data,
    condition: Condition,
    before: Standing,
    *,
    settings: InferSettings,
    seed: int,
    index: int,
) -> Searched:
    """Search one observation; mend its proposal where it lacks posterior mass, or where every earlier rung failed.

    Args:
        x, condition: of one row.
    """
    found = search(posterior, x, before.draws, before.met, settings=settings.search, seed=seed, index=index)
    lack = lack_of(found, before.proposal, float(before.evidence.log_evidence), before.count)
    suspicious = lack.share > settings.search.matters
    if (not suspicious and before.verdict != "failed") or found.mixture is None:
        return Searched(before, found, 0.0, lack.share, found.landscape.calls, "")
    repair = _Repair(posterior, x, condition, found, before, settings, seed, index)
    return repair.with_what_was_found(lack)


@dataclass(frozen=True)
class _Repair:
    """One observation whose proposal is mended."""

    posterior: Posterior
    x: Data
    condition: Condition
    found: Found
    before: Standing
    settings: InferSettings
    seed: int
    index: int

    def with_what_was_found(self, lack: Lack) -> Searched:
        """The mended proposal where it is better, the old one where nothing was lacking after all, else `failed`."""
        before, matters = self.before, self.settings.search.matters
        mended = self._in_mixture()
        effective = float(mended.evidence.ess_fraction) * mended.count
        missed = self._confirmed(mended) if effective >= LEAST_EFFECTIVE else lack
        calls = self.found.landscape.calls + mended.count
        if missed.share <= matters and before.verdict != "failed":
            return Searched(before, self.found, 0.0, missed.share, calls, "")
        if mended.verdict == "failed" and self.posterior.network.refinable:
            mended, more = self._refined(mended)
            calls += more
        left = lack_of(self.found, mended.proposal, float(mended.evidence.log_evidence), mended.count)
        lost = what_it_lost(mended.evidence, before.evidence, missed=0.0, rung="search")
        good = mended.verdict != "failed" and left.share <= matters and not lost
        share = missed.share if missed.share > matters else 0.0
        if good:
            return Searched(
                mended, self.found, share, left.share, calls, self._words(missed, "was added") if share else ""
            )
        if not share:
            return Searched(before, self.found, 0.0, lack.share, calls, "")
        note = self._words(missed, "could not be covered")
        return Searched(replace(before, verdict="failed"), self.found, 0.0, share, calls, note)

    def _in_mixture(self) -> Standing:
        """Old proposal, adapted mixture and first mixture together; whatever their weights are worth, `corrected` at best.

        Two aliases in seven parameters are 4 components and an ESS fraction of 0.05 with 8,000 draws a round, 32 and 0.44 with
        20,000: so many effective draws does a mixture need for its covariances.
        """
        landscape, mixture = self.found.landscape, self.found.mixture
        assert mixture is not None
        draws = max(self.settings.refine.adapt.draws, self.settings.most_proposals)
        options = self.settings.refine.adapt.model_copy(update={"draws": draws})
        start = with_twins(mixture, landscape.angles)
        parts: list[Proposal] = [self.before.proposal, Fitted(mixture, landscape)]
        try:
            with progress_bar("adapt", options.rounds) as advance:
                adapted = adapt_mixture(
                    start,
                    lambda w: log_joint_within(landscape, w),
                    settings=options,
                    seed=derived_seed(self.seed, "infer-search-adapt", self.index),
                    advance=advance,
                )
            even = merged([flattened(adapted.mixture), mixture], (0.5, 0.5))
            parts = [self.before.proposal, Fitted(adapted.mixture, landscape), Fitted(even, landscape)]
        except (InputError, ValueError):  # no finite density, or draws that coincide: the first mixture has to do
            pass
        shares = SHARES if len(parts) == 3 else (SHARES[0], SHARES[1] + SHARES[2])
        return self._weighed(Mixture(parts, shares), "search-weigh")

    def _weighed(self, proposal: Proposal, purpose: str) -> Standing:
        count = self.settings.most_proposals
        with progress_bar("weigh", count) as advance:
            draws = weigh(
                proposal,
                self.posterior.simulator,
                self.posterior.prior,
                self.x,
                draws=count,
                generator=generator(self.seed, f"infer-{purpose}", self.index, device=self.posterior.device),
                advance=advance,
            )
        noise = weight_noise(
            draws,
            proposal,
            self.posterior.simulator,
            self.posterior.prior,
            self.x,
            generator=generator(self.seed, f"infer-{purpose}-rounding", self.index, device=self.posterior.device),
        )
        return self._standing(proposal, draws, replace_rounding(summarize(draws), noise))

    def _standing(self, proposal: Proposal, draws: WeightedDraws, evidence: Evidence) -> Standing:
        verdict = verdict_of(evidence, self.settings, len(draws.log_q))
        return Standing("corrected" if verdict == "exact" else verdict, proposal, draws, evidence)

    def _confirmed(self, mended: Standing) -> Lack:
        """What the old proposal lacked, by the draws of the mended one."""
        draws = mended.draws
        log_m = torch.nan_to_num(log_q_in_blocks(self.before.proposal, draws.theta)[:, 0].double(), nan=-torch.inf)
        return lack_by_weights(
            draws.theta,
            draws.log_joint[:, 0],
            draws.log_weight[:, 0],
            log_m - draws.log_q[:, 0],
            log_m,
            float(self.before.evidence.log_evidence),
            self.before.count,
        )

    def _refined(self, mended: Standing) -> tuple[Standing, int]:
        """Copies of q that are adapted and refined from the mended draws, and what that cost."""
        repair = refine_all(
            self.posterior,
            self.x,
            self.condition,
            [mended.draws],
            [mended.evidence],
            keep=[True],
            settings=self.settings,
            seed=derived_seed(self.seed, "infer-search-refine", self.index),
            index=self.index,
        )[0]
        assert repair.proposal is not None  # it was to be kept
        after = self._standing(repair.proposal, repair.draws, repair.evidence)
        return (after if after.verdict != "failed" else mended), repair.calls

    def _words(self, lack: Lack, what: str) -> str:
        if lack.where is None:
            return ""
        names = [p.name for p in self.posterior.simulator.parameters]
        return f"the search found {percent(lack.share)} of the posterior near {place(names, lack.where)}, where q has hardly a draw: it {what}"


def flattened(mixture: StudentMixture) -> StudentMixture:
    """The same components, with shares by the root of their own."""
    root = np.sqrt(mixture.weight)
    return replace(mixture, weight=root / root.sum())


def percent(share: float) -> str:
    """A share in words: two digits, whole numbers from ten on."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def place(names: list[str], theta: Tensor) -> str:
    """A point in words, at most four parameters of it."""
    numbers = [f"{n} = {v:.12g}" for n, v in zip(names, theta.tolist(), strict=True)]
    return ", ".join(numbers[:4]) + (", ..." if len(numbers) > 4 else "")
