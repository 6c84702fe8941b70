r"""Wake phase of reweighted wake-sleep: forward KL without simulations, by self-normalised importance weights.

minimise  - < log q(theta|x) >_{p(theta|x)},   with p(theta|x) estimated from weighted draws of q itself
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.objectives.joint import Mean, of_one_process


def wake(log_q: Tensor, log_weight: Tensor, *, mean: Mean = of_one_process) -> Tensor:
    r"""$-\frac{1}{N} \sum_{kn} \tilde w_{kn} \log q(\theta_{kn}|x_n)$, $\tilde w_{kn} = w_{kn} / \sum_j w_{jn}$, nats.

    Mode-covering, and the likelihood is not differentiated (Bornschein and Bengio 2015,
    https://arxiv.org/abs/1406.2751; Le et al. 2019, https://arxiv.org/abs/1805.10469). The bias of
    self-normalisation falls as 1/K. An observation without a usable draw is left out.

    Args:
        log_q: (K, N), differentiable in the parameters of q, at draws that are held fixed.
        log_weight: (K, N), log_joint minus the log density of what theta was drawn from.
        mean: over the processes that share the batch.
    """
    log_weight = log_weight.detach()
    usable = log_weight.isfinite() & log_q.detach().isfinite()
    observed = usable.any(0)
    log_weight = torch.where(observed, torch.where(usable, log_weight, -torch.inf), 0.0)
    share = torch.softmax(log_weight, 0) * usable * observed
    return -(share * torch.where(usable, log_q, 0.0)).sum() / mean(observed.sum()).clamp_min(1)
