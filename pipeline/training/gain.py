r"""What training has learned: nats of the true theta that q, or a learned likelihood, gains on knowing nothing.

    q               < log q(theta|x) - log p(theta) >              over held-out simulations
                    < log q(theta|x) - log q(theta|x') >           x' of another simulation
    a likelihood    < log p~(s|theta) - log p~(s|theta') >         theta' with one parameter of another simulation

The first is zero for a q that is the prior, the second for one that does not depend on x (one that is the proposal, narrower
than the prior, gains on that and knows nothing), the third for a likelihood that does not see that parameter. All are
positive where what was learned is worth anything; the first is at most the mutual information of theta and x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.likelihood import LikelihoodNetwork, mixture
from pipeline.estimators.network import Condition, PosteriorNetwork
from pipeline.rng import generator
from pipeline.training.data import TrainingSet

LEAST = 0.01
"""Nats below which a gain is none."""
ERRORS = 2.0
"""Standard errors below which a gain is none."""
MOST = 10.0
"""Nats that a simulation counts for at most."""
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
    """Mean of (N,) and its error, weighted where weights are given; each counts for at most MOST nats either way.

    Of data that are another star's, log q of the truth falls by ten thousands of nats here and there: 43,000 +- 39,000 once
    passed for nothing.
    """
    difference = difference.clamp(-MOST, MOST)
    weight = torch.softmax(torch.zeros_like(difference) if log_weight is None else log_weight, 0)
    mean = (weight * difference).sum()
    return Gain(float(mean), float((weight * (difference - mean)).square().sum().sqrt()))


@torch.no_grad()
def gains_of(network: PosteriorNetwork, held_out: TrainingSet, *, prior: Distribution) -> tuple[Gain, Gain]:
    """Of q over the prior, weighted by prior over proposal where theta came from one; and over q given another x.

    Args:
        prior: on the device of the simulations.
    """
    conditions = [network.condition(held_out.inputs.rows(slice(i, i + BLOCK))) for i in range(0, len(held_out), BLOCK)]
    condition = Condition(*(torch.cat(part) for part in zip(*conditions, strict=True)))
    other = Condition(*(part.roll(1, 0) for part in condition))
    log_q, log_q_other = network.log_q(held_out.theta, condition), network.log_q(held_out.theta, other)
    return _gain(log_q - prior.log_prob(held_out.theta), held_out.log_importance), _gain(log_q - log_q_other)


def words_of(over_prior: Gain, over_other: Gain) -> str:
    """What to say of a q that learned nothing; nothing of any other.

    >>> words_of(Gain(0.5, 0.1), Gain(3.0, 0.2))
    ''
    """
    if over_prior.is_none:
        why = f"q is the prior (held-out log q of the true theta is above the prior's by {over_prior})"
    elif over_other.is_none:
        why = f"q does not depend on the data (those of another simulation cost log q of the true theta {over_other})"
    else:
        return ""
    return (
        f"the network learned nothing: {why}; check that the data depend on the parameters, that the features keep what "
        "they know of them, and that train.phases has steps enough and a learning_rate that fits"
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
