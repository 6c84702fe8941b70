r"""Periodogram of velocities with an offset for each instrument, batched over stars.

For every frequency f the fit of $a \cos 2\pi f t + b \sin 2\pi f t + \gamma_{i(m)}$ with weights w, and how much it lowers chi^2,

    p(f) = (Y_c^2 S - 2 Y_c Y_s X + Y_s^2 C) / (C S - X^2)

    C = sum w cos^2 - sum_i (sum_i w cos)^2 / W_i,   S and X likewise with sin^2 and cos sin,   Y_c = sum w y cos,   Y_s = sum w y sin

where y has weighted mean zero in each instrument: the generalised Lomb-Scargle periodogram (Zechmeister and Kuerster 2009,
https://arxiv.org/abs/0901.2573) with one floating mean an instrument.

Sums over all frequencies are matrix products: with f = f_0 + (a B + b) df the phase factor $e^{2\pi i f t}$ is a product of a
factor that knows a and one that knows b, so that A + B sines of each epoch do for A B frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.kepler import TWO_PI, wrap_turns

OVERSAMPLE = 6
"""Frequencies in 1 / baseline: a peak's top is then missed by at most a twelfth of its width."""


@dataclass(frozen=True)
class FrequencyGrid:
    """A B frequencies from `low` on in steps of `step` (1/d)."""

    low: float
    step: float
    coarse: int
    fine: int

    @classmethod
    def between(cls, low: float, high: float, baseline: float) -> FrequencyGrid:
        """At least from low to high (1/d), `OVERSAMPLE` to a width 1 / baseline (1/d)."""
        step = 1 / (OVERSAMPLE * baseline)
        count = max(2, math.ceil((high - low) / step) + 1)
        step = (high - low) / (count - 1)
        fine = math.ceil(math.sqrt(count))
        return cls(low, step, math.ceil(count / fine), fine)

    @property
    def frequency(self) -> Tensor:
        """(A B,), float64, 1/d."""
        return self.low + self.step * torch.arange(self.coarse * self.fine, dtype=torch.float64)


def periodogram(elapsed: Tensor, values: Tensor, weight: Tensor, membership: Tensor, grid: FrequencyGrid) -> Tensor:
    """Decrease of chi^2, (N, A B), float32.

    Args:
        elapsed: epochs from near their middle (d), (N, M).
        values: y (m/s), (N, M), weighted mean zero in each instrument.
        weight: w, (N, M), zero where absent.
        membership: 1 where a point is of instrument i, (N, M, I).
    """
    rows = len(elapsed)
    coarse = grid.low + grid.step * grid.fine * torch.arange(grid.coarse, dtype=torch.float64, device=elapsed.device)
    fine = grid.step * torch.arange(grid.fine, dtype=torch.float64, device=elapsed.device)
    left = _phase_factor(elapsed[:, None, :] * coarse[:, None])  # (N, A, M)
    right = _phase_factor(elapsed[..., None] * fine)  # (N, M, B)
    of_instrument = weight[..., None] * membership  # (N, M, I)
    columns = torch.cat([of_instrument, (weight * values)[..., None]], -1).mT.to(left)  # (N, I + 1, M)
    sums = (columns[:, :, None, :] * left[:, None]).flatten(1, 2) @ right
    sums = sums.view(rows, columns.shape[1], -1)  # (N, I + 1, F)
    second = ((weight.to(left)[:, None, :] * left.square()) @ right.square()).view(rows, -1)
    total = of_instrument.sum(1)
    inverse = torch.where(total > 0, 1 / total.clamp_min(1e-30), 0.0).float()[..., None]  # (N, I, 1)
    cos, sin = sums[:, :-1].real, sums[:, :-1].imag
    half = 0.5 * total.sum(-1, keepdim=True).float()
    c = half + 0.5 * second.real - (inverse * cos.square()).sum(1)
    s = half - 0.5 * second.real - (inverse * sin.square()).sum(1)
    x = 0.5 * second.imag - (inverse * cos * sin).sum(1)
    yc, ys = sums[:, -1].real, sums[:, -1].imag
    determinant = (c * s - x.square()).clamp_min(1e-6 * half.square())
    return (yc.square() * s - 2 * yc * ys * x + ys.square() * c) / determinant


def _phase_factor(turns: Tensor) -> Tensor:
    """exp(2 pi i turns), complex64; whole turns go in float64."""
    angle = (TWO_PI * wrap_turns(turns)).float()
    return torch.complex(angle.cos(), angle.sin())
