r"""theta and its prior on the whole of R^D, u = T^-1(theta) with T = `biject_to(prior.support)`, for pilots and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from simulators.protocol import Parameter


@dataclass(frozen=True)
class UnconstrainedPrior:
    """A product of univariate priors.

    Attributes:
        marginals: D distributions.
    """

    marginals: tuple[Distribution, ...]

    @classmethod
    def of(cls, parameters: Sequence[Parameter]) -> UnconstrainedPrior:
        """That of parameters with a prior of their own each."""
        return cls(tuple(p.prior for p in parameters if p.prior is not None))

    def theta(self, u: Tensor) -> Tensor:
        """T(u), (..., D) -> (..., D)."""
        parts = zip(self.marginals, u.unbind(-1), strict=True)
        return torch.stack([torch.as_tensor(biject_to(m.support)(v)) for m, v in parts], dim=-1)

    def log_prob(self, u: Tensor) -> Tensor:
        r"""Log density of u, $\sum_d \log p(\theta_d) + \log |d\theta_d / du_d|$, (..., D) -> (...)."""
        total = torch.zeros_like(u[..., 0])
        for marginal, v in zip(self.marginals, u.unbind(-1), strict=True):
            transform = biject_to(marginal.support)
            theta = torch.as_tensor(transform(v))
            total = total + marginal.log_prob(theta) + transform.log_abs_det_jacobian(v, theta)
        return total

    def center(self) -> tuple[Tensor, Tensor]:
        """Median of u and half its range from 16 to 84 %, (D,) each, float64."""
        q = torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)
        rows = []
        for marginal in self.marginals:
            inverse = biject_to(marginal.support).inv
            assert inverse is not None  # a bijection has one; torch's annotation allows None
            rows.append(torch.as_tensor(inverse(marginal.icdf(q))))
        quantiles = torch.stack(rows)
        return quantiles[:, 1], (quantiles[:, 2] - quantiles[:, 0]) / 2
