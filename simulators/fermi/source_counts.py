r"""Doubly broken power law of source counts, as NPTFit has it (Mishra-Sharma, Rodd and Safdi 2017, AJ 153, 253).

    dN/dF = A (F / b2)^-n3                        F_min <= F < b2
            A (F / b2)^-n2                        b2 <= F < b1
            A (b1 / b2)^-n2 (F / b1)^-n1          b1 <= F <= F_max

F: photons that a source would send at the mean exposure. Segments are numbered from faint to bright. A power law between a and
b, of which $L = \log b/a$, has $\int_a^b (F/a)^{-n} F^j dF = a^{j+1} (e^{mL} - 1) / m$ with $m = j + 1 - n$.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 1e-6
"""Least |m|: below it (e^{mL} - 1) / m is L to one part in a million."""


def _away_from_zero(m: Tensor) -> Tensor:
    return torch.where(m.abs() < SMALLEST, SMALLEST, m)


@dataclass(frozen=True)
class SourceCounts:
    """Source-count distributions of N populations, A = 1.

    Attributes:
        start: lower ends of the segments (photons), (N, 3).
        width: L, natural logarithm of upper over lower end, (N, 3).
        index: n of each segment, (N, 3).
        height: dN/dF at the lower ends, (N, 3).
    """

    start: Tensor
    width: Tensor
    index: Tensor
    height: Tensor

    def segments(self, power: int) -> Tensor:
        r"""$\int F^j dN/dF\, dF$ of each segment, j = `power`, (N, 3)."""
        m = _away_from_zero(power + 1 - self.index)
        return self.height * self.start ** (power + 1) * torch.expm1(m * self.width) / m

    def moment(self, power: int) -> Tensor:
        r"""Mean of $F^j$ over sources, (N,)."""
        return self.segments(power).sum(-1) / self.segments(0).sum(-1)

    def sample(self, population: Tensor, generator: torch.Generator) -> Tensor:
        r"""Fluxes (photons) of sources of the populations with numbers `population` (K,), by the inverse of the distribution.

        Within a segment $F = a \exp[\log(1 + u (e^{mL} - 1)) / m]$ with m = 1 - n. float32.
        """
        share = self.segments(0).cumsum(-1)
        edge = (share / share[:, -1:]).float()
        m = _away_from_zero(1 - self.index).float()
        growth, start = torch.expm1(m * self.width.float()), self.start.float()
        u = torch.rand(2, len(population), generator=generator, device=generator.device)
        segment = (u[0] >= edge[:, 0][population]).long() + (u[0] >= edge[:, 1][population]).long()
        place = 3 * population + segment
        growth, m, start = (t.flatten()[place] for t in (growth, m, start))
        return start * torch.exp(torch.log1p(u[1] * growth) / m)


def source_counts(shape: Tensor, flux_range: Sequence[float]) -> SourceCounts:
    """The distributions with parameters `shape`: n1, n2, n3, b1, b2 in this order, (N, 5), in float64.

    Args:
        shape: with flux_range[0] <= b2 < b1 < flux_range[1].
        flux_range: F_min and F_max (photons).
    """
    n1, n2, n3, b1, b2 = shape.double().unbind(-1)
    low, high = (torch.full_like(b1, float(v)) for v in flux_range)
    start = torch.stack([low, b2, b1], -1)
    width = torch.stack([b2, b1, high], -1).log() - start.log()
    height = torch.stack([(low / b2) ** -n3, torch.ones_like(b2), (b1 / b2) ** -n2], -1)
    return SourceCounts(start, width, torch.stack([n3, n2, n1], -1), height)
