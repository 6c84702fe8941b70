r"""log p(x|theta) + log p(theta) at draws of q, safe to differentiate whatever the densities return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]
Mean = Callable[[Tensor], Tensor]
"""The mean of a number over the processes that share a batch. A loss is a sum over own rows divided by the mean of what
normalises it: the mean of the losses, and of their gradients, is then that of the whole batch."""


def of_one_process(value: Tensor) -> Tensor:
    """The mean over one process."""
    return value


FAR = 1_000.0
"""Nats below the median log weight of the same observation's draws from which a draw's pull is damped."""


@dataclass(frozen=True)
class Joint:
    """Densities at K draws for each of N observations, (K, N) each.

    Attributes:
        log_likelihood, log_prior, log_q: 0 where the draw is unusable.
        log_weight: log_likelihood + log_prior - log_q; -inf where unusable.
        usable: whether all three are finite numbers.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor
    log_weight: Tensor
    usable: Tensor

    @property
    def refused(self) -> Tensor:
        """How many draws are unusable."""
        return (~self.usable).sum()


def evaluate(theta: Tensor, log_q: Tensor, *, log_likelihood: LogDensity, log_prior: LogDensity) -> Joint:
    r"""Evaluate the joint density at reparameterised draws theta (K, N, D) with log_q (K, N).

    Two kinds of draws would spoil the gradient of all others. A draw outside the support (log density -inf or
    NaN) gets none: zero times an infinite slope is NaN. A draw at log weight w, further than FAR below the median m
    of the K draws of its own observation, has its gradient scaled by FAR / (m - w), that of log_q included: the
    gradient of a log weight whose lower tail is logarithmic, $m - F (1 + \log\frac{m - w}{F})$. Values are never
    changed, only slopes, and a constant in the density of an observation changes neither. (With K = 1 there is nothing
    to compare with, and clipping the norm of the whole gradient has to do.)
    """
    theta = theta.view_as(theta)
    likelihood, prior = log_likelihood(theta), log_prior(theta)
    usable = likelihood.isfinite() & prior.isfinite() & log_q.isfinite()
    likelihood, prior, log_q = (torch.where(usable, v, 0.0) for v in (likelihood, prior, log_q))
    if theta.requires_grad:
        theta.register_hook(lambda gradient: torch.where(usable[..., None], gradient, 0.0))
    log_weight = torch.where(usable, likelihood + prior - log_q, -torch.inf).detach()
    share = FAR / (log_weight.median(0).values - log_weight).clamp_min(FAR)
    share = torch.where(usable & share.isfinite(), share, 0.0)
    likelihood, prior, log_q = (v.detach() + share * (v - v.detach()) for v in (likelihood, prior, log_q))
    return Joint(likelihood, prior, log_q, torch.where(usable, likelihood + prior - log_q, -torch.inf), usable)
