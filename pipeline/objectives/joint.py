r"""log p(x|theta) + log p(theta) at draws of q, safe to differentiate whatever the densities return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]

FAR = 1_000.0
"""Nats below the batch's median log weight from which a draw's pull on theta is damped."""


@dataclass(frozen=True)
class Joint:
    """Densities at K draws for each of N observations, (K, N) each.

    Attributes:
        log_likelihood, log_prior: 0 where the draw is unusable.
        log_weight: log_likelihood + log_prior - log_q; -inf where unusable.
        usable: whether all three are finite numbers.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_weight: Tensor
    usable: Tensor

    @property
    def refused(self) -> Tensor:
        """How many draws are unusable."""
        return (~self.usable).sum()


def evaluate(theta: Tensor, log_q: Tensor, *, log_likelihood: LogDensity, log_prior: LogDensity) -> Joint:
    r"""Evaluate the joint density at reparameterised draws theta (K, N, D) with log_q (K, N).

    Two kinds of draws would spoil the gradient of all others. A draw outside the support (log density -inf or
    NaN) gets none: zero times an infinite slope is NaN. A draw at log weight w, further than FAR below the
    batch's median m, passes its gradient on scaled by FAR / (m - w): the gradient of a log weight whose lower
    tail is logarithmic, $m - F (1 + \log\frac{m - w}{F})$. Values are never changed, only slopes.
    """
    theta = theta.view_as(theta)
    likelihood, prior = log_likelihood(theta), log_prior(theta)
    usable = likelihood.isfinite() & prior.isfinite() & log_q.isfinite()
    likelihood, prior = torch.where(usable, likelihood, 0.0), torch.where(usable, prior, 0.0)
    log_weight = torch.where(usable, likelihood + prior - log_q, -torch.inf)
    if theta.requires_grad:
        depth = (log_weight.detach().median() - log_weight.detach()).clamp_min(FAR)
        share = torch.where(usable & depth.isfinite(), FAR / depth, 0.0)[..., None]
        theta.register_hook(lambda gradient: torch.where(share > 0, share * gradient, 0.0))
    return Joint(likelihood, prior, log_weight, usable)
