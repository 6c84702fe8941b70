r"""The joint density of one observation on the whole of R^D, in units of the prior.

    w = (v - c) / s,   theta = T(v),      log p(x, w) = log p(x|theta) + log p(theta) + log |d theta / dw|

T maps onto the support of the prior (`estimators.support`). c and s are the median and half the range from 16 to 84 % of
the prior's v, so that one step means as much in every parameter. A periodic parameter is an angle, with c = 0 and s = 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.support import SupportTransform
from simulators.priors import sample
from simulators.protocol import Data, Simulator, log_likelihood

BLOCK_NUMBERS = 2_000_000
"""Numbers of data times draws that one call of the likelihood sees: bounds its memory."""
PRIOR_DRAWS = 2_000
"""For c and s: the median is then known to 3 % of the width."""


class Landscape:
    """log p(x, w) of ONE observation, with a count of likelihood calls.

    Args:
        simulator: with a likelihood.
        prior: of theta, on the device of x.
        x: one row.
        generator: for the prior draws that give c and s.

    Attributes:
        dimension: D, numbers in w: those in theta, or one less on the simplex.
        angles: indices of the periodic parameters.
        calls: values of theta at which the likelihood was evaluated so far.
        starts: PRIOR_DRAWS draws of the prior, (PRIOR_DRAWS, D).
    """

    def __init__(self, simulator: Simulator, prior: Distribution, x: Data, *, generator: torch.Generator) -> None:
        self.simulator, self.prior, self.x = simulator, prior, x
        periodic = [p.periodic for p in simulator.parameters]
        self.angles = [d for d, p in enumerate(periodic) if p]
        self.support = SupportTransform(prior, periodic)
        self.dimension = self.support.dimension
        self.calls = 0
        v = self.support.to_unconstrained(sample(prior, PRIOR_DRAWS, generator).double())
        low, middle, high = v.quantile(torch.tensor([0.16, 0.5, 0.84], dtype=v.dtype, device=v.device), dim=0)
        self.center, self.scale = middle, (high - low) / 2
        self.center[self.angles], self.scale[self.angles] = 0.0, 1.0
        self.starts = (v - self.center) / self.scale
        self.block = max(1, BLOCK_NUMBERS // max(1, sum(values[0].numel() for values in x.values())))

    def draw_prior(self, count: int, generator: torch.Generator) -> Tensor:
        """w of draws of the prior, (count, D)."""
        return self.to_real(sample(self.prior, count, generator).double())

    def to_real(self, theta: Tensor) -> Tensor:
        """w of theta, (..., D)."""
        return (self.support.to_unconstrained(theta) - self.center) / self.scale

    def to_theta(self, w: Tensor) -> tuple[Tensor, Tensor]:
        r"""theta and $\log |d\theta / dw|$, (..., D) -> (..., D), (...)."""
        theta, log_det = self.support.to_theta(self.center + self.scale * w)
        return theta, log_det + self.scale.log().sum()

    def distance(self, w: Tensor, other: Tensor) -> Tensor:
        """w - other, the short way round the circle for an angle, (..., D)."""
        difference = w - other
        if self.angles:
            turn = 2 * torch.pi
            difference = difference.clone()
            part = difference[..., self.angles]
            difference[..., self.angles] = part - turn * torch.round(part / turn)
        return difference

    @torch.no_grad()
    def parts(self, w: Tensor) -> tuple[Tensor, Tensor]:
        r"""$\log p(x|\theta)$ and $\log p(\theta) + \log |d\theta / dw|$ of w (K, D), (K,) each; -inf for NaN."""
        pieces = [self._parts(piece) for piece in w.split(self.block)]
        return torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces])

    def log_density(self, w: Tensor) -> Tensor:
        """log p(x, w), (K, D) -> (K,); -inf where it is not a number."""
        likelihood, prior = self.parts(w)
        return likelihood + prior

    def _parts(self, w: Tensor) -> tuple[Tensor, Tensor]:
        theta, log_det = self.to_theta(w)
        self.calls += len(w)
        likelihood = log_likelihood(self.simulator, theta[:, None], self.x)[:, 0].double()
        prior = self.prior.log_prob(theta).double() + log_det
        return _number(likelihood), _number(prior)

    def gradient(self, w: Tensor, power: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""log p(x, w) (K,), and the gradient of $b \log p(x|\theta) + \log p(w)$, (K, D); zero where not finite.

        Args:
            w: (K, D).
            power: b of each, (K,); default: 1.

        Raises:
            RuntimeError: the likelihood is not differentiable.
        """
        values, gradients = [], []
        powers = torch.ones_like(w[:, 0]) if power is None else power
        for piece, b in zip(w.split(self.block), powers.split(self.block), strict=True):
            at = piece.detach().requires_grad_()
            with torch.enable_grad():
                likelihood, prior = self._parts(at)
                if not likelihood.requires_grad:
                    raise RuntimeError("the likelihood is not differentiable")
                tempered = b * likelihood + prior
                total = torch.where(tempered.isfinite(), tempered, 0.0).sum()
            gradients.append(torch.autograd.grad(total, at)[0])
            values.append((likelihood + prior).detach())
        gradient = torch.cat(gradients)
        return torch.cat(values), torch.where(gradient.isfinite().all(1, keepdim=True), gradient, 0.0)

    def is_differentiable(self, w: Tensor) -> bool:
        """Whether the likelihood has a gradient at any of w (K, D)."""
        try:
            _, gradient = self.gradient(w)
        except (RuntimeError, NotImplementedError):  # what autograd raises, NumPy's conversion of w included
            return False
        return bool((gradient != 0).any())


def _number(values: Tensor) -> Tensor:
    """-inf in place of NaN and of +inf, which no density is."""
    return torch.where(values.isnan() | (values == torch.inf), -torch.inf, values)


Progress = Callable[..., None]
