r"""Every set of periods that could hold posterior mass for one star: peaks of the periodograms, all planets combined.

Irregular epochs give a signal aliases, peaks at $f + n f_w$ for the frequencies $f_w$ of the window, and noise decides which
is highest. For every combination of one peak for each planet a linear fit of all harmonics at once gives

    chi^2(c)  =  min over amplitudes  sum_m w_m [v_m - sum_p harmonics of f_p(c) - trend - offsets]^2

and those within `NATS` of the best, (chi^2 - min chi^2) / 2, are fitted as orbits, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from simulators.kepler import TWO_PI
from simulators.least_squares import weighted_least_squares
from simulators.orbit_fit import COORDINATES, OrbitFit, Velocities, descend, orbit_velocity
from simulators.orbit_harmonics import harmonics, orbit_of_harmonics
from simulators.periodogram import FrequencyGrid, periodogram

NATS = 15.0
"""Below the best: e^-15 of the posterior would not be missed, were the curves as linear as the periodogram has them."""
MOST = 32
"""Peaks of a planet, and fits of a star."""
COMBINED = 256
"""Combinations, by the sum of their powers, whose linear fits are compared: they take 20 MB for 1,000 points."""
APART = 0.5
"""Least distance of two peaks, in 1 / span."""
RIVAL_APART = 1.5
"""As `OrbitFit.rival` has it: the best frequency so far from the peak is a candidate whatever its power."""


def candidate_orbits(
    data: Velocities,
    fit: OrbitFit,
    grids: Sequence[FrequencyGrid],
    eccentric: Sequence[bool],
    *,
    typical_jitter: float,
    shared_jitter: bool,
    free_jitter: bool,
) -> OrbitFit:
    """Fits of one star, up to `MOST` rows: first `fit`, the one that `fit_orbits` found, then the others, best first."""
    weight = data.weight(fit.jitter.expand(-1, data.membership.shape[-1]))
    combined, known = _combinations(_peaks(data, fit, grids, weight))
    y, chi2 = _linear_fit(data, combined, eccentric, weight)
    kept = ((chi2 - chi2.min() <= 2 * NATS) | known).nonzero()[:, 0]
    kept = kept[kept > 0]  # the first, of the highest peaks, is `fit`
    kept = kept[chi2[kept].argsort()][: MOST - 1]
    y = torch.cat([fit.y, y[kept]])
    found = descend(
        _repeated(data, len(y)),
        y,
        grids,
        eccentric,
        typical_jitter=typical_jitter,
        shared_jitter=shared_jitter,
        free_jitter=free_jitter,
    )
    return replace(found, power=fit.power.expand(len(y), -1), rival=fit.rival.expand(len(y), -1))


def _peaks(
    data: Velocities, fit: OrbitFit, grids: Sequence[FrequencyGrid], weight: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Frequencies (1/d) and powers of each planet's peaks, the other planets taken out: the highest, its rival, then the rest."""
    curves = [
        orbit_velocity(fit.y[:, COORDINATES * p :][:, :COORDINATES], data.elapsed, data.span)[0]
        for p in range(len(grids))
    ]
    trend = (data.linear @ fit.y[:, COORDINATES * len(grids) :, None])[..., 0]
    found = []
    for p, grid in enumerate(grids):
        others = sum((c for q, c in enumerate(curves) if q != p), trend)
        left = data.without_offsets((data.velocity - others)[..., None], weight)[..., 0]
        power = periodogram(data.elapsed, left, weight, data.membership, grid)[0].double()
        found.append(_highest(power, grid.frequency.to(power), data.span))
    return found


def _highest(power: Tensor, frequency: Tensor, span: float) -> tuple[Tensor, Tensor]:
    """Local maxima within reach of the highest, and the best frequency that is no part of it."""
    around = torch.nn.functional.pad(power, (1, 1), value=-torch.inf)
    is_peak = (power >= around[:-2]) & (power >= around[2:])
    best = int(power.argmax())
    elsewhere = (frequency - frequency[best]).abs() > RIVAL_APART / span
    chosen = [best, *([int(torch.where(elsewhere, power, -torch.inf).argmax())] if bool(elsewhere.any()) else [])]
    matters = (is_peak & (power >= power[best] - 2 * NATS)).nonzero()[:, 0]
    for index in matters[power[matters].argsort(descending=True)].tolist():
        apart = min(abs(float(frequency[index] - frequency[c])) for c in chosen)
        if len(chosen) < MOST and apart > APART / span:
            chosen.append(index)
    rows = torch.tensor(chosen, device=frequency.device)
    return frequency[rows], power[rows]


def _combinations(peaks: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Frequencies (B, P) of the likeliest combinations, the highest peaks first, and which differ from that by one rival, (B,)."""
    index = torch.cartesian_prod(*(torch.arange(len(f)) for f, _ in peaks)).view(-1, len(peaks))
    total = torch.stack([power[index[:, p]] for p, (_, power) in enumerate(peaks)]).sum(0)
    known = (index.sum(-1) <= 1).to(total.device)  # all at their highest peak, or one of them at its rival
    order = torch.where(known, torch.inf, total).argsort(descending=True, stable=True)[:COMBINED]
    frequency = torch.stack([f[index[:, p]] for p, (f, _) in enumerate(peaks)], dim=-1)
    return frequency[order], known[order]


def _linear_fit(
    data: Velocities, frequency: Tensor, eccentric: Sequence[bool], weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Coordinates (B, C) and chi^2 (B,) of all planets' harmonics at frequencies (B, P) (1/d), fitted at once."""
    rows = len(frequency)
    bases = [
        harmonics(TWO_PI * frequency[:, p, None] * data.elapsed, is_eccentric)
        for p, is_eccentric in enumerate(eccentric)
    ]
    columns = torch.cat([*bases, data.linear.expand(rows, -1, -1)], dim=-1)
    repeated, weight = _repeated(data, rows), weight.expand(rows, -1)
    columns = repeated.without_offsets(columns, weight)
    values = repeated.without_offsets(repeated.velocity[..., None], weight)[..., 0]
    fit = weighted_least_squares(columns, values, weight)
    parts, start = [], 0
    for p, basis in enumerate(bases):
        of_planet = slice(start, start + basis.shape[-1])
        cycles = frequency[:, p] * data.span
        parts.append(orbit_of_harmonics(fit.amplitude[:, of_planet], fit.standard_error[:, of_planet], cycles))
        start += basis.shape[-1]
    chi2 = (weight * fit.residual.square()).sum(-1)
    return torch.cat([*parts, fit.amplitude[:, start:]], dim=-1), chi2


def _repeated(data: Velocities, rows: int) -> Velocities:
    """One star as so many rows."""
    return replace(
        data,
        elapsed=data.elapsed.expand(rows, -1),
        velocity=data.velocity.expand(rows, -1),
        variance=data.variance.expand(rows, -1),
        membership=data.membership.expand(rows, -1, -1),
        linear=data.linear.expand(rows, -1, -1),
    )
