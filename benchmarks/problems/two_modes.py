r"""A posterior of two modes whose shares are known exactly.

    x ~ (1 - f) N(theta, s^2 I) + f N(-theta, w^2 I),     theta ~ U(-3, 3) in each of D components

The posterior of x has a mode at x with share 1 - f and one at -x with share f, and log Z = -D log 6, where both lie many
widths from the edge. With w below s the second mode is a spike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from simulators.priors import distribution_from_spec
from simulators.protocol import Data, Observable, Parameter

EDGE = 3.0


class TwoModes:
    """See the module.

    Args:
        dimension: D.
        share: f.
        width: s.
        second_width: w; default: s.
        gradient: whether the likelihood may be differentiated.
    """

    name = "two_modes"

    def __init__(
        self,
        *,
        dimension: int = 4,
        share: float = 0.2,
        width: float = 0.1,
        second_width: float | None = None,
        gradient: bool = True,
    ) -> None:
        self.dimension, self.share, self.width, self.gradient = dimension, share, width, gradient
        self.second_width = second_width or width
        prior = distribution_from_spec({"uniform": [-EDGE, EDGE]})
        self.parameters = tuple(Parameter(f"theta_{d + 1}", prior) for d in range(dimension))
        self.observables = (Observable("x", (dimension,)),)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """(N, D) -> (N, D)."""
        uniform = torch.rand((len(theta), 1), generator=generator, dtype=theta.dtype)
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        flipped = uniform < self.share
        return {"x": torch.where(flipped, -theta + self.second_width * noise, theta + self.width * noise)}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        """(..., N, D) -> (..., N)."""
        if not self.gradient:
            theta = theta.detach()
        terms = [self._gaussian(x["x"] - theta, self.width) + math.log1p(-self.share)]
        if self.share:
            terms.append(self._gaussian(x["x"] + theta, self.second_width) + math.log(self.share))
        return torch.logsumexp(torch.stack(terms), 0)

    def _gaussian(self, residual: Tensor, width: float) -> Tensor:
        square = residual.square().sum(-1) / width**2
        return -0.5 * square - self.dimension * math.log(width * math.sqrt(2 * math.pi))

    def log_evidence(self, x: Mapping[str, Tensor]) -> Tensor:
        """-D log 6, (N,)."""
        return torch.full((len(x["x"]),), -self.dimension * math.log(2 * EDGE), dtype=torch.float64)


class TwoPhases:
    r"""x = r (cos 2a, sin 2a) + 0.1 noise: the phase a is known up to half a turn.

    a ~ U(0, 2 pi), periodic; r ~ U(0.5, 2). Both modes hold half of the posterior.
    """

    name = "two_phases"
    noise = 0.1

    def __init__(self) -> None:
        self.parameters = (
            Parameter("phase", distribution_from_spec({"uniform": [0, 2 * math.pi]}), "rad", periodic=True),
            Parameter("r", distribution_from_spec({"uniform": [0.5, 2.0]})),
        )
        self.observables = (Observable("x", (2,)),)

    def _mean(self, theta: Tensor) -> Tensor:
        phase, r = theta.unbind(-1)
        return r[..., None] * torch.stack([(2 * phase).cos(), (2 * phase).sin()], -1)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """(N, 2) -> (N, 2)."""
        mean = self._mean(theta)
        return {"x": mean + self.noise * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        """(..., N, 2) -> (..., N)."""
        square = (x["x"] - self._mean(theta)).square().sum(-1) / self.noise**2
        return -0.5 * square - 2 * math.log(self.noise * math.sqrt(2 * math.pi))
