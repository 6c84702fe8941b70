r"""Evidence lower bound.

ELBO(x) = < log p(x|theta) + log p(theta) - log q(theta|x) >_q
        = < log p(x|theta) >_q - KL( q(theta|x) || p(theta) )
        = reconstruction - regularization
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bound:
    """A bound and its two terms, averaged over draws and observations; `refused` counts unusable draws."""

    elbo: Tensor
    reconstruction: Tensor
    regularization: Tensor
    refused: Tensor


LogDensity = Callable[[Tensor], Tensor]


def elbo(theta: Tensor, log_q: Tensor, *, log_likelihood: LogDensity, log_prior: LogDensity) -> Bound:
    r"""Monte Carlo estimate of the ELBO, averaged over N observations, nats.

    $\frac{1}{KN} \sum_{kn} [\log p(x_n|\theta_{kn}) + \log p(\theta_{kn}) - \log q(\theta_{kn}|x_n)]$

    The gradient estimator is decided by how log_q was computed: in full (`reparameterized`), or with the
    parameters of q held fixed (`sticking_the_landing`, Roeder, Wu and Duvenaud 2017,
    https://arxiv.org/abs/1703.09194, whose variance vanishes when q is the posterior).

    Draws whose log_likelihood or log_prior is not finite are left out of the mean, with zero gradient, and
    counted.

    Args:
        theta: (K, N, D), reparameterised draws of q.
        log_q: (K, N).
        log_likelihood, log_prior: theta -> (K, N).
    """
    theta = theta.view_as(theta)
    likelihood, prior = log_likelihood(theta), log_prior(theta)
    usable = likelihood.isfinite() & prior.isfinite() & log_q.isfinite()
    if theta.requires_grad:
        # zero times the infinite slope of a density that is no number would be NaN for every parameter
        theta.register_hook(lambda gradient: torch.where(usable[..., None], gradient, 0.0))
    count = usable.sum().clamp_min(1)
    reconstruction = torch.where(usable, likelihood, 0.0).sum() / count
    regularization = torch.where(usable, log_q - prior, 0.0).sum() / count
    return Bound(reconstruction - regularization, reconstruction, regularization, (~usable).sum())
