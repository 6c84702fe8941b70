r"""What training has learned: nats of the true theta that q, or a learned likelihood, gains on knowing nothing.

    q               < log q(theta|x) - log p(theta) >                    over held-out simulations
    a likelihood    < log p~(s|theta) - log p~(s|theta') >,              theta' with one parameter of another simulation

Zero for a q that is the prior, and for a likelihood that does not see that parameter; otherwise positive, where what was
learned is worth anything. The first is at most the mutual information of theta and x, and reaches it where q is the posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.likelihood import LikelihoodNetwork, mixture
from pipeline.estimators.network import PosteriorNetwork
from pipeline.rng import generator
from pipeline.training.data import TrainingSet

LEAST = 0.01
"""Nats below which a gain is none."""
ERRORS = 2.0
"""Standard errors below which a gain is none."""
BLOCK = 1_024
"""Simulations at once."""


@dataclass(frozen=True)
class Gain:
    """A mean over simulations and its standard error, nats."""

    mean: float
    error: float

    @property
    def is_none(self) -> bool:
        """Whether it is below LEAST, or not to be told from zero; a figure that is not finite says nothing."""
        return math.isfinite(self.mean) and (self.mean < LEAST or self.mean < ERRORS * self.error)

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.error:.3f} nats"


def _gain(difference: Tensor, log_weight: Tensor | None = None) -> Gain:
    """Mean of (N,) and its error, weighted where weights are given."""
    weight = torch.softmax(torch.zeros_like(difference) if log_weight is None else log_weight, 0)
    mean = (weight * difference).sum()
    return Gain(float(mean), float((weight * (difference - mean)).square().sum().sqrt()))


@torch.no_grad()
def gain_over_prior(
    network: PosteriorNetwork, held_out: TrainingSet, *, prior: Distribution, proposal: Distribution
) -> Gain:
    """Of q over the prior; where theta came from a proposal, over that if it is the smaller and q might be it.

    Args:
        prior, proposal: on the device of the simulations.
    """
    parts = [held_out.rows(slice(i, i + BLOCK)) for i in range(0, len(held_out), BLOCK)]
    log_q = torch.cat([network.log_q(p.theta, network.condition(p.inputs)) for p in parts])
    gain = _gain(log_q - prior.log_prob(held_out.theta), held_out.log_importance)
    if proposal is prior:
        return gain
    over_proposal = _gain(log_q - proposal.log_prob(held_out.theta))
    # a q of the prior's posterior, wider than a narrow proposal, lies below it by far: it is not the proposal
    is_proposal = abs(over_proposal.mean) < max(LEAST, ERRORS * over_proposal.error)
    return over_proposal if is_proposal else gain


def words_of(gain: Gain) -> str:
    """What to say of a q that learned nothing; nothing of any other.

    >>> words_of(Gain(0.5, 0.1))
    ''
    """
    if not gain.is_none:
        return ""
    return (
        f"the network learned nothing: q is the prior (held-out log q of the true theta is above the prior's by {gain}); "
        "check that the data depend on the parameters, that the features keep what they know of them, and that "
        "train.phases has steps enough and a learning_rate that fits"
    )


@torch.no_grad()
def gain_by_parameter(network: LikelihoodNetwork, data: TrainingSet, *, seed: int) -> dict[str, Gain]:
    """Of a learned likelihood, on simulations that it was not trained on, by the name of each parameter."""
    read = network.read(data.x)
    stream = generator(seed, "likelihood-gain", device=data.theta.device)
    own = mixture(network.member_log_prob(data.theta, read))
    gains = {}
    for d, parameter in enumerate(network.simulator.parameters):
        other = data.theta.clone()
        other[:, d] = other[torch.randperm(len(other), generator=stream, device=other.device), d]
        gains[parameter.name] = _gain(own - mixture(network.member_log_prob(other, read)))
    return gains
