"""Outcomes under a learned likelihood, after the simulator itself was asked at their delivered draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.diagnostics.surrogate import surrogate_check
from pipeline.estimators.posterior import Posterior
from pipeline.rng import generator
from pipeline.settings import InferSettings
from pipeline.stages.isolation import attempt, joined
from pipeline.stages.outcome import Outcome
from simulators.protocol import Data


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
        if not bool(outcome.theta.isfinite().all()):
            checked.append(outcome)  # there are no draws at which to simulate
            continue
        check, error = attempt(
            lambda n=n, outcome=outcome: surrogate_check(
                posterior.simulator,
                outcome.theta[:, None],
                {name: values if shared else values[n : n + 1] for name, values in x.items()},
                simulations=settings.surrogate_check,
                generator=generator(seed, "infer-surrogate", index + n, device=posterior.device),
                shared=shared,
            )
        )
        why = f"the learned likelihood could not be checked ({error})"
        if check is not None:
            why = check.why_failed(0, below=settings.surrogate_below)
            figures: Mapping[str, float] = dict(outcome.examined.surrogate) | check.figures(0)
            outcome = replace(outcome, examined=replace(outcome.examined, surrogate=figures))
        if why:
            outcome = replace(outcome, verdict="failed", note=joined(outcome.note, why))
        checked.append(outcome)
    return checked
