r"""Particles that are annealed from the prior to the posterior: a search that needs no gradient.

    p_b(w)  ~  p(x|theta)^b p(w),     b from 0 to 1, each step as large as leaves half of the particles effective.

After each step they are resampled and moved by differential evolution, w_i + g (w_j - w_k) with the Metropolis rule (ter Braak
2006, https://doi.org/10.1007/s11222-006-8769-1), one half of them by differences of the other. Sequential Monte Carlo
(Del Moral, Doucet and Jasra 2006, https://doi.org/10.1111/j.1467-9868.2006.00553.x). A mode keeps its share of the
particles where it holds its share of the mass at every b; one that appears late may be missed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.diagnostics.landscape import Landscape, Progress

EFFECTIVE = 0.5
MOVES = 6
MOST_LEVELS = 80
JUMP_SHARE, WALK_SHARE = 0.1, 0.5
"""Of the moves, those with g = 1, which take a particle from one mode to another; and random steps of one particle, which narrow
modes far apart need: differences of two particles lead out of them. Their size follows their acceptance."""
WANTED = 0.25
"""Acceptance of the random steps."""


def anneal(
    landscape: Landscape,
    w: Tensor,
    log_likelihood: Tensor,
    count: int,
    *,
    generator: torch.Generator,
    advance: Progress | None = None,
) -> Tensor:
    """`count` particles at b = 1, (P, D), from prior draws w (K, D) with their log likelihood (K,); none if it never is finite.

    Where b has not reached 1 after `MOST_LEVELS` steps, they are those of the b that was reached.
    """
    usable = log_likelihood.isfinite()
    w, likelihood = w[usable], log_likelihood[usable]
    if not len(w):
        return w
    prior = landscape.parts(w)[1]
    power, size = 0.0, 1.0
    for _ in range(MOST_LEVELS):
        added = _largest_step(likelihood, power)
        power = power + added
        index = _resample(added * likelihood, count, generator)
        w, likelihood, prior = w[index], likelihood[index], prior[index]
        for _ in range(MOVES):
            w, likelihood, prior, accepted = _move(landscape, w, likelihood, prior, power, size, generator)
            size = min(max(size * math.exp(accepted - WANTED), 1e-6), 1.0)
        if advance:
            advance(1, note=f"power {power:.2g}")
        if power >= 1:
            break
    return w


def _largest_step(log_likelihood: Tensor, power: float) -> float:
    """The largest addition to b that leaves `EFFECTIVE` of the particles effective."""
    low, high = 0.0, 1.0 - power
    wanted = EFFECTIVE * len(log_likelihood)
    if _ess(high * log_likelihood) >= wanted:
        return high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _ess(middle * log_likelihood) >= wanted else (low, middle)
    return low


def _ess(log_weight: Tensor) -> float:
    top = log_weight.max()
    return float((2 * torch.logsumexp(log_weight - top, 0) - torch.logsumexp(2 * (log_weight - top), 0)).exp())


def _resample(log_weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Systematic resampling, in random order, (count,)."""
    cumulative = torch.softmax(log_weight, 0).cumsum(0)
    device = log_weight.device
    offset = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    points = (torch.arange(count, device=device, dtype=torch.float64) + offset) / count * cumulative[-1]
    index = torch.searchsorted(cumulative, points).clamp_max(len(log_weight) - 1)
    return index[torch.randperm(count, generator=generator, device=device)]


def _move(
    landscape: Landscape,
    w: Tensor,
    likelihood: Tensor,
    prior: Tensor,
    power: float,
    size: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """One Metropolis step of each half of the particles, by differences of the other half or a random step of `size` spreads.

    Returns:
        particles, log likelihood, log prior density, and the accepted share of the random steps.
    """
    w, likelihood, prior = w.clone(), likelihood.clone(), prior.clone()
    spread_of_all, walks, walked = w.std(0), 0, 0
    half = len(w) // 2
    order = torch.randperm(len(w), generator=generator, device=w.device)
    scale = 2.38 / math.sqrt(2 * w.shape[1])
    for mine, others in ((order[:half], order[half:]), (order[half:], order[:half])):
        count = len(mine)
        uniform = torch.rand(4, count, generator=generator, device=w.device, dtype=w.dtype)
        j = (uniform[0] * len(others)).long()
        k = (j + 1 + (uniform[1] * (len(others) - 1)).long()) % len(others)
        noise = torch.randn(count, w.shape[1], generator=generator, device=w.device, dtype=w.dtype)
        jump = uniform[2] < JUMP_SHARE
        spread = (0.5 + torch.rand(count, generator=generator, device=w.device, dtype=w.dtype)) * scale
        factor = torch.where(jump, 1.0, spread)
        difference = landscape.distance(w[others[j]], w[others[k]])
        walk = torch.rand(count, generator=generator, device=w.device, dtype=w.dtype) < WALK_SHARE
        random_step = size * scale * spread_of_all * noise
        trial = w[mine] + torch.where(walk[:, None], random_step, factor[:, None] * difference + 1e-5 * noise)
        new_likelihood, new_prior = landscape.parts(trial)
        rise = power * (new_likelihood - likelihood[mine]) + new_prior - prior[mine]
        accepted = uniform[3].log() < rise
        walks, walked = walks + int(walk.sum()), walked + int((walk & accepted).sum())
        taken = mine[accepted]
        w[taken], likelihood[taken], prior[taken] = trial[accepted], new_likelihood[accepted], new_prior[accepted]
    return w, likelihood, prior, walked / max(walks, 1)
