r"""Evidence lower bound.

ELBO(x) = < log p(x|theta) + log p(theta) - log q(theta|x) >_q
        = < log p(x|theta) >_q - KL( q(theta|x) || p(theta) )
        = reconstruction - regularization
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.objectives.joint import LogDensity, Mean, evaluate, of_one_process


@dataclass(frozen=True)
class Bound:
    """A bound and the ELBO's two terms, averaged over draws and observations; `refused` counts unusable draws."""

    value: Tensor
    reconstruction: Tensor
    regularization: Tensor
    refused: Tensor


def elbo(
    theta: Tensor,
    log_q: Tensor,
    *,
    log_likelihood: LogDensity,
    log_prior: LogDensity,
    power: float = 1.0,
    mean: Mean = of_one_process,
) -> Bound:
    r"""Monte Carlo estimate of the ELBO, averaged over N observations, nats.

    $\frac{1}{KN} \sum_{kn} [\beta \log p(x_n|\theta_{kn}) + \log p(\theta_{kn}) - \log q(\theta_{kn}|x_n)]$

    The gradient estimator is decided by how log_q was computed: in full (`reparameterized`), or with the
    parameters of q held fixed (`sticking_the_landing`, Roeder, Wu and Duvenaud 2017,
    https://arxiv.org/abs/1703.09194, whose variance vanishes when q is the posterior).

    Draws whose log_likelihood or log_prior is not finite are left out of the mean, with zero gradient, and
    counted.

    Args:
        theta: (K, N, D), reparameterised draws of q.
        log_q: (K, N).
        log_likelihood, log_prior: theta -> (K, N).
        power: beta, exponent of the likelihood; 1 but while tempering.
        mean: over the processes that share the batch.
    """
    joint = evaluate(theta, log_q, log_likelihood=lambda t: power * log_likelihood(t), log_prior=log_prior)
    count = mean(joint.usable.sum()).clamp_min(1)
    reconstruction = joint.log_likelihood.sum() / count
    regularization = (joint.log_q - joint.log_prior).sum() / count
    return Bound(reconstruction - regularization, reconstruction, regularization, joint.refused)
