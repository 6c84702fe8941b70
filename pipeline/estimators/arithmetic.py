r"""How well the log weights themselves are known: rounding, float32, a likelihood that is noise.

A smooth function has next to no third difference over a sixteenth of its width; noise of standard deviation s has

    f(theta - d) - 3 f(theta) + 3 f(theta + d) - f(theta + 2 d)   ~   sqrt(20) s,       d = (theta_j - theta_i) / 16,

theta_j the draw nearest to theta_i, so that d stays in the posterior's valley. Steps of a likelihood that is rounded count as
noise where f changes by more than one of them along d. The median over draws is stated, or, where that is larger, the
largest difference between two calls at one and the same theta: a likelihood that is random for a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.importance import WeightedDraws, systematic_resample
from pipeline.estimators.proposal import Proposal
from simulators.protocol import Simulator, log_likelihood

POINTS = 32
"""Draws at which the difference is taken, five likelihood calls each."""
STEP = 1 / 16
MEDIAN_OF_NORMAL = 0.6745
"""Median of |z| for z ~ N(0, 1)."""


@torch.no_grad()
def weight_noise(
    draws: WeightedDraws,
    proposal: Proposal,
    simulator: Simulator,
    prior: Distribution,
    x: Mapping[str, Tensor],
    *,
    generator: torch.Generator,
) -> Tensor:
    """Standard deviation of the noise of the log weight, nats, (N,); 0 where it cannot be measured."""
    index, _ = systematic_resample(draws.log_weight, POINTS, generator=generator)
    theta = draws.theta.gather(0, index[..., None].expand(-1, -1, draws.theta.shape[-1]))
    step = STEP * _to_nearest(theta)
    at = torch.cat([theta + k * step for k in (-1, 0, 1, 2)])
    likelihood = log_likelihood(simulator, at, x).double()
    value = likelihood + prior.log_prob(at).double() - proposal.log_q(at).double()
    again = (log_likelihood(simulator, theta, x).double() - likelihood[POINTS : 2 * POINTS]).abs()
    first, second, third, fourth = value.view(4, *theta.shape[:2])
    difference = (first - 3 * second + 3 * third - fourth).abs()
    moved = (step != 0).any(-1)
    known = torch.where(difference.isfinite() & moved, difference, math.nan)
    noise = torch.nanmedian(known, dim=0).values / (math.sqrt(20) * MEDIAN_OF_NORMAL)
    return torch.maximum(torch.nan_to_num(noise, nan=0.0), torch.nan_to_num(again, nan=0.0, posinf=0.0).amax(0))


def _to_nearest(theta: Tensor) -> Tensor:
    """From each draw of theta (S, N, D) to the nearest other one of its observation, in units of their spread."""
    spread = theta.std(0, keepdim=True)
    z = (theta / torch.where(spread > 0, spread, 1.0)).transpose(0, 1)  # (N, S, D)
    distance = torch.cdist(z, z)
    distance = torch.where(distance > 0, distance, math.inf)  # itself, and repeats of it
    nearest = distance.argmin(-1).T[..., None].expand_as(theta)
    return theta.gather(0, nearest) - theta
