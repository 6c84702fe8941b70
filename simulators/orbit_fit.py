r"""Least-squares orbits of several planets, batched over stars: periodograms, then damped Gauss-Newton steps.

Coordinates in which the velocity is smooth down to e = 0, five a planet:

    cycles   T f, orbits in the span T of the design        lambda   mean longitude at the middle of the data (rad)
    ln K     K in m/s                                       k, h     e cos(omega), e sin(omega)

then the coefficients of whatever enters linearly (trend, curvature). With $\lambda(t) = \lambda_0 + 2 \pi f (t - t_0)$, M = lambda - omega,

    v = K [cos(nu + omega) + e cos(omega)]  =  K [cos lambda + k cos 2 lambda + h sin 2 lambda] + O(e^2)

Offsets are projected out: residuals and derivatives have weighted mean zero in each instrument. Jitter follows from the
residuals by Fisher scoring between two rounds of steps. A first guess, not a posterior: nothing is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simulators.kepler import TWO_PI, eccentric_anomaly
from simulators.least_squares import weighted_least_squares
from simulators.orbit_harmonics import bounded, harmonics, orbit_of_harmonics
from simulators.periodogram import FrequencyGrid, periodogram

COORDINATES = 5
STEPS = (10, 6)
"""Gauss-Newton steps before and after the jitter is estimated."""
PASSES = 2
"""Times that each planet is looked for: the second time the others are known, and taken out."""
LARGEST_ECCENTRICITY = 0.9
LEAST_ECCENTRICITY = 1e-6
LARGEST_LOG_STEP = 0.7


@dataclass(frozen=True)
class Velocities:
    """N stars of at most M points.

    Attributes:
        elapsed: epochs from the middle of the design (d), (N, M).
        velocity: (m/s), (N, M), zero where absent.
        variance: squared error bars (m^2/s^2), (N, M).
        membership: 1 where a point is there and of instrument i, (N, M, I).
        linear: columns that enter linearly, (N, M, L).
        span: T (d).
    """

    elapsed: Tensor
    velocity: Tensor
    variance: Tensor
    membership: Tensor
    linear: Tensor
    span: float

    def weight(self, jitter: Tensor) -> Tensor:
        """1 / (err^2 + jit^2), zero where absent; jitter (N, I) (m/s) -> (N, M)."""
        square = (self.membership @ jitter.square()[..., None])[..., 0]
        return self.membership.sum(-1) / (self.variance + square)

    def like_jitter(self, value: float) -> Tensor:
        """One jitter (m/s) for every star and instrument, (N, I)."""
        return self.velocity.new_full((len(self.elapsed), self.membership.shape[-1]), value)

    def without_offsets(self, values: Tensor, weight: Tensor) -> Tensor:
        """Values (N, M, C) less their weighted mean in each instrument; zero where absent."""
        of_instrument = weight[..., None] * self.membership
        mean = (of_instrument.mT @ values) / of_instrument.sum(1).clamp_min(1e-30)[..., None]
        return (values - self.membership @ mean) * self.membership.sum(-1, keepdim=True)


@dataclass(frozen=True)
class OrbitFit:
    """A fit of P planets to N stars.

    Attributes:
        y: coordinates, (N, C).
        covariance: of y, (N, C, C).
        jitter, jitter_error: (m/s), one for each instrument or one for all, (N, J).
        rms: reduced, of the residuals, (N,).
        power: decrease of chi^2 at each planet's peak, (N, P).
        rival: of it, the share that the best frequency elsewhere reaches, (N, P).
    """

    y: Tensor
    covariance: Tensor
    jitter: Tensor
    jitter_error: Tensor
    rms: Tensor
    power: Tensor
    rival: Tensor


def fit_orbits(
    data: Velocities,
    grids: Sequence[FrequencyGrid],
    eccentric: Sequence[bool],
    *,
    typical_jitter: float,
    shared_jitter: bool,
    free_jitter: bool,
) -> OrbitFit:
    """Orbits of P planets, each within its own frequencies.

    Args:
        grids: of each planet.
        eccentric: which orbits are not circles.
        typical_jitter: with which the fit begins, and stays if jitter is not free (m/s).
        shared_jitter: one jitter for all instruments.
    """
    y, power, rival = _search(data, grids, eccentric, data.weight(data.like_jitter(typical_jitter)))
    found = descend(
        data,
        y,
        grids,
        eccentric,
        typical_jitter=typical_jitter,
        shared_jitter=shared_jitter,
        free_jitter=free_jitter,
    )
    return replace(found, power=power, rival=rival)


def descend(
    data: Velocities,
    y: Tensor,
    grids: Sequence[FrequencyGrid],
    eccentric: Sequence[bool],
    *,
    typical_jitter: float,
    shared_jitter: bool,
    free_jitter: bool,
) -> OrbitFit:
    """The fit that is reached from coordinates y (N, C); see `fit_orbits`. `power` and `rival` are NaN."""
    instruments = data.membership.shape[-1]
    jitter = data.like_jitter(typical_jitter)
    mask = _free_coordinates(eccentric, data.linear.shape[-1]).to(y)
    limits = [(g.low * data.span, float(g.frequency[-1]) * data.span) for g in grids]
    error = torch.ones_like(jitter)
    for steps in STEPS:
        y = _descend(data, y, data.weight(jitter), mask, limits, steps)
        if free_jitter:
            jitter, error = _jitter(data, y, jitter, shared=shared_jitter, parameters=int(mask.sum()))
    weight = data.weight(jitter)
    residual, columns = _residual_and_columns(data, y, weight)
    normal, _ = _normal_equations(residual, columns * mask, weight)
    normal = normal + torch.diag(1 - mask)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky_ex(_regular(normal))[0]) * mask * mask[:, None]
    freedom = (data.membership.sum((1, 2)) - mask.sum() - instruments).clamp_min(1)
    rms = ((weight * residual.square()).sum(-1) / freedom).sqrt()
    if shared_jitter:
        jitter, error = jitter[:, :1], error[:, :1]
    unknown = y.new_full((len(y), len(grids)), torch.nan)
    return OrbitFit(y, covariance, jitter, error, rms, unknown, unknown)


# ---------------------------------------------------------------- the search


def _search(
    data: Velocities, grids: Sequence[FrequencyGrid], eccentric: Sequence[bool], weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates (N, C), and each planet's peak and rival (N, P); planet after planet, the others taken out."""
    rows, planets = len(data.elapsed), len(grids)
    linear = data.linear.shape[-1]
    orbits = [data.velocity.new_zeros(rows, COORDINATES) for _ in grids]
    curves = [torch.zeros_like(data.velocity) for _ in grids]
    power, rival = (data.velocity.new_zeros(rows, planets) for _ in range(2))
    center = data.without_offsets(data.velocity[..., None], weight)[..., 0]
    trend, coefficients = torch.zeros_like(center), data.velocity.new_zeros(rows, linear)
    for _ in range(PASSES if planets > 1 or linear else 1):
        for p, grid in enumerate(grids):
            others = sum((c for q, c in enumerate(curves) if q != p), torch.zeros_like(center))
            left = data.without_offsets((center - others - trend)[..., None], weight)[..., 0]
            spectrum = periodogram(data.elapsed, left, weight, data.membership, grid)
            power[:, p], best = spectrum.max(-1)
            frequency = grid.frequency.to(left)[best]
            distance = (grid.frequency.to(left) - frequency[:, None]).abs()
            elsewhere = torch.where(distance > 1.5 / data.span, spectrum, 0.0).amax(-1)
            rival[:, p] = elsewhere / power[:, p].clamp_min(1e-9)
            orbits[p], curves[p] = _harmonics(data, left, weight, frequency, eccentric[p])
        if linear:
            left = (center - sum(curves))[..., None]
            columns = data.without_offsets(data.linear, weight)
            fit = weighted_least_squares(columns, data.without_offsets(left, weight)[..., 0], weight)
            trend = (data.linear @ fit.amplitude[..., None])[..., 0]
            coefficients = fit.amplitude
    return torch.cat([*orbits, coefficients], dim=-1), power, rival


def _harmonics(
    data: Velocities, values: Tensor, weight: Tensor, frequency: Tensor, eccentric: bool
) -> tuple[Tensor, Tensor]:
    """An orbit (N, 5) and its curve (N, M) from one or two harmonics of a frequency (N,) (1/d)."""
    phase = TWO_PI * frequency[:, None] * data.elapsed
    columns = data.without_offsets(harmonics(phase, eccentric), weight)
    fit = weighted_least_squares(columns, values, weight)
    orbit = orbit_of_harmonics(fit.amplitude, fit.standard_error, frequency * data.span)
    return orbit, (columns @ fit.amplitude[..., None])[..., 0]


# ---------------------------------------------------------------- the descent


def orbit_velocity(orbit: Tensor, elapsed: Tensor, span: float) -> tuple[Tensor, Tensor]:
    r"""v (m/s), (N, M), and its derivatives to the five coordinates, (N, M, 5), of one planet, orbit (N, 5).

    $\partial v/\partial M = -K \sin(\nu + \omega) (1 + e \cos\nu)^2 / (1 - e^2)^{3/2}$,
    $\partial v/\partial e = K [\cos\omega - \sin(\nu + \omega) \sin\nu (2 + e \cos\nu) / (1 - e^2)]$,
    $\partial v/\partial\omega = -K [\sin(\nu + \omega) + e \sin\omega] - \partial v/\partial M$ at fixed lambda.
    """
    cycles, longitude, log_k, k, h = orbit[..., None].unbind(-2)
    e = (k.square() + h.square()).sqrt().clamp_min(LEAST_ECCENTRICITY)
    omega = torch.atan2(h, k)
    cos_omega, sin_omega = omega.cos(), omega.sin()
    turns = elapsed / span
    anomaly = eccentric_anomaly(longitude + TWO_PI * cycles * turns - omega, e)
    cos_e, sin_e = anomaly.cos(), anomaly.sin()
    ratio = (1 - e.square()).sqrt()
    inverse = 1 / (1 - e * cos_e)
    cos_nu, sin_nu = (cos_e - e) * inverse, ratio * sin_e * inverse
    cos_u = cos_nu * cos_omega - sin_nu * sin_omega
    sin_u = sin_nu * cos_omega + cos_nu * sin_omega
    semi_amplitude = log_k.exp()
    velocity = semi_amplitude * (cos_u + e * cos_omega)
    by_m = -semi_amplitude * sin_u * (1 + e * cos_nu).square() / ratio**3
    by_e = semi_amplitude * (cos_omega - sin_u * sin_nu * (2 + e * cos_nu) / ratio.square())
    by_omega = -semi_amplitude * (sin_u + e * sin_omega) - by_m
    by_k = by_e * cos_omega - by_omega * sin_omega / e
    by_h = by_e * sin_omega + by_omega * cos_omega / e
    return velocity, torch.stack([TWO_PI * turns * by_m, by_m, velocity, by_k, by_h], dim=-1)


def _residual_and_columns(data: Velocities, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals (N, M) and derivatives of the model (N, M, C), offsets projected out."""
    orbits = (y.shape[-1] - data.linear.shape[-1]) // COORDINATES
    parts = [orbit_velocity(y[:, COORDINATES * p :][:, :COORDINATES], data.elapsed, data.span) for p in range(orbits)]
    coefficients = y[:, COORDINATES * orbits :]
    model = sum((v for v, _ in parts), (data.linear @ coefficients[..., None])[..., 0])
    columns = torch.cat([(data.velocity - model)[..., None], *(c for _, c in parts), data.linear], dim=-1)
    columns = data.without_offsets(columns, weight)
    return columns[..., 0], columns[..., 1:]


def _normal_equations(residual: Tensor, columns: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """J^T W J, (N, C, C), and J^T W r, (N, C)."""
    weighted = columns * weight[..., None]
    return weighted.mT @ columns, (weighted.mT @ residual[..., None])[..., 0]


def _descend(
    data: Velocities, y: Tensor, weight: Tensor, mask: Tensor, limits: Sequence[tuple[float, float]], steps: int
) -> Tensor:
    """Levenberg-Marquardt: a step that raises chi^2 is taken back, and the damping raised."""
    damping = y.new_full((len(y), 1), 1e-3)
    residual, columns = _residual_and_columns(data, y, weight)
    chi2 = (weight * residual.square()).sum(-1)
    for _ in range(steps):
        normal, gradient = _normal_equations(residual, columns * mask, weight)
        diagonal = normal.diagonal(dim1=-2, dim2=-1)
        normal = normal + torch.diag_embed(damping * diagonal + (1 - mask))
        step = torch.linalg.solve_ex(_regular(normal), gradient)[0] * mask
        trial = _within(y + torch.nan_to_num(step), y, limits)
        new_residual, new_columns = _residual_and_columns(data, trial, weight)
        new_chi2 = (weight * new_residual.square()).sum(-1)
        better = new_chi2 < chi2
        y = torch.where(better[:, None], trial, y)
        residual = torch.where(better[:, None], new_residual, residual)
        columns = torch.where(better[:, None, None], new_columns, columns)
        chi2 = torch.where(better, new_chi2, chi2)
        damping = (damping * torch.where(better, 0.2, 10.0)[:, None]).clamp(1e-6, 1e4)
    return y


def _within(trial: Tensor, y: Tensor, limits: Sequence[tuple[float, float]]) -> Tensor:
    """A step bounded in ln K, in frequency by its limits, and in eccentricity."""
    trial = trial.clone()
    for p, (low, high) in enumerate(limits):
        i = COORDINATES * p
        trial[:, i] = trial[:, i].clamp(low, high)
        trial[:, i + 2] = torch.clamp(trial[:, i + 2], y[:, i + 2] - LARGEST_LOG_STEP, y[:, i + 2] + LARGEST_LOG_STEP)
        trial[:, i + 3], trial[:, i + 4] = bounded(trial[:, i + 3], trial[:, i + 4], LARGEST_ECCENTRICITY)
    return trial


def _jitter(data: Velocities, y: Tensor, jitter: Tensor, *, shared: bool, parameters: int) -> tuple[Tensor, Tensor]:
    r"""Jitter (m/s) by Fisher scoring of its square s, and its error, (N, I) each.

    $\delta s = \sum w^2 (r^2/q - 1/w) / \sum w^2$ with error $(2 / \sum w^2)^{1/2}$; q < 1 is the share of the residuals'
    variance that the fit leaves. Not below half that error: jitter cannot be measured to be zero.
    """
    points = data.membership.sum((1, 2))
    error = information = torch.ones_like(jitter)
    kept = ((points - parameters - data.membership.shape[-1]) / points).clamp_min(0.2)[:, None]
    for _ in range(4):
        weight = data.weight(jitter)
        residual, _ = _residual_and_columns(data, y, weight)
        excess = weight.square() * (residual.square() / kept - 1 / weight.clamp_min(1e-30)) * data.membership.sum(-1)
        change = (excess[..., None] * data.membership).sum(1)
        information = (weight.square()[..., None] * data.membership).sum(1)
        if shared:
            change, information = (v.sum(-1, keepdim=True).expand_as(v) for v in (change, information))
        error = (2 / information.clamp_min(1e-12)).sqrt()
        square = torch.maximum(jitter.square() + change / information.clamp_min(1e-12), 0.5 * error)
        jitter = torch.where(information > 0, square.sqrt(), jitter)
    return jitter, torch.where(information > 0, error / (2 * jitter), torch.ones_like(jitter))


def _free_coordinates(eccentric: Sequence[bool], linear: int) -> Tensor:
    """1 for coordinates that are fitted, 0 for k and h of a circle, (C,)."""
    return torch.tensor([v for e in eccentric for v in (1.0, 1.0, 1.0, e, e)] + [1.0] * linear)


def _regular(normal: Tensor) -> Tensor:
    """With 1e-10 of its diagonal, and a little more, added: fewer points than coordinates must give numbers, not NaN."""
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    return normal + torch.diag_embed(1e-10 * diagonal + 1e-9)
