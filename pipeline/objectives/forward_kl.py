r"""Forward KL over simulated pairs: neural posterior estimation.

minimise  - < log q(theta|x) >_{p(theta, x)}    =   < KL( p(theta|x) || q(theta|x) ) >_{p(x)} + const
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.objectives.joint import Mean, of_one_process


def forward_kl(log_q: Tensor, log_importance: Tensor | None = None, *, mean: Mean = of_one_process) -> Tensor:
    r"""$-\frac{\sum_n w_n \log q(\theta_n|x_n)}{\sum_n w_n}$, nats.

    Where theta was drawn from a proposal and not from the prior, w = prior / proposal makes the minimum the
    prior's posterior; with w = 1 it is the posterior that has the proposal as its prior.

    Args:
        log_q: (N,), log q of the true theta.
        log_importance: (N,), log prior - log proposal of theta.
        mean: over the processes that share the batch, in equal parts.
    """
    if log_importance is None:
        return -log_q.mean()
    total = torch.logsumexp(log_importance.detach(), 0)
    own = (total - mean(total)).exp()  # weight of this process's rows among those of all
    return -(torch.softmax(log_importance, 0) * log_q).sum() * own / mean(own)
