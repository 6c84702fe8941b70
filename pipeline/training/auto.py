"""Which schedule a case gets, and how its steps are shared out. Why: docs/training.md."""

from __future__ import annotations

from itertools import accumulate, pairwise

from pipeline.settings import PhaseSettings, TrainSettings

SCARCE = 20_000
"""Stored simulations below which the likelihood is asked for draws of its own; a choice, not a measured edge."""


def schedule(
    settings: TrainSettings, *, has_likelihood: bool, simulations: int, from_prior: bool = True, trained: bool = False
) -> tuple[PhaseSettings, ...]:
    """The phases of a case, chosen where none are given, with `steps` shared out.

    Args:
        has_likelihood: whether the simulator's likelihood is tractable.
        simulations: stored pairs for training.
        from_prior: whether theta was drawn from the prior, and not from a proposal.
        trained: whether q comes from joint training with the likelihood.
    """
    if settings.phases:
        phases = settings.phases
    elif trained:
        phases = JOINT
    elif not has_likelihood:
        phases = FREE
    elif settings.data == "online" or simulations >= SCARCE:
        phases = FREE if from_prior else PROPOSED
    else:
        phases = SCARCE_PHASES
    return phases if settings.steps is None else share_out(phases, settings.steps)


FREE = (PhaseSettings(objective="forward_kl", steps=8_000, learning_rate=1e-2, batch=256),)
"""Forward KL learns every mode; an ELBO phase after it took time on every public task and gave none of it back."""
PROPOSED = (
    PhaseSettings(objective="forward_kl", steps=4_000, learning_rate=1e-2, batch=256),
    PhaseSettings(objective="elbo", steps=4_000, learning_rate=2e-3, batch=256),
)
"""Forward KL learns the proposal's posterior and every mode of it; the ELBO turns that into the prior's."""
JOINT = (PhaseSettings(objective="elbo", steps=500, learning_rate=5e-4, batch=256),)
"""What was trained with the members is fitted to the guarded mixture of them."""
SCARCE_PHASES = (
    PhaseSettings(objective="forward_kl", steps=600, learning_rate=5e-3, batch=128),
    PhaseSettings(
        objective="wake",
        steps=3_400,
        learning_rate=1e-2,
        draws=16,
        batch=64,
        prior_share=0.25,
        memory=True,
    ),
)
"""The likelihood weighs as many draws of theta as are asked for, and each stored x yields posterior draws without end."""


def share_out(phases: tuple[PhaseSettings, ...], steps: int) -> tuple[PhaseSettings, ...]:
    """The phases with their steps scaled to a total, at least one each."""
    total = sum(p.steps for p in phases)
    ends = [round(end * steps / total) for end in accumulate(p.steps for p in phases)]
    shares = [max(1, end - start) for start, end in pairwise([0, *ends])]
    return tuple(p.model_copy(update={"steps": n}) for p, n in zip(phases, shares, strict=True))
