r"""The guard: what held-out simulations say of q, and whether a phase of training may keep what it did.

For a held-out pair (theta, x) from the joint distribution, theta is one exact draw from the posterior of x. The mean
of log q(theta|x) is therefore the one figure that sees a lost mode: ELBO, gap and ESS fraction are expectations
under q, and q does not look where it does not go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.importance import WeightedDraws, ess_fraction, log_evidence
from pipeline.estimators.network import PosteriorNetwork, draw_in_blocks
from pipeline.rng import generator
from pipeline.settings import GuardSettings, PhaseSettings
from pipeline.training.data import TrainingSet
from simulators.protocol import Simulator, has_likelihood, log_likelihood

DRAWS, OBSERVATIONS = 256, 250
"""Draws of q for each of at most so many observations; log q of the true theta is taken of all held-out ones, and where
a proposal restricts theta, so are the draws: they say how much of q lies inside."""
MORE_REFUSED = 0.01
"""By how much a phase may raise the share of draws that have no weight."""

LEAST_WEIGHT = 0.01
"""Share of the draws, those of least weight, whose part of the gap is told apart."""
NOTABLE_GAP, NOTABLE_ESS = 0.5, 0.8
"""Nats of gap and ESS fraction from which on the two seem to contradict each other."""

Figures = dict[str, float]


@torch.no_grad()
def held_out_figures(
    network: PosteriorNetwork,
    simulator: Simulator,
    prior: Distribution,
    held_out: TrainingSet,
    *,
    seed: int,
    proposal: Distribution | None = None,
) -> Figures:
    r"""What simulations that were not trained on say of q.

    `held_out_forward_log_q`: the mean log q of the true theta. Where theta came from a proposal r it is weighted by
    prior / r; and where r does not reach everywhere, to S, it is that of q restricted to S,
    $\langle \log q(\theta|x) - \log Q(S|x) \rangle$: the true theta is a draw from the posterior restricted to S, and a q
    that also covers the rest has lost nothing. With a likelihood also the held-out ELBO, its two terms, the gap to the
    evidence as 256 draws estimate it (a lower bound where weights vary much), what of the gap is due to the LEAST_WEIGHT of
    the draws that weigh least, and mean and median of the ESS fraction.

    Args:
        proposal: what theta of `held_out` was drawn from, on its device; None is the prior.
    """
    condition = network.condition(held_out.inputs)
    log_q = network.log_q(held_out.theta, condition)
    weights = torch.softmax(held_out.log_importance, 0)
    stream = generator(seed, "train-held-out", device=held_out.theta.device)
    restricted = proposal is not None and proposal is not prior
    some = held_out if restricted else held_out.rows(slice(OBSERVATIONS))
    theta, draws_log_q = draw_in_blocks(network, network.condition(some.inputs), DRAWS, generator=stream)
    if proposal is not None and restricted:
        inside = proposal.log_prob(theta).isfinite().double().mean(0)
        log_q = log_q - inside.clamp_min(0.5 / DRAWS).log()
    figures = {"held_out_forward_log_q": float((weights * log_q).sum())}
    if not has_likelihood(simulator):
        return figures
    draws = WeightedDraws(
        theta, draws_log_q, log_likelihood(simulator, theta, some.x).double(), prior.log_prob(theta), draws_log_q
    )
    log_weight = draws.log_weight
    usable = log_weight.isfinite()
    count = usable.sum()

    def mean(values: Tensor) -> float:
        """Over usable draws only; the share of unusable ones is reported beside it."""
        return float(torch.where(usable, values, 0.0).sum() / count)

    ess = ess_fraction(log_weight)
    figures["held_out_elbo"] = mean(log_weight)
    figures["held_out_reconstruction"] = mean(draws.log_likelihood)
    figures["held_out_regularization"] = mean(draws.log_q - draws.log_prior)
    evidence = log_evidence(log_weight)
    figures["held_out_kl_gap"] = float(evidence.mean()) - figures["held_out_elbo"]
    short = torch.where(usable, evidence - log_weight, 0.0).flatten()
    figures["held_out_kl_gap_of_least"] = float(short.topk(math.ceil(LEAST_WEIGHT * len(short))).values.sum() / count)
    figures["held_out_refused"] = float((~usable).double().mean())
    figures["held_out_ess_fraction"] = float(ess.mean())
    figures["held_out_ess_fraction_median"] = float(ess.median())
    return figures


def plain(figure: str) -> str:
    """A figure's name in words: `held_out_forward_log_q` is `forward log q`."""
    return figure.removeprefix("held_out_").replace("_", " ")


def gap_beside_ess(figures: Mapping[str, float]) -> str:
    """A sentence where gap and ESS fraction seem to contradict each other, empty elsewhere.

    The gap is a mean of log weights: a draw that weighs e^-280 costs as much as a hundred draws 2.8 nats short each. ESS is one
    of weights, to which the draw is one that is missing: of a hundred draws 99 are left.
    """
    gap, ess = figures.get("held_out_kl_gap", 0.0), figures.get("held_out_ess_fraction", 0.0)
    if not (gap > NOTABLE_GAP and ess > NOTABLE_ESS and "held_out_kl_gap_of_least" in figures):
        return ""
    return (
        f"a gap of {gap:.2f} nats stands beside an ESS fraction of {ess:.2f}: {figures['held_out_kl_gap_of_least']:.2f} nats "
        f"of it come from the {LEAST_WEIGHT:.0%} of the draws that weigh least, which cost the ELBO nats and the weighted draws next to nothing"
    )


def criterion_of(phase: PhaseSettings, settings: GuardSettings, *, has_likelihood: bool) -> str:
    """Name of the figure that a phase must improve."""
    if settings.criterion != "auto" and (has_likelihood or settings.criterion == "forward_log_q"):
        return f"held_out_{settings.criterion}"
    leading = max(phase.weights, key=lambda name: phase.weights[name])
    if leading == "forward_kl" or not has_likelihood:
        return "held_out_forward_log_q"
    return "held_out_elbo" if leading == "elbo" else "held_out_ess_fraction"


@dataclass(frozen=True)
class Guard:
    """What a phase is measured against.

    Attributes:
        criterion: the figure that must improve.
        start: its value before the phase; -inf for an untrained network.
        least_forward_log_q: the best so far of any phase that was kept, minus the tolerance.
        most_refused: share of draws without weight, of the network before, plus a hundredth. Draws outside the
            support of the likelihood have no gradient: an ELBO may grow over its edge, and gain by what it leaves out.
    """

    criterion: str
    start: float = -math.inf
    least_forward_log_q: float = -math.inf
    most_refused: float = 1.0

    def keeps_modes(self, figures: Mapping[str, float]) -> bool:
        """Whether forward log q has not fallen by more than the tolerance."""
        return figures["held_out_forward_log_q"] >= self.least_forward_log_q

    def objection(self, figures: Mapping[str, float]) -> str:
        """Why a network with these figures may not replace the one that the phase started from; empty where it may."""
        if not self.keeps_modes(figures):
            found = figures["held_out_forward_log_q"]
            return (
                f"mean log q of the true theta is {found:.3f} nats, and at least {self.least_forward_log_q:.3f} "
                "(the best so far less the tolerance) is asked for: q has lost part of the posterior or become too narrow"
            )
        refused = figures.get("held_out_refused", 0.0)
        if not refused <= self.most_refused:
            return (
                f"{refused:.1%} of its draws have no weight, and at most {self.most_refused:.1%} may: q has grown over "
                "the edge of the support"
            )
        found = figures[self.criterion]
        if not found > self.start:
            return f"{plain(self.criterion)} is {found:.3f}, and has to rise above the {self.start:.3f} of the phase's start"
        return ""

    def passes(self, figures: Mapping[str, float]) -> bool:
        """Whether a network with these figures may replace the one that the phase started from."""
        return not self.objection(figures)


def guard_of(
    phase: PhaseSettings,
    settings: GuardSettings,
    *,
    has_likelihood: bool,
    start: Mapping[str, float] | None,
    best_forward_log_q: float,
) -> Guard:
    """The guard of a phase that starts from figures `start`, None for an untrained network."""
    criterion = criterion_of(phase, settings, has_likelihood=has_likelihood)
    if start is None:
        return Guard(criterion)
    refused = start.get("held_out_refused", 0.0) + MORE_REFUSED
    return Guard(criterion, start[criterion], best_forward_log_q - settings.tolerance, refused)
