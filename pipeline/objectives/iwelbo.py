r"""Importance-weighted bound.

ELBO(x) <= IWELBO_K(x) = < log (1/K) sum_k w_k > <= log p(x),     w_k = p(x, theta_k) / q(theta_k|x)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.objectives.elbo import Bound
from pipeline.objectives.joint import LogDensity, Mean, evaluate, of_one_process


def iwelbo(
    theta: Tensor,
    log_q: Tensor,
    *,
    log_likelihood: LogDensity,
    log_prior: LogDensity,
    power: float = 1.0,
    mean: Mean = of_one_process,
) -> Bound:
    r"""Monte Carlo estimate of the bound with K draws, averaged over N observations, nats; doubly reparameterised.

    $$ \nabla = \frac{1}{N} \sum_{kn} \tilde w_{kn}^2 \, \nabla_\theta \log w_{kn} \, \partial_\phi \theta_{kn},
       \qquad \tilde w_{kn} = w_{kn} / \textstyle\sum_j w_{jn} $$

    where log_q must have been computed with the parameters of q held fixed (path gradient): its variance falls
    with K, that of the plain gradient rises (Tucker, Lawson, Gu and Maddison 2018,
    https://arxiv.org/abs/1810.04152; Burda, Grosse and Salakhutdinov 2015, https://arxiv.org/abs/1509.00519).
    With K = 1 it is the ELBO with sticking-the-landing gradients.

    An unusable draw has weight zero. An observation without a usable draw is left out.

    Args:
        theta: (K, N, D), reparameterised draws of q.
        log_q: (K, N), dependent on the parameters of q through theta alone.
        log_likelihood, log_prior: theta -> (K, N).
        power: exponent of the likelihood; 1 but while tempering.
        mean: over the processes that share the batch.
    """
    joint = evaluate(theta, log_q, log_likelihood=lambda t: power * log_likelihood(t), log_prior=log_prior)
    observed = joint.usable.any(0)
    finite = torch.where(joint.usable, joint.log_weight, 0.0)  # 0 * inf would be NaN
    log_weight = torch.where(joint.usable, joint.log_weight.detach(), -torch.inf)
    log_weight = torch.where(observed, log_weight, 0.0)
    share = torch.softmax(log_weight, 0) * joint.usable
    rows = mean(observed.sum()).clamp_min(1)
    value = torch.where(observed, torch.logsumexp(log_weight, 0) - math.log(len(theta)), 0.0).sum() / rows
    slope = (share.square() * finite).sum() / rows
    count = mean(joint.usable.sum()).clamp_min(1)
    reconstruction = joint.log_likelihood.detach().sum() / count
    regularization = (joint.log_q.detach() - joint.log_prior.detach()).sum() / count
    # the value of the bound, with the gradient of `slope`
    return Bound(value + slope - slope.detach(), reconstruction, regularization, joint.refused)
