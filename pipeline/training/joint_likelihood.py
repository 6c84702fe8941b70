r"""p_e(s given theta) and q(theta given x) trained together: one optimiser, one bound.

    J(phi, psi) = (1/E) sum_e < log p_e(s|theta) >  +  a < log q(theta|x) >
                  + b < (1/E) sum_e log p_e(s|theta') + log p(theta') - log q(theta'|x) >_q

Means without a mark are over simulated pairs (theta, x), s = s(x). With entropies H of the simulator and its prior

    J  <=  - H(s|theta)  -  a H(theta|s)  -  b H(s)

and equal if and only if every p_e is p(s|theta) and q is p(theta|s): the first two terms miss their entropies by a KL divergence
each; the third is below the mean of log p_e(s), the evidence under p_e, by KL(q, posterior of p_e), and that mean below -H(s) by
another. The truth is the one optimum, whatever a > 0 and b >= 0; the third term alone would not know theta from any other latent
(Kingma et al. 2014, Semi-supervised learning with deep generative models, https://arxiv.org/abs/1406.5298, has the same
three terms). All this is for theta from the prior: x from a proposal would pull p_e(s) towards the proposal's, and settings
refuse it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.estimators.likelihood import LikelihoodNetwork
from pipeline.estimators.network import PosteriorNetwork
from pipeline.likelihood_settings import LikelihoodSettings
from pipeline.objectives.elbo import elbo
from pipeline.objectives.forward_kl import forward_kl
from pipeline.rng import generator
from pipeline.training.data import TrainingSet
from pipeline.training.maximum_likelihood import Fitted, fit
from simulators.priors import prior_of, to_device

WATCHED = 1_000
"""Held-out simulations, at most, on which J is watched."""


class JointNetworks(nn.Module):
    """Both sides as one module: `members` of the ensemble, and `posterior`."""

    def __init__(self, members: nn.ModuleList, posterior: PosteriorNetwork) -> None:
        super().__init__()
        self.members, self.posterior = members, posterior


@dataclass(frozen=True)
class JointTerms:
    """The three terms of J, means over simulations, nats.

    Attributes:
        likelihood: of log p_e(s|theta), over members too.
        posterior: of log q(theta|x).
        elbo: below log evidence under p_e.
    """

    likelihood: Tensor
    posterior: Tensor
    elbo: Tensor

    def bound(self, settings: LikelihoodSettings) -> Tensor:
        """J, with a and b of the settings."""
        joint = settings.joint
        return self.likelihood + joint.posterior_weight * self.posterior + joint.elbo_weight * self.elbo


@dataclass(frozen=True)
class JointData:
    """N simulations as both sides read them.

    Attributes:
        rows: theta, and what q reads of x.
        coordinates, s, context: what a member reads; s (N, S) float64.
    """

    rows: TrainingSet
    coordinates: Tensor
    s: Tensor
    context: Tensor

    def at(self, index: Tensor | slice) -> JointData:
        """Some of the simulations."""
        return JointData(self.rows.rows(index), self.coordinates[index], self.s[index], self.context[index])


def joint_terms(
    networks: JointNetworks, network: LikelihoodNetwork, data: JointData, *, draws: int, stream: torch.Generator
) -> JointTerms:
    """The terms of J on some simulations; `draws` of q for each. Whole numbers get the same noise in the first and the third."""
    rows = data.rows
    v, log_det = network.summary.standardized(data.s + network.summary.noise(len(data.s), stream))
    v = v.float()

    def members(coordinates: Tensor) -> Tensor:
        """(1/E) sum_e log p_e at theta (..., N), its coordinates (..., N, T) -> (..., N), float64."""
        leading = coordinates.shape[:-1]
        flat = coordinates.reshape(-1, coordinates.shape[-1])
        values, conditions = (t.expand(*leading, -1).reshape(len(flat), -1) for t in (v, data.context))
        each = [member.log_prob(values, flat, conditions) for member in networks.members]  # pyright: ignore[reportCallIssue]
        return torch.stack(each).mean(0).double().view(leading) + log_det

    condition = networks.posterior.condition(rows.inputs)
    theta, log_q = networks.posterior.draw(condition, draws, generator=stream, path_gradient=True, dtype=torch.float64)
    prior = to_device(prior_of(network.simulator), rows.theta.device)
    bound = elbo(theta, log_q, log_likelihood=lambda t: members(network.coordinates(t)), log_prior=prior.log_prob)
    return JointTerms(
        likelihood=members(data.coordinates).mean(),
        posterior=-forward_kl(networks.posterior.log_q(rows.theta, condition)),
        elbo=bound.value,
    )


def fit_joint(
    networks: JointNetworks,
    network: LikelihoodNetwork,
    training: JointData,
    watched: JointData,
    *,
    settings: LikelihoodSettings,
    seed: int,
    advance: Callable[..., None] | None = None,
) -> Fitted:
    """Maximise J over both sides; delivered is the average of the weights where J of held-out simulations was best."""
    few = watched.at(slice(WATCHED))

    def loss(n: Any, rows: Tensor, stream: torch.Generator) -> Tensor:
        return -joint_terms(n, network, training.at(rows), draws=settings.joint.draws, stream=stream).bound(settings)

    @torch.no_grad()
    def held_out(n: Any) -> float:
        stream = generator(seed, "joint-watched", device=few.s.device)
        return float(joint_terms(n, network, few, draws=settings.joint.draws, stream=stream).bound(settings))

    return fit(
        networks,
        loss,
        held_out,
        rows=len(training.s),
        settings=settings,
        seed=seed,
        purpose="joint",
        device=training.s.device,
        advance=advance,
    )
