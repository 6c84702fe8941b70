"""The rung `refined`: copies of q trained on their observations, weighed in a mixture with the amortized q."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from pipeline.estimators.arithmetic import weight_noise
from pipeline.estimators.copies import can_copy
from pipeline.estimators.importance import Evidence, WeightedDraws, replace_rounding, summarize, usable_log_weight
from pipeline.estimators.network import Condition, PosteriorNetwork
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Amortized, Mixture, Proposal, log_q_in_blocks, weigh
from pipeline.progress import progress_bar
from pipeline.rng import generator
from pipeline.settings import InferSettings
from pipeline.stages.verdicts import is_better, verdict_of, what_it_lost
from pipeline.training.adaptation import adapt
from pipeline.training.refinement import refine
from simulators.protocol import Data


@dataclass(frozen=True)
class Repair:
    """Weighted draws of a repaired q for one observation, their figures, and the likelihood calls that they cost.

    Attributes:
        proposal: of which the draws are, for this observation alone; None where it was not to be kept.
        draws: (K, 1).
        evidence: (1,) each.
        missed: largest share of all weight that one of the amortized draws would carry among them.
    """

    proposal: Proposal | None
    draws: WeightedDraws
    evidence: Evidence
    missed: float
    calls: int = 0

    def earns_corrected(self, amortized: Evidence, settings: InferSettings) -> bool:
        """Whether it is at least `corrected`, having lost nothing."""
        lost = what_it_lost(self.evidence, amortized, missed=self.missed)
        return not lost and verdict_of(self.evidence, settings, len(self.draws.log_q)) == "corrected"


def refine_all(
    posterior: Posterior,
    x: Data,
    condition: Condition,
    draws: list[WeightedDraws],
    amortized: list[Evidence],
    *,
    keep: Sequence[bool],
    settings: InferSettings,
    seed: int,
    index: int,
) -> list[Repair]:
    """Adapt copies of q where the amortized one is far off, then raise their ELBO, for R observations at once.

    Reverse KL sharpens a copy but may leave a mode: the second must not undo the first. Where the evidence that it
    finds falls below that of the adapted copy, the adapted copy is what is delivered.

    Args:
        x, condition: of R rows.
        draws: of the amortized q, already weighted, (K, 1) for each row; K may differ between rows.
        amortized: their figures.
        keep: whether the repair of each row is to keep its proposal.
        index: of the first of these observations in the catalogue: random numbers depend on (seed, purpose, index).
    """
    together = settings.refine.together if can_copy(posterior.network) else 1
    far = [float(e.ess_fraction) < settings.refine.adapt.below for e in amortized]
    repairs: dict[int, Repair] = {}
    with progress_bar("refine", len(draws)) as advance:
        for adapts in (True, False):
            rows = [n for n, is_far in enumerate(far) if is_far == adapts]
            for start in range(0, len(rows), together):
                chosen = rows[start : start + together]
                group = _Group(
                    posterior,
                    {name: values[chosen] for name, values in x.items()},
                    Condition(*(t[chosen] for t in condition)),
                    [draws[n] for n in chosen],
                    [keep[n] for n in chosen],
                    settings,
                    seed,
                    index + chosen[0],
                )
                repairs |= dict(zip(chosen, group.repair([amortized[n] for n in chosen], adapts=adapts), strict=True))
                advance(len(chosen))
    return [repairs[n] for n in range(len(draws))]


@dataclass(frozen=True)
class _Group:
    """Observations that are repaired together."""

    posterior: Posterior
    x: Data
    condition: Condition
    draws: list[WeightedDraws]
    keep: list[bool]
    settings: InferSettings
    seed: int
    index: int

    def repair(self, amortized: list[Evidence], *, adapts: bool) -> list[Repair]:
        options, network = self.settings.refine, self.posterior.network
        common: dict[str, Any] = {
            "simulator": self.posterior.simulator,
            "prior": self.posterior.prior,
            "x": self.x,
        }
        copies, calls, adapted = network, 0, None
        widened = network  # what is widened is the amortized q, unless it is far off
        if adapts:
            with progress_bar("adapt", options.adapt.rounds) as advance:
                copies, calls = adapt(
                    copies,
                    self.condition,
                    first=self._first(),
                    settings=options.adapt,
                    generator=self._stream("adapt"),
                    advance=advance,
                    **common,
                )
            widened, calls = copies, calls + self.settings.most_proposals
            adapted = self._weighed(copies, widened, "weigh-adapted", calls)
            if options.steps == 0:
                return adapted
        with progress_bar("refine", options.steps) as advance:
            copies = refine(
                copies,
                self.condition,
                settings=options,
                generator=self._stream("refine"),
                advance=advance,
                **common,
            )
        calls += options.steps * options.draws + self.settings.most_proposals
        refined = self._weighed(copies, widened, "weigh-refined", calls)
        if adapted is None:
            return refined
        return [
            r
            if is_better(r.evidence, a.evidence, self.settings, missed=r.missed)
            else Repair(a.proposal, a.draws, a.evidence, a.missed, calls)
            for r, a in zip(refined, adapted, strict=True)
        ]

    def _first(self) -> WeightedDraws:
        """As many of the amortized draws as every row has, (K, R)."""
        count = min(len(d.log_q) for d in self.draws)
        parts = [
            torch.cat([getattr(d, name)[:count] for d in self.draws], 1)
            for name in (f.name for f in fields(WeightedDraws))
        ]
        return WeightedDraws(*parts)

    def _weighed(self, copies: PosteriorNetwork, widened: PosteriorNetwork, purpose: str, calls: int) -> list[Repair]:
        """Independent draws of the mixture of refined, amortized and widened q, for each row."""
        options = self.settings.refine
        # the amortized part keeps a mode that the copy may have left; the wide part bounds the weights where both
        # have tails lighter than the posterior's
        parts: list[Proposal] = [
            Amortized(copies, self.condition),
            Amortized(self.posterior.network, self.condition),
            Amortized(widened, self.condition, base_scale=options.wide_scale),
        ]
        shares = (1 - options.amortized_share - options.wide_share, options.amortized_share, options.wide_share)
        mixture = Mixture(parts, shares)
        count = self.settings.most_proposals
        with progress_bar("weigh", count) as advance:
            new = weigh(
                mixture,
                self.posterior.simulator,
                self.posterior.prior,
                self.x,
                draws=count,
                generator=self._stream(purpose),
                advance=advance,
            )
        simulator, prior = self.posterior.simulator, self.posterior.prior
        noise = weight_noise(new, mixture, simulator, prior, self.x, generator=self._stream(f"{purpose}-rounding"))
        evidence = replace_rounding(summarize(new), noise)
        missed = self._largest_shares(mixture, evidence, count)
        return [
            Repair(
                mixture.row(r) if self.keep[r] else None,
                new.rows(slice(r, r + 1)),
                evidence.rows(slice(r, r + 1)),
                missed[r],
                calls,
            )
            for r in range(len(self.draws))
        ]

    @torch.no_grad()
    def _largest_shares(self, mixture: Mixture, evidence: Evidence, count: int) -> list[float]:
        r"""$\max_k p(x, \theta_k) / [m(\theta_k) \hat p(x)] / K$ over draws that the mixture m did not make; costs no likelihood."""
        first = self._first()
        log_weight = usable_log_weight(first.log_joint - log_q_in_blocks(mixture, first.theta))
        return ((log_weight.max(0).values - evidence.log_evidence).exp() / count).tolist()

    def _stream(self, purpose: str) -> torch.Generator:
        return generator(self.seed, f"infer-{purpose}", self.index, device=self.posterior.device)
