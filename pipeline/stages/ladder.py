"""The ladder: amortized, corrected, refined, searched, sampled, failed. Each observation climbs only as far as it needs.

`exact`      the weights of the amortized q are good;
`corrected`  its weighted draws are reliable;
`refined`    a copy of q, trained on this observation's ELBO, weighs well in mixture with the amortized q;
`sampled`    MCMC from the weighted draws passed its convergence checks;
`failed`     none of these: draws are delivered, and flagged.

Whatever rung an observation is on, a search of the whole prior (`stages.search`) says what its draws lack: that becomes part
of them (`corrected`), or the reason of a `failed`. A rung or a check that raises an error is a note of that observation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.estimators.arithmetic import weight_noise
from pipeline.estimators.importance import (
    Evidence,
    WeightedDraws,
    notable,
    replace_rounding,
    summarize,
    systematic_resample,
)
from pipeline.estimators.network import Condition
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Proposal
from pipeline.progress import progress_bar
from pipeline.settings import InferSettings
from pipeline.stages.amortized_rung import infer_stream, proposal_of, side_by_side, weigh_amortized
from pipeline.stages.examine import examine
from pipeline.stages.isolation import attempt, each, joined
from pipeline.stages.learned_check import check_learned
from pipeline.stages.outcome import Outcome, Search, no_outcome
from pipeline.stages.refined_rung import Repair, refine_all
from pipeline.stages.sampled_rung import Sampled, sample_one
from pipeline.stages.search import Found, lack_of
from pipeline.stages.searched_rung import Searched, Standing, search_one
from pipeline.stages.verdicts import verdict_of, why_rejected, why_unsound
from simulators.protocol import Data


def climb(posterior: Posterior, x: Data, *, settings: InferSettings, seed: int, index: int) -> Outcome:
    """Posterior and certificate of one observation, x of one row; see `climb_all`."""
    return climb_all(posterior, x, settings=settings, seed=seed, index=index)[0]


def climb_all(
    posterior: Posterior,
    x: Data,
    *,
    settings: InferSettings,
    seed: int,
    index: int,
    searched: Collection[int] | None = None,
) -> list[Outcome]:
    """Posteriors and certificates of N observations.

    Args:
        x: N rows.
        seed, index: every random number depends on (seed, "infer-...", index); index is that of the first row in
            its catalogue.
        searched: rows, from 0, that are searched; default: those that the settings name for a catalogue of these N.
            Where any of them lacks posterior mass, all rows are.
    """
    rows = len(next(iter(x.values())))
    chosen = (
        rows_to_search(settings, rows, narrow=bool(posterior.case.simulate.proposal)) if searched is None else searched
    )

    def together(some: Sequence[int]) -> list[Outcome]:
        part = {name: values[list(some)] for name, values in x.items()}
        ladder = _Ladder(posterior, part, settings, seed, index + some[0])
        return ladder.outcomes({i for i, n in enumerate(some) if n in chosen})

    found = each(range(rows), together)
    lacking = [n for n, (o, _) in found.items() if o is not None and o.search.found_a_lack(settings.search.matters)]
    if (
        lacking and len(chosen) < rows
    ):  # what q lacks for one star it may lack for all: no other is certified unsearched
        rest = [n for n in range(rows) if n not in chosen]
        chosen = set(range(rows))
        found |= each(rest, together)
    return [found[n][0] or no_outcome(posterior, settings, found[n][1]) for n in range(rows)]


def rows_to_search(settings: InferSettings, rows: int, *, narrow: bool) -> set[int]:
    """Rows of a catalogue that are searched, evenly spaced; five times as many where theta came from a `narrow` proposal."""
    options = settings.search
    if options.when == "never":
        return set()
    count = rows if options.when == "always" else min(rows, options.sample * (5 if narrow else 1))
    return {i * rows // count for i in range(count)} if count else set()


NOTABLE = 16
"""Draws of each rung that the search starts from, of the largest joint density and of the largest weight."""


@dataclass(frozen=True)
class _Ladder:
    """N observations on their way up.

    Attributes:
        index: of the first row in its catalogue.
    """

    posterior: Posterior
    x: Data
    settings: InferSettings
    seed: int
    index: int

    def outcomes(self, searched: Collection[int]) -> list[Outcome]:
        """Of each row; those in `searched` are searched."""
        condition = self.posterior.condition(self.x)
        weighted, amortized = self._amortized(condition)
        proposal = proposal_of(self.posterior, condition, self.settings)
        held = self.posterior.held(self.x).tolist()
        outcomes = []
        for n, (draws, evidence) in enumerate(zip(weighted, amortized, strict=True)):
            count = len(draws.log_q)
            outcomes.append(
                Outcome(
                    verdict=verdict_of(evidence, self.settings, count),
                    proposal=proposal.row(n) if n in searched else None,
                    theta=draws.theta[:0, 0],
                    proposals=draws,
                    evidence=evidence,
                    amortized=evidence,
                    repeated_fraction=0.0,
                    likelihood_calls=count,
                    note=joined(why_unsound(evidence, count), _words_of_held(held[n])),
                    inputs_held=held[n],
                    met=notable(draws, NOTABLE) if n in searched else None,
                )
            )
        self._refine(condition, outcomes)
        found = self._search(condition, outcomes)
        self._sample(outcomes, found)
        outcomes = [
            _deliver(self.posterior, o, self.settings, self.seed, self.index + n) for n, o in enumerate(outcomes)
        ]
        examined = examine(
            self.posterior,
            self.x,
            [o.theta for o in outcomes],
            settings=self.settings,
            seed=self.seed,
            index=self.index,
        )
        outcomes = [
            replace(o, examined=e, note=joined(o.note, e.note)) for o, e in zip(outcomes, examined, strict=True)
        ]
        outcomes = [_with_remedy(o, self.posterior) for o in outcomes]
        return check_learned(self.posterior, self.x, outcomes, settings=self.settings, seed=self.seed, index=self.index)

    def _amortized(self, condition: Condition) -> tuple[list[WeightedDraws], list[Evidence]]:
        """Weighted draws of the amortized q, (K, 1) for each row, and their figures."""
        weighted = weigh_amortized(
            self.posterior, self.x, condition, settings=self.settings, seed=self.seed, index=self.index
        )
        noise = weight_noise(
            side_by_side(weighted),
            proposal_of(self.posterior, condition, self.settings),
            self.posterior.simulator,
            self.posterior.prior,
            self.x,
            generator=infer_stream(self.posterior, self.seed, "rounding", self.index),
        )
        return weighted, [replace_rounding(summarize(d), noise[n : n + 1]) for n, d in enumerate(weighted)]

    def _refine(self, condition: Condition, outcomes: list[Outcome]) -> None:
        """Replace the outcomes that a refinement repairs."""
        when = self.settings.refine.when
        wanted = [n for n, o in enumerate(outcomes) if when == "always" or (when == "auto" and o.verdict != "exact")]
        if not self.posterior.network.refinable:
            return

        def together(rows: Sequence[int]) -> list[Repair]:
            return refine_all(
                self.posterior,
                {name: values[list(rows)] for name, values in self.x.items()},
                Condition(*(t[list(rows)] for t in condition)),
                [outcomes[n].proposals for n in rows],
                [outcomes[n].amortized for n in rows],
                keep=[outcomes[n].proposal is not None for n in rows],
                settings=self.settings,
                seed=self.seed,
                index=self.index + rows[0],
            )

        for n, (repair, why) in each(wanted, together).items():
            if repair is None:
                outcomes[n] = replace(outcomes[n], note=joined(outcomes[n].note, f"refinement failed ({why})"))
            else:
                outcomes[n] = _after_refinement(outcomes[n], repair, self.settings)

    def _search(self, condition: Condition, outcomes: list[Outcome]) -> dict[int, Found]:
        """Replace the outcomes of which a search says something; what it found."""
        rows = [n for n, o in enumerate(outcomes) if o.proposal is not None]
        found: dict[int, Found] = {}
        with progress_bar("observation", len(rows)) as advance:
            for n in rows:
                before = outcomes[n]
                standing = Standing(before.verdict, _proposal(before), before.proposals, before.evidence, before.met)
                searched, why = attempt(
                    lambda n=n, standing=standing: search_one(
                        self.posterior,
                        one_row(self.x, n),
                        Condition(*(t[n : n + 1] for t in condition)),
                        standing,
                        settings=self.settings,
                        seed=self.seed,
                        index=self.index + n,
                    )
                )
                if searched is None:
                    outcomes[n] = replace(before, note=joined(before.note, f"the search failed ({why})"))
                else:
                    outcomes[n], found[n] = _after_search(before, searched), searched.found
                advance(1)
        return found

    def _sample(self, outcomes: list[Outcome], found: Mapping[int, Found]) -> None:
        """Hand what every other rung has failed on to MCMC."""
        failed = [n for n, o in enumerate(outcomes) if o.verdict == "failed"]
        if not failed or self.settings.sample.when == "never":
            return
        with progress_bar("sample", len(failed)) as advance:
            for n in failed:
                before = outcomes[n]
                sampled, why = attempt(
                    lambda n=n, before=before: sample_one(
                        self.posterior,
                        one_row(self.x, n),
                        before.proposals,
                        before.amortized,
                        settings=self.settings,
                        seed=self.seed,
                        index=self.index + n,
                    )
                )
                if sampled is None:
                    outcomes[n] = replace(before, note=joined(before.note, f"MCMC failed ({why})"))
                else:
                    outcomes[n] = _after_sampling(before, sampled, found.get(n), self.settings)
                advance(1)


def _with_remedy(outcome: Outcome, posterior: Posterior) -> Outcome:
    """What may help an observation that failed, where the simulator can say where its posterior lies."""
    if outcome.verdict != "failed" or not callable(getattr(posterior.simulator, "pilot", None)):
        return outcome
    remedy = "training under a proposal with a box around every peak may mend it: `elboscope propose CONFIG` prints one"
    return replace(outcome, note=joined(outcome.note, remedy))


def _words_of_held(count: float) -> str:
    return (
        f"{count:.0f} numbers of x lie far outside training and were held at its bound for the network" if count else ""
    )


def _after_refinement(before: Outcome, repair: Repair, settings: InferSettings) -> Outcome:
    count = len(repair.draws.log_q)
    why = why_rejected(repair.evidence, before.amortized, settings, draws=count, missed=repair.missed)
    after = replace(before, likelihood_calls=before.likelihood_calls + repair.calls, note=joined(before.note, why))
    if before.met is not None:
        after = replace(after, met=torch.cat([before.met, notable(repair.draws, NOTABLE)]))
    repaired = replace(after, proposal=repair.proposal, proposals=repair.draws, evidence=repair.evidence)
    if not why:
        return replace(repaired, verdict="refined")
    better = before.verdict == "failed" or bool(repair.evidence.ess_fraction > before.evidence.ess_fraction)
    if before.verdict != "exact" and better and repair.earns_corrected(before.amortized, settings):
        return replace(repaired, verdict="corrected")
    return after


def _after_search(before: Outcome, searched: Searched) -> Outcome:
    standing, found = searched.standing, searched.found
    figures = Search(
        starts=float(found.starts),
        candidates=float(found.candidates),
        optima=float(len(found.optima)),
        missed=searched.missed,
        uncovered=searched.uncovered,
    )
    return replace(
        before,
        verdict=standing.verdict,
        proposal=standing.proposal,
        proposals=standing.draws,
        evidence=standing.evidence,
        likelihood_calls=before.likelihood_calls + searched.calls,
        note=joined(before.note, searched.note),
        search=figures,
    )


def _after_sampling(before: Outcome, sampled: Sampled, found: Found | None, settings: InferSettings) -> Outcome:
    after = replace(before, likelihood_calls=before.likelihood_calls + sampled.calls, r_hat=sampled.r_hat)
    why_not, search = sampled.why_not, before.search
    if found is not None:
        evidence = float(sampled.evidence.log_evidence)
        lack = lack_of(found, sampled.proposal, evidence, len(sampled.draws.log_q))
        search = replace(search, uncovered=lack.share)
        if lack.share > settings.search.matters:
            why_not = joined(
                why_not, f"the chains lack {100 * lack.share:.2g} % of the posterior, which the search found"
            )
    if why_not:
        return replace(after, note=joined(before.note, why_not))
    return replace(
        after,
        theta=sampled.theta,
        proposal=sampled.proposal,
        proposals=sampled.draws,
        evidence=_gap_of_q(sampled.evidence, before.amortized),
        verdict="sampled",
        search=search,
        note=before.note,
    )


def _gap_of_q(sampled: Evidence, q: Evidence) -> Evidence:
    """The evidence of a fitted mixture beside ELBO and gap of the amortized q: no other q is there after MCMC."""
    terms = {name: getattr(q, name) for name in ("elbo", "reconstruction", "regularization", "gap_of_worst_percent")}
    return replace(sampled, kl_gap=sampled.log_evidence - q.elbo, **terms)


def _proposal(outcome: Outcome) -> Proposal:
    assert outcome.proposal is not None  # rows that are searched keep theirs
    return outcome.proposal


def _deliver(posterior: Posterior, outcome: Outcome, settings: InferSettings, seed: int, index: int) -> Outcome:
    """Equally weighted draws: of the chains where MCMC sampled, else resampled from the weighted ones."""
    stream = infer_stream(posterior, seed, "deliver", index)
    outcome = replace(outcome, proposal=None, met=None)  # copies of q take memory
    if outcome.verdict == "sampled":
        chain = outcome.theta
        order = torch.randperm(len(chain), generator=stream, device=chain.device)
        order = order[torch.arange(settings.draws, device=chain.device) % len(chain)]
        return replace(outcome, theta=chain[order], repeated_fraction=max(0.0, 1 - len(chain) / settings.draws))
    order, repeated = systematic_resample(outcome.proposals.log_weight, settings.draws, generator=stream)
    return replace(outcome, theta=outcome.proposals.theta[order[:, 0], 0], repeated_fraction=float(repeated))


def one_row(x: Mapping[str, Tensor], row: int) -> Data:
    """Observation `row` of x, as x of one row."""
    return {name: values[row : row + 1] for name, values in x.items()}
