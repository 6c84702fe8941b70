r"""Transforms for components on the circle [-pi, pi), alone or beside real ones: q is continuous across the seam.

    u -> wrap -> real components: tails, affine map;   angles: ConditionalRotation -> CircularCoupling ... -> noise

Rezende et al. 2020, Normalizing Flows on Tori and Spheres, https://arxiv.org/abs/2002.02428: circular splines,
conditioners that see (cos, sin) of an angle, and a uniform base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from nflows.transforms.base import CompositeTransform, Transform
from torch import Tensor, nn

from pipeline.estimators.affine import ConditionalAffine
from pipeline.estimators.base import Base
from pipeline.estimators.circular_coupling import CircularCoupling, wrap
from pipeline.estimators.tails import ConditionalTails
from pipeline.settings import FlowSettings

MAX_LOG_K = 8.0  # widths down to a three thousandth of a radian
# A rotation that is to go round the circle has to cross (0, 0), and a concentrated start pulls it there: a von Mises
# posterior of width 0.22 is learned to 0.004 nats in 300 steps from these, to 0.1-0.8 from (1, 0) and k = 0.14.
UNTRAINED_COSINE = 0.1


@dataclass(frozen=True)
class CircularBase:
    """Uniform on the circle for angles, independent of the base of the real components, which alone is widened.

    Attributes:
        periodic: for each component, whether it is an angle.
        real: base of the others.
    """

    periodic: tuple[bool, ...]
    real: Base

    def _columns(self) -> tuple[list[int], list[int]]:
        return [d for d, p in enumerate(self.periodic) if not p], [d for d, p in enumerate(self.periodic) if p]

    def noise(self, count: int, *, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
        real, angles = self._columns()
        noise = torch.empty(count, len(self.periodic), device=device, dtype=dtype)
        noise[:, real] = self.real.noise(count, generator=generator, device=device, dtype=dtype)
        turns = torch.rand(count, len(angles), generator=generator, device=device, dtype=dtype)
        noise[:, angles] = math.pi * (2 * turns - 1)
        return noise

    def widen(self, noise: Tensor, scale: float) -> Tensor:
        widened = noise.clone()
        real, _ = self._columns()
        widened[..., real] = self.real.widen(noise[..., real], scale)
        return widened

    def log_prob(self, noise: Tensor, scale: float) -> Tensor:
        real, angles = self._columns()
        return self.real.log_prob(noise[..., real], scale) - len(angles) * math.log(2 * math.pi)


class Columns(Transform):
    """A transform of some components; the others pass. Angles are wrapped on both sides.

    Args:
        transform: of the chosen components.
        columns: their indices.
        angles: whether they are angles.
    """

    def __init__(self, transform: Transform, columns: Sequence[int], *, angles: bool) -> None:
        super().__init__()
        self.transform, self.columns, self.angles = transform, list(columns), angles

    def _apply_to(self, transform: object, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        part = inputs[:, self.columns]
        part, log_det = transform(wrap(part) if self.angles else part, context)  # pyright: ignore[reportCallIssue]
        outputs = inputs.clone()
        outputs[:, self.columns] = wrap(part) if self.angles else part
        return outputs, log_det

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._apply_to(self.transform, inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._apply_to(self.transform.inverse, inputs, context)


class ConditionalRotation(Transform):
    r"""Location and concentration of each angle, given the context: $y = \pi\, \frac{\mathrm{erf}(k\delta/\sqrt{2})}{\mathrm{erf}(k\pi/\sqrt{2})}$.

    $\delta = u - r$ on the circle. The rotation $r = \mathrm{atan2}(b, 0.1 + a)$ may go round the circle as the
    context does, which a real number cannot. k makes of the uniform distribution a normal one of width 1/k
    about r, cut off half a turn away, so that the splines see a target of order one however narrow the posterior
    is. $\log dy/du = \log k + \frac{1}{2} \log 2\pi - \frac{1}{2} k^2 \delta^2 - \log \mathrm{erf}(k\pi/\sqrt{2})$.

    Args:
        dimension: number of angles.
        context: size of c.
        hidden: width of the network for a, b and log k.
    """

    def __init__(self, dimension: int, context: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, 3 * dimension)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(context, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)
        # where the context holds sines and cosines, the rotation is linear in it
        self.linear = nn.Linear(context, 3 * dimension, bias=False)
        nn.init.zeros_(self.linear.weight)

    def _coefficients(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotation, log k and erf(k pi / sqrt 2), (N, P) each."""
        a, b, change = (self.network(context) + self.linear(context)).chunk(3, dim=-1)
        log_k = MAX_LOG_K * torch.tanh(change / MAX_LOG_K)
        return torch.atan2(b, UNTRAINED_COSINE + a), log_k, torch.erf(log_k.exp() * (math.pi / math.sqrt(2)))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u -> y, and log |dy/du|."""
        rotation, log_k, whole = self._coefficients(cast(Tensor, context))
        z = log_k.exp() * wrap(inputs - rotation)
        y = math.pi * torch.erf(z / math.sqrt(2)) / whole
        return y, _log_slope(z, log_k, whole)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """y -> u, and log |du/dy|."""
        rotation, log_k, whole = self._coefficients(cast(Tensor, context))
        least = 1 - torch.finfo(inputs.dtype).eps  # at 1 the normal distribution has no end
        z = math.sqrt(2) * torch.erfinv((inputs * whole / math.pi).clamp(-least, least))
        return wrap(z * torch.exp(-log_k) + rotation), -_log_slope(z, log_k, whole)


def _log_slope(z: Tensor, log_k: Tensor, whole: Tensor) -> Tensor:
    """log |dy/du| at z = k delta, summed over angles."""
    return (log_k + 0.5 * math.log(2 * math.pi) - 0.5 * z.square() - whole.log()).sum(-1)


def circular_layers(periodic: Sequence[bool], context: int, settings: FlowSettings) -> list[Transform]:
    """All layers from u to noise, of which at least one component is an angle."""
    dimension = len(periodic)
    angles = [d for d, p in enumerate(periodic) if p]
    real = [d for d, p in enumerate(periodic) if not p]
    layers: list[Transform] = [Columns(ConditionalRotation(len(angles), context, settings.hidden), angles, angles=True)]
    if real:
        outer = [
            ConditionalTails(len(real), context, settings.hidden),
            ConditionalAffine(len(real), context, settings.hidden),
        ]
        layers.append(Columns(CompositeTransform(outer), real, angles=False))
    for i in range(settings.transforms):
        # pairs of layers: the even components then the odd ones, the first half then the second
        halves = [2 * d // dimension if i // 2 % 2 else d % 2 for d in range(dimension)]
        transformed = [dimension == 1 or half == i % 2 for half in halves]
        layers.append(CircularCoupling(periodic, transformed, context, settings))
    return layers
