"""The rungs `exact` and `corrected`: the amortized q, weighed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch

from pipeline.estimators.importance import WeightedDraws, summarize
from pipeline.estimators.network import Condition
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Amortized, Defensive, Mixture, Proposal, weigh
from pipeline.progress import progress_bar
from pipeline.rng import generator
from pipeline.settings import InferSettings
from pipeline.stages.verdicts import is_equal
from simulators.protocol import Data


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
            generator=infer_stream(posterior, seed, purpose, index),
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


def side_by_side(rows: Sequence[WeightedDraws]) -> WeightedDraws:
    """As many draws of each observation as every one has, (K, 1) each -> (K, N)."""
    few = min(len(d.log_q) for d in rows)
    return WeightedDraws(*(torch.cat([getattr(d, f.name)[:few] for d in rows], 1) for f in fields(WeightedDraws)))


def infer_stream(posterior: Posterior, seed: int, purpose: str, index: int) -> torch.Generator:
    """Random numbers of a part of stage `infer`: a function of (seed, purpose, index of the observation)."""
    return generator(seed, f"infer-{purpose}", index, device=posterior.device)
