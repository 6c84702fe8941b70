"""The ladder: amortized, corrected, refined, sampled, failed. Each observation climbs only as far as it needs.

`exact`      the weights of the amortized q are good;
`corrected`  its weighted draws are reliable;
`refined`    a copy of q, trained on this observation's ELBO, weighs well in mixture with the amortized q;
`sampled`    MCMC from the weighted draws passed its convergence checks;
`failed`     none of these: draws are delivered, and flagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pipeline.diagnostics.predictive import predictive_check
from pipeline.errors import InputError
from pipeline.estimators.importance import Evidence, WeightedDraws, summarize, systematic_resample
from pipeline.estimators.network import Condition
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Amortized, Defensive, Mixture, Proposal, weigh
from pipeline.progress import progress_bar
from pipeline.rng import generator
from pipeline.settings import InferSettings
from pipeline.stages.refined_rung import Repair, refine_all
from pipeline.stages.sampled_rung import sample_one
from pipeline.stages.verdicts import is_equal, verdict_of, why_rejected
from simulators.protocol import Data, data_observables, likelihood_trust


@dataclass(frozen=True)
class Outcome:
    """What the ladder delivers for one observation.

    Attributes:
        verdict: one of `schema.VERDICTS`.
        theta: (draws, D), equally weighted.
        proposals: weighted draws of the q that the certificate speaks of, (K, 1).
        evidence: figures of that q, (1,) each.
        amortized: figures of the amortized q, (1,) each.
        repeated_fraction: share of delivered draws that repeat another.
        likelihood_calls: values of theta at which the likelihood was evaluated.
        note: why a repair was rejected, if it was.
        r_hat: of the Markov chains; NaN where nothing was sampled.
        typicality: p-value of the observation among simulated ones; NaN where unknown.
        predictive: p-values of the posterior predictive check: `log_likelihood`, and one a data observable.
        surrogate: how far a learned likelihood is to be trusted, by the names of the certificate; empty for the simulator's own.
    """

    verdict: str
    theta: Tensor
    proposals: WeightedDraws
    evidence: Evidence
    amortized: Evidence
    repeated_fraction: float
    likelihood_calls: int
    note: str = ""
    r_hat: float = float("nan")
    typicality: float = float("nan")
    predictive: Mapping[str, float] = field(default_factory=dict)
    surrogate: Mapping[str, float] = field(default_factory=dict)

    def is_atypical(self, level: float) -> bool:
        """Whether any check of the observation rejects at `level`, shared among those that were made (Bonferroni)."""
        values = [v for v in (self.typicality, *self.predictive.values()) if v == v]
        return any(v < level / len(values) for v in values)


def climb(posterior: Posterior, x: Data, *, settings: InferSettings, seed: int, index: int) -> Outcome:
    """Posterior and certificate of one observation, x of one row; see `climb_all`."""
    return climb_all(posterior, x, settings=settings, seed=seed, index=index)[0]


def climb_all(posterior: Posterior, x: Data, *, settings: InferSettings, seed: int, index: int) -> list[Outcome]:
    """Posteriors and certificates of N observations.

    Args:
        x: N rows.
        seed, index: every random number depends on (seed, "infer-...", index); index is that of the first row in
            its catalogue.
    """
    condition = posterior.condition(x)
    weighted = weigh_amortized(posterior, x, condition, settings=settings, seed=seed, index=index)
    amortized = [summarize(draws) for draws in weighted]
    outcomes: list[Outcome] = []
    for draws, evidence in zip(weighted, amortized, strict=True):
        count = len(draws.log_q)
        verdict = verdict_of(evidence, settings, count)
        outcomes.append(Outcome(verdict, draws.theta[:0, 0], draws, evidence, evidence, 0.0, count))
    when = settings.refine.when
    wanted = [n for n, o in enumerate(outcomes) if when == "always" or (when == "auto" and o.verdict != "exact")]
    if wanted and posterior.network.refinable:
        repairs = refine_all(
            posterior,
            {name: values[wanted] for name, values in x.items()},
            Condition(*(t[wanted] for t in condition)),
            [weighted[n] for n in wanted],
            [amortized[n] for n in wanted],
            settings=settings,
            seed=seed,
            index=index,
        )
        for n, repair in zip(wanted, repairs, strict=True):
            outcomes[n] = _after_refinement(outcomes[n], repair, settings)
    failed = [n for n, o in enumerate(outcomes) if o.verdict == "failed"]
    if failed and settings.sample.when == "auto":
        with progress_bar("sample", len(failed)) as advance:
            for n in failed:
                outcomes[n] = _after_sampling(
                    posterior, one_row(x, n), outcomes[n], settings=settings, seed=seed, index=index + n
                )
                advance(1)
    outcomes = [_deliver(posterior, o, settings=settings, seed=seed, index=index + n) for n, o in enumerate(outcomes)]
    return _examine(posterior, x, outcomes, settings=settings, seed=seed, index=index)


def weigh_amortized(
    posterior: Posterior, x: Data, condition: Condition, *, settings: InferSettings, seed: int, index: int
) -> list[WeightedDraws]:
    """Weighted draws of the amortized q, (K, 1) for each row: few where weights are nearly equal, else all."""
    most = settings.most_proposals
    first = min(settings.equal_proposals or 2 * settings.draws, most)
    draws = _weigh(posterior, x, condition, first, settings, seed, "weigh", index)
    evidence = summarize(draws)
    rows = [draws.rows(slice(n, n + 1)) for n in range(len(condition.context))]
    more = [n for n in range(len(rows)) if not is_equal(evidence.rows(slice(n, n + 1)), settings)]
    if most == first or not more:
        return rows
    part = {name: values[more] for name, values in x.items()}
    added = _weigh(
        posterior, part, Condition(*(t[more] for t in condition)), most - first, settings, seed, "weigh-more", index
    )
    for i, n in enumerate(more):
        rows[n] = rows[n].and_then(added.rows(slice(i, i + 1)))
    return rows


def _weigh(
    posterior: Posterior,
    x: Data,
    condition: Condition,
    count: int,
    settings: InferSettings,
    seed: int,
    purpose: str,
    index: int,
) -> WeightedDraws:
    with progress_bar("weigh", count) as advance:
        return weigh(
            proposal_of(posterior, condition, settings),
            posterior.simulator,
            posterior.prior,
            x,
            draws=count,
            generator=_stream(posterior, seed, purpose, index),
            advance=advance,
        )


def proposal_of(posterior: Posterior, condition: Condition, settings: InferSettings) -> Proposal:
    """The amortized q, in mixture with a defensive component where the settings ask for one."""
    q = Amortized(posterior.network, condition)
    share = settings.defensive_share
    if not share:
        return q
    if settings.defensive == "prior":
        return Mixture([q, Defensive(posterior.prior, len(condition.context))], [1 - share, share])
    return Mixture([q, Amortized(posterior.network, condition, settings.refine.wide_scale)], [1 - share, share])


def _after_refinement(before: Outcome, repair: Repair, settings: InferSettings) -> Outcome:
    note = why_rejected(repair.evidence, before.amortized, settings, missed=repair.missed)
    after = replace(before, likelihood_calls=before.likelihood_calls + repair.calls, note=note)
    if not note:
        return replace(after, proposals=repair.draws, evidence=repair.evidence, verdict="refined")
    better = before.verdict == "failed" or bool(repair.evidence.ess_fraction > before.evidence.ess_fraction)
    if before.verdict != "exact" and better and repair.earns_corrected(before.amortized, settings):
        return replace(after, proposals=repair.draws, evidence=repair.evidence, verdict="corrected")
    return after


def _after_sampling(
    posterior: Posterior, x: Data, before: Outcome, *, settings: InferSettings, seed: int, index: int
) -> Outcome:
    try:
        sampled = sample_one(
            posterior, x, before.proposals, before.amortized, settings=settings, seed=seed, index=index
        )
    except InputError as error:  # of this observation; the others go on
        return replace(before, note=f"{before.note}; {error}".removeprefix("; "))
    note = "; ".join(n for n in (before.note, sampled.why_not) if n)
    after = replace(before, likelihood_calls=before.likelihood_calls + sampled.calls, note=note, r_hat=sampled.r_hat)
    if sampled.why_not:
        return after
    return replace(after, theta=sampled.theta, proposals=sampled.draws, evidence=sampled.evidence, verdict="sampled")


def _deliver(posterior: Posterior, outcome: Outcome, *, settings: InferSettings, seed: int, index: int) -> Outcome:
    """Equally weighted draws: of the chains where MCMC sampled, else resampled from the weighted ones."""
    stream = _stream(posterior, seed, "deliver", index)
    if outcome.verdict == "sampled":
        chain = outcome.theta
        order = torch.randperm(len(chain), generator=stream, device=chain.device)
        order = order[torch.arange(settings.draws, device=chain.device) % len(chain)]
        return replace(outcome, theta=chain[order], repeated_fraction=max(0.0, 1 - len(chain) / settings.draws))
    order, repeated = systematic_resample(outcome.proposals.log_weight, settings.draws, generator=stream)
    return replace(outcome, theta=outcome.proposals.theta[order[:, 0], 0], repeated_fraction=float(repeated))


def _examine(
    posterior: Posterior, x: Data, outcomes: list[Outcome], *, settings: InferSettings, seed: int, index: int
) -> list[Outcome]:
    """Is each observation like the simulated ones, and like data that its posterior predicts?"""
    typicality = posterior.typicality(x).tolist()
    outcomes = _trust(posterior, x, outcomes, settings.most_outside)
    predictive: list[dict[str, float]] = [{} for _ in outcomes]
    if settings.predictive_draws:
        count = min(settings.predictive_draws, settings.draws)  # at least this many are replicated
        check = predictive_check(
            posterior.simulator,
            torch.stack([o.theta[:count] for o in outcomes], 1),
            x,
            generator=_stream(posterior, seed, "predictive", index),
            least_replicates=settings.predictive_draws,
        )
        names = ("log_likelihood", *(o.name for o in data_observables(posterior.simulator)))
        predictive = [{name: float(check.p_value[name][n]) for name in names} for n in range(len(outcomes))]
    return [replace(o, typicality=t, predictive=p) for o, t, p in zip(outcomes, typicality, predictive, strict=True)]


def _trust(posterior: Posterior, x: Data, outcomes: list[Outcome], most_outside: float) -> list[Outcome]:
    """What a learned likelihood says of itself at the delivered draws; a note where too many lie outside."""
    figures = likelihood_trust(posterior.simulator, torch.stack([o.theta for o in outcomes], 1), x)
    judged = []
    for n, outcome in enumerate(outcomes):
        surrogate = {name: float(values[n]) for name, values in figures.items()}
        outside = surrogate.get("surrogate_outside", 0.0)
        warning = f"{100 * outside:.0f} % of draws outside what was simulated" if outside > most_outside else ""
        note = "; ".join(part for part in (outcome.note, warning) if part)
        judged.append(replace(outcome, surrogate=surrogate, note=note))
    return judged


def _stream(posterior: Posterior, seed: int, purpose: str, index: int) -> torch.Generator:
    return generator(seed, f"infer-{purpose}", index, device=posterior.device)


def one_row(x: Mapping[str, Tensor], row: int) -> Data:
    """Observation `row` of x, as x of one row."""
    return {name: values[row : row + 1] for name, values in x.items()}
