"""Outcomes under a learned likelihood, after the simulator itself was asked at their delivered draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.diagnostics.surrogate import surrogate_check
from pipeline.estimators.posterior import Posterior
from pipeline.rng import generator
from pipeline.settings import InferSettings
from simulators.protocol import Data

if TYPE_CHECKING:
    from pipeline.stages.ladder import Outcome


def check_learned(
    posterior: Posterior,
    x: Data,
    outcomes: Sequence[Outcome],
    *,
    settings: InferSettings,
    seed: int,
    index: int,
    shared: bool = False,
) -> list[Outcome]:
    """Outcomes with the figures of the check; `failed`, with a note, where it says so.

    Each observation has its own random numbers: what is in its file beside it changes nothing.

    Args:
        posterior: whose simulator has the learned likelihood; any other is left as it is.
        x: N rows.
        outcomes: with their delivered draws, N.
        settings, seed, index: as of `ladder.climb_all`.
        shared: one outcome for all rows (`combine`).
    """
    checked = []
    for n, outcome in enumerate(outcomes):
        check = surrogate_check(
            posterior.simulator,
            outcome.theta[:, None],
            {name: values if shared else values[n : n + 1] for name, values in x.items()},
            simulations=settings.surrogate_check,
            generator=generator(seed, "infer-surrogate", index + n, device=posterior.device),
            shared=shared,
        )
        figures: Mapping[str, float] = dict(outcome.surrogate) | check.figures(0)
        why = check.why_failed(0, below=settings.surrogate_below)
        outcome = replace(outcome, surrogate=figures)
        if why:
            note = "; ".join(part for part in (outcome.note, why) if part)
            outcome = replace(outcome, verdict="failed", note=note)
        checked.append(outcome)
    return checked
