r"""theta to the whole of R^D and back: v = T^-1(theta), T = `torch.distributions.biject_to(prior.support)`.

q has exactly the support of the prior: no leakage, no rejection, no clipping.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints
from torch.distributions.transforms import Transform

from simulators.priors import IndependentPrior, to_device


class SupportTransform:
    """Bijection between theta in the support of the prior and v in R^D.

    Args:
        prior: joint prior with event shape (D,).
    """

    def __init__(self, prior: Distribution) -> None:
        self.prior = prior
        self._pieces: dict[torch.device, list[tuple[Tensor, Transform]]] = {}

    def pieces(self, device: torch.device) -> list[tuple[Tensor, Transform]]:
        """(indices, bijection) with every tensor on `device`, made once for each device."""
        if device not in self._pieces:
            moved = _bijections(to_device(self.prior, device))
            self._pieces[device] = [(index.to(device), transform) for index, transform in moved]
        return self._pieces[device]

    def to_unconstrained(self, theta: Tensor) -> Tensor:
        """v = T^-1(theta), (..., D) -> (..., D)."""
        pieces = self.pieces(theta.device)
        if not pieces:
            return theta
        v = theta.clone()
        for index, transform in pieces:
            part = torch.as_tensor(_inverse(transform)(theta[..., index]))
            v[..., index] = part.to(v.dtype)  # a joint prior's bounds may be float64
        return v

    def to_theta(self, v: Tensor) -> tuple[Tensor, Tensor]:
        r"""theta = T(v) and $\log |d\theta / dv|$, (..., D) -> (..., D), (...)."""
        log_det = torch.zeros(v.shape[:-1], dtype=v.dtype, device=v.device)
        pieces = self.pieces(v.device)
        if not pieces:
            return v, log_det
        theta = v.clone()
        for index, transform in pieces:
            part = torch.as_tensor(transform(v[..., index]))
            theta[..., index] = part.to(theta.dtype)
            change = transform.log_abs_det_jacobian(v[..., index], part)
            log_det = log_det + (change.sum(-1) if change.dim() == v.dim() else change).to(log_det.dtype)
        return theta, log_det


def _inverse(transform: Transform) -> Transform:
    inverse = transform.inv
    assert inverse is not None  # a bijection has one; torch's annotation allows None
    return inverse


def _bijections(prior: Distribution) -> list[tuple[Tensor, Transform]]:
    """(indices, bijection) for the components that are not on the whole real line."""
    if not isinstance(prior, IndependentPrior):
        return [] if _is_real(prior.support) else [(torch.arange(prior.event_shape[0]), biject_to(prior.support))]
    pieces: list[tuple[Tensor, Transform]] = []
    intervals: list[tuple[int, float, float]] = []
    for d, marginal in enumerate(prior.marginals):
        support = marginal.support
        if _is_real(support):
            continue
        low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
        if low is not None and high is not None:
            intervals.append((d, float(low), float(high)))
        else:
            pieces.append((torch.tensor([d]), biject_to(support)))
    if intervals:  # one vectorised bijection for all of them
        index, low, high = zip(*intervals, strict=True)
        device = prior.marginals[index[0]].mean.device
        # float64 from the start: in float32 an epoch of 2,450,000 d has steps of a quarter of a day
        bounds = (torch.tensor(b, dtype=torch.float64, device=device) for b in (low, high))
        pieces.append((torch.tensor(index), _Interval(*bounds)))
    return pieces


def _is_real(support: constraints.Constraint | None) -> bool:
    return getattr(support, "base_constraint", support) is constraints.real


class _Interval(Transform):
    r"""theta = low + (high - low) sigmoid(v), with bounds that follow dtype and device of the argument.

    Strictly inside: in float32 the sigmoid is 1 from v = 17 on, and on [1000, 1001] theta rounds to 1001 from
    v = 10 on, where a uniform density is zero. The gradient is that of the sigmoid all the same.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.low, self.width = low, high - low

    def _call(self, x: Tensor) -> Tensor:
        low, high = self.low.to(x), (self.low + self.width).to(x)
        theta = low + self.width.to(x) * torch.sigmoid(x)
        least = torch.maximum(torch.nextafter(low, high), low + torch.finfo(x.dtype).tiny)
        inside = theta.detach().clamp(least, torch.nextafter(high, low))
        return theta + (inside - theta.detach())

    def _inverse(self, y: Tensor) -> Tensor:
        edge = torch.finfo(y.dtype).eps
        fraction = ((y - self.low.to(y)) / self.width.to(y)).clamp(edge, 1 - edge)
        return torch.log(fraction) - torch.log1p(-fraction)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.width.to(x).log() - torch.nn.functional.softplus(-x) - torch.nn.functional.softplus(x)
