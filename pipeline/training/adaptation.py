r"""Adaptation: a copy of q follows its own weighted draws to the posterior of one observation.

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
    """A copy of `network` that has followed its weighted draws on x (one row), its embedding unchanged.

    Args:
        condition: of x, from the amortized embedding.
        first: draws of the amortized q, already weighted.
        advance: told of each round, with the effective share of the draws as note.

    Returns:
        the copy, and how many values of theta the likelihood was evaluated at.
    """
    adapted = copy.deepcopy(network).requires_grad_(False)
    condition = Condition(*(t.detach() for t in condition))
    draws, calls, passed = first, 0, False
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
        index, _ = systematic_resample(power * log_weight, settings.draws, generator=generator)
        _fit(adapted, condition, draws.theta[index[:, 0], 0], settings=settings, generator=generator)
        draws = weigh(mixture, simulator, prior, x, draws=settings.draws, generator=generator)
        calls += settings.draws
        share = float(ess_fraction(draws.log_weight))
        if advance:
            advance(1, note=f"power {power:.3f}, effective {share:.3f}")
        # twice in a row: draws of a q that is too narrow may look good once
        passed, passed_before = power == 1 and share >= settings.enough, passed
        if passed and passed_before:
            if advance:
                advance(settings.rounds - round_ - 1)
            break
    return adapted, calls


def largest_power(log_weight: Tensor, effective_share: float) -> float:
    r"""The largest $b \le 1$ for which $w^b$ leaves `effective_share` of the draws effective, (K, 1); 1 where w does."""
    if bool(ess_fraction(log_weight) >= effective_share):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        # a power of 0 gives draws of weight zero a weight: they keep none
        enough = bool(ess_fraction(middle * log_weight) >= effective_share)
        low, high = (middle, high) if enough else (low, middle)
    return low


def _fit(
    network: PosteriorNetwork,
    condition: Condition,
    theta: Tensor,
    *,
    settings: AdaptSettings,
    generator: torch.Generator,
) -> None:
    """Maximum likelihood on draws theta (S, D), in place; the average of the last weights is kept."""
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
            loss = -network.log_q(theta[rows, None], condition).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
            optimizer.step()
            follow(averaged, network.flow, min(AVERAGE, (1 + step) / (10 + step)))
    network.flow.load_state_dict(averaged.state_dict())
    network.requires_grad_(False)
