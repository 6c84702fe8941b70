r"""Adaptation: a copy of q follows its own weighted draws to the posterior of one observation, for R of them at once.

Where q is far off, its ELBO leads it into the nearest mode. Weighted draws do not: the copy is fitted by maximum
likelihood (forward KL) to draws whose weights are tempered,

    target_b  ~  q^(1 - b) p(x, theta)^b,      weight^b = (p(x, theta) / q)^b

with the power b as large as leaves a share of the draws effective. Then it draws anew, and b rises to 1: adaptive
importance sampling with a normalizing flow (Cappe et al. 2008, https://arxiv.org/abs/0710.4242; Mueller et al. 2019,
https://arxiv.org/abs/1808.03856). The likelihood is not differentiated, and every mode that a draw meets is kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.copies import clip_each, copies_of
from pipeline.estimators.importance import WeightedDraws, ess_fraction, systematic_resample, usable_log_weight
from pipeline.estimators.network import Condition, PosteriorNetwork
from pipeline.estimators.proposal import Amortized, Mixture, weigh
from pipeline.settings import AdaptSettings
from pipeline.training.averaging import follow
from simulators.protocol import Simulator

GRADIENT_CLIP = 5.0
AVERAGE = 0.95
BATCH = 512
SHARES = (0.7, 0.2, 0.1)
"""Of the mixture that a round draws from: the copy, the copy with widened tails, the amortized q."""


def adapt(
    network: PosteriorNetwork,
    condition: Condition,
    *,
    simulator: Simulator,
    prior: Distribution,
    x: Mapping[str, Tensor],
    first: WeightedDraws,
    settings: AdaptSettings,
    generator: torch.Generator,
    advance: Callable[..., None] | None = None,
) -> tuple[PosteriorNetwork, int]:
    """Copies of `network` that have followed their weighted draws on x, one for each of its R rows.

    A copy that is there stays as it is while others go on.

    Args:
        condition: of x, from the amortized embedding.
        first: draws of the amortized q, already weighted, (K, R).
        advance: told of each round, with the mean effective share of the draws as note.

    Returns:
        the copies, and how many values of theta the likelihood was evaluated at for each row.
    """
    adapted = copies_of(network, len(condition.context))
    condition = Condition(*(t.detach() for t in condition))
    draws, calls = first, 0
    passed = torch.zeros(len(condition.context), dtype=torch.bool, device=condition.context.device)
    done = passed
    mixture = Mixture(
        [
            Amortized(adapted, condition),
            Amortized(adapted, condition, settings.wide_scale),
            Amortized(network, condition),
        ],
        SHARES,
    )
    for round_ in range(settings.rounds):
        log_weight = usable_log_weight(draws.log_weight)
        power = largest_power(log_weight, settings.effective_share)
        index, _ = systematic_resample(_tempered(log_weight, power), settings.draws, generator=generator)
        theta = draws.theta.gather(0, index[..., None].expand(-1, -1, draws.theta.shape[-1]))
        _fit(adapted, condition, theta, active=~done, settings=settings, generator=generator)
        draws = weigh(mixture, simulator, prior, x, draws=settings.draws, generator=generator)
        calls += settings.draws
        share = ess_fraction(draws.log_weight)
        if advance:
            advance(1, note=f"power {float(power.mean()):.3f}, effective {float(share.mean()):.3f}")
        # twice in a row: draws of a q that is too narrow may look good once
        passed, passed_before = (power == 1) & (share >= settings.enough), passed
        done = done | (passed & passed_before)
        if bool(done.all()):
            if advance:
                advance(settings.rounds - round_ - 1)
            break
    return adapted, calls


def largest_power(log_weight: Tensor, effective_share: float) -> Tensor:
    r"""The largest $b \le 1$ for which $w^b$ leaves `effective_share` of the draws effective, (K, R) -> (R,)."""
    low = torch.zeros(log_weight.shape[1], dtype=log_weight.dtype, device=log_weight.device)
    high = torch.ones_like(low)
    enough_at_once = ess_fraction(log_weight) >= effective_share
    for _ in range(30):
        middle = 0.5 * (low + high)
        enough = ess_fraction(_tempered(log_weight, middle)) >= effective_share
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(enough_at_once, high.new_ones(()), low)


def _tempered(log_weight: Tensor, power: Tensor) -> Tensor:
    """power * log_weight; a power of 0 would give draws of weight zero a weight: they keep none."""
    return torch.where(log_weight.isfinite(), power * log_weight, -math.inf)


def _fit(
    network: PosteriorNetwork,
    condition: Condition,
    theta: Tensor,
    *,
    active: Tensor,
    settings: AdaptSettings,
    generator: torch.Generator,
) -> None:
    """Maximum likelihood on draws theta (S, R, D) of the `active` rows (R,), in place; the average of the last weights is kept."""
    averaged = copy.deepcopy(network.flow)
    network.flow.requires_grad_(True)
    parameters = list(network.flow.parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
    with torch.enable_grad():
        for step in range(settings.steps):
            progress = step / settings.steps
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (
                0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
            )
            rows = torch.randint(len(theta), (BATCH,), generator=generator, device=theta.device)
            loss = -network.log_q(theta[rows], condition).mean(0)
            optimizer.zero_grad()
            # Adam is new in every round: without a gradient a copy that is done does not move
            torch.where(active, loss, 0.0).sum().backward()
            clip_each(parameters, GRADIENT_CLIP, copies=theta.shape[1])
            optimizer.step()
            follow(averaged, network.flow, min(AVERAGE, (1 + step) / (10 + step)))
    network.flow.load_state_dict(averaged.state_dict())
    network.requires_grad_(False)
