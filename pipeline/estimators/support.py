r"""theta to the whole of R^D and back: v = T^-1(theta), T = `torch.distributions.biject_to(prior.support)`.

q has exactly the support of the prior: no leakage, no rejection, no clipping. A periodic parameter lives on the
circle instead, v in [-pi, pi); a prior on the simplex of D numbers, which add up to one, on R^(D-1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints
from torch.distributions.transforms import Transform

from pipeline.estimators.bijections import Circle, Interval, StickBreaking
from simulators.priors import IndependentPrior, to_device


class SupportTransform:
    """Bijection between theta in the support of the prior and v in R^D.

    Args:
        prior: joint prior with event shape (D,).
        periodic: for each parameter, whether it is periodic; none by default.

    Attributes:
        dimension: numbers in v: D, or D - 1 on the simplex.
    """

    def __init__(self, prior: Distribution, periodic: Sequence[bool] = ()) -> None:
        self.prior, self.periodic = prior, tuple(periodic)
        self.dimension = unconstrained_dimension(prior)
        self._simplex = StickBreaking() if _is_simplex(prior.support) else None
        self._pieces: dict[torch.device, list[tuple[Tensor, Transform]]] = {}

    def pieces(self, device: torch.device) -> list[tuple[Tensor, Transform]]:
        """(indices, bijection) with every tensor on `device`, made once for each device."""
        if device not in self._pieces:
            moved = _bijections(to_device(self.prior, device), self.periodic)
            self._pieces[device] = [(index.to(device), transform) for index, transform in moved]
        return self._pieces[device]

    def to_unconstrained(self, theta: Tensor) -> Tensor:
        """v = T^-1(theta), (..., D) -> (..., D), or (..., D - 1) on the simplex."""
        if self._simplex is not None:
            return torch.as_tensor(_inverse(self._simplex)(theta))
        pieces = self.pieces(theta.device)
        if not pieces:
            return theta
        v = theta.clone()
        for index, transform in pieces:
            part = torch.as_tensor(_inverse(transform)(theta[..., index]))
            v[..., index] = part.to(v.dtype)  # a joint prior's bounds may be float64
        return v

    def to_theta(self, v: Tensor) -> tuple[Tensor, Tensor]:
        r"""theta = T(v) and $\log |d\theta / dv|$, (..., D) -> (..., D), (...).

        On the simplex the density of theta is that of its first D - 1 numbers, as torch's Dirichlet has it.
        """
        if self._simplex is not None:
            on_simplex = torch.as_tensor(self._simplex(v))
            return on_simplex, self._simplex.log_abs_det_jacobian(v, on_simplex)
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


def unconstrained_dimension(prior: Distribution) -> int:
    """Numbers in v: those in theta, one less on the simplex."""
    return prior.event_shape[0] - _is_simplex(prior.support)


def _bijections(prior: Distribution, periodic: Sequence[bool]) -> list[tuple[Tensor, Transform]]:
    """(indices, bijection) for the components that are not on the whole real line."""
    if any(periodic) and not isinstance(prior, IndependentPrior):
        raise ValueError("periodic parameters need a prior of their own each; the simulator declares a joint one")
    if not isinstance(prior, IndependentPrior):
        return [] if _is_real(prior.support) else [(torch.arange(prior.event_shape[0]), biject_to(prior.support))]
    pieces: list[tuple[Tensor, Transform]] = []
    intervals: list[tuple[int, float, float]] = []
    circles: list[tuple[int, float, float]] = []
    for d, marginal in enumerate(prior.marginals):
        support = marginal.support
        if _is_real(support):
            continue
        low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
        if low is not None and high is not None:
            (circles if d < len(periodic) and periodic[d] else intervals).append((d, float(low), float(high)))
        else:
            pieces.append((torch.tensor([d]), biject_to(support)))
    for bounded, bijection in ((intervals, Interval), (circles, Circle)):
        if not bounded:
            continue
        index, low, high = zip(*bounded, strict=True)  # one vectorised bijection for all of them
        device = prior.marginals[index[0]].mean.device
        # float64 from the start: in float32 an epoch of 2,450,000 d has steps of a quarter of a day
        bounds = (torch.tensor(b, dtype=torch.float64, device=device) for b in (low, high))
        pieces.append((torch.tensor(index), bijection(*bounds)))
    return pieces


def _is_real(support: constraints.Constraint | None) -> bool:
    return getattr(support, "base_constraint", support) is constraints.real


def _is_simplex(support: constraints.Constraint | None) -> bool:
    return support is constraints.simplex
