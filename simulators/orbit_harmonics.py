r"""Orbits from the harmonics of a frequency, batched over stars: $v = K [\cos\lambda + k \cos 2\lambda + h \sin 2\lambda] + O(e^2)$.

k = e cos(omega) and h = e sin(omega); see `simulators.orbit_fit`.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_START = 0.5
"""Eccentricity of a first guess."""


def orbit_of_harmonics(amplitude: Tensor, error: Tensor, cycles: Tensor) -> Tensor:
    r"""An orbit (N, 5) from cos and sin of its frequency, and of twice it where the orbit is eccentric.

    $c_1 = K \cos\lambda_0$, $s_1 = -K \sin\lambda_0$; $(k, h)$ is $(c_2, s_2) / K$ turned by $2\lambda_0$, shrunk by
    $z^2 / (2 + z^2)$ for its significance z, since two amplitudes of pure noise are an eccentricity too.

    Args:
        amplitude, error: (m/s), (N, 2) or (N, 4).
        cycles: (N,).
    """
    a = amplitude
    semi_amplitude = (a[:, 0].square() + a[:, 1].square()).sqrt().clamp_min(1e-3)
    longitude = torch.atan2(-a[:, 1], a[:, 0])
    k, h = torch.zeros_like(longitude), torch.zeros_like(longitude)
    if a.shape[1] > 2:
        cos, sin = (2 * longitude).cos(), (2 * longitude).sin()
        significance = (a[:, 2:] / error[:, 2:].clamp_min(1e-12)).square().sum(-1)
        shrink = significance / (2 + significance)
        k = shrink * (a[:, 2] * cos - a[:, 3] * sin) / semi_amplitude
        h = shrink * (a[:, 2] * sin + a[:, 3] * cos) / semi_amplitude
        k, h = bounded(k, h, LARGEST_START)
    return torch.stack([cycles, longitude, semi_amplitude.log(), k, h], dim=-1)


def harmonics(phase: Tensor, eccentric: bool) -> Tensor:
    """cos and sin of a phase (N, M), and of twice it where the orbit is eccentric, (N, M, 2 or 4)."""
    turns = (phase, 2 * phase) if eccentric else (phase,)
    return torch.stack([wave for t in turns for wave in (t.cos(), t.sin())], -1)


def bounded(k: Tensor, h: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """(k, h) with e no larger than `largest`."""
    e = (k.square() + h.square()).sqrt()
    factor = torch.where(e > largest, largest / e.clamp_min(1e-12), 1.0)
    return k * factor, h * factor
