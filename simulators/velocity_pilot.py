r"""What a least-squares fit says of the posterior: location and scale on the unconstrained space, and the network's inputs.

The covariance of the fit is carried over to theta by sigma points: u at y +- each column of its Cholesky factor. Near a
circle, where sqrt(e) cos(omega) changes without bound, differences over a standard deviation stay what they should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from simulators.kepler import TWO_PI, mean_anomaly_at_conjunction
from simulators.orbit import Orbit, Quantity
from simulators.orbit_fit import COORDINATES, OrbitFit
from simulators.unconstrained import UnconstrainedPrior

MARGIN = 1e-4
"""Share of the prior's range, at either end, that first guesses keep away from."""
WIDEST, NARROWEST = 3.0, 1e-7
"""Scale of a guess on the unconstrained space."""
DEPARTURE_STEPS = (-1.5, 1.5)
"""Where the log joint density is compared with that of a Gaussian, in standard deviations along each column."""


@dataclass(frozen=True)
class Pilot:
    """A Gaussian picture of N posteriors on the unconstrained space.

    Attributes:
        location: (N, D).
        columns: G, (N, D, C), with covariance G G^T.
    """

    location: Tensor
    columns: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviations, (N, D)."""
        return self.columns.norm(dim=-1).clamp(NARROWEST, WIDEST)


@dataclass(frozen=True)
class Coordinates:
    """How the coordinates of a fit become theta.

    Attributes:
        orbits: of each planet.
        trend: quantities of the linear columns.
        jitters: quantity of each jitter.
        law: free parameters of the noise law, of which the fit says nothing: they stay as the prior has them.
        prior: of theta.
        epoch: to which the fit's mean longitudes refer (d).
        span: T of the fit (d).
    """

    orbits: tuple[Orbit, ...]
    trend: tuple[Quantity, ...]
    jitters: tuple[Quantity, ...]
    law: tuple[Quantity, ...]
    prior: UnconstrainedPrior
    epoch: float
    span: float

    def pilot(self, fit: OrbitFit) -> Pilot:
        """The Gaussian picture that a fit gives."""
        turns = self._turns(fit.y)
        factor = torch.linalg.cholesky_ex(_positive(fit.covariance))[0]  # (N, C, C)
        steps = factor.mT.movedim(1, 0)  # (C, N, C)
        center = self._unconstrained(fit.y, fit.jitter, turns)
        up = self._unconstrained(fit.y + steps, fit.jitter, turns)
        down = self._unconstrained(fit.y - steps, fit.jitter, turns)
        columns = [(up - down).movedim(0, -1) / 2]
        for j, quantity in enumerate(self.jitters):
            if quantity.index is not None:
                shift = torch.zeros_like(fit.jitter)
                shift[:, j] = torch.minimum(fit.jitter_error[:, j], 0.9 * fit.jitter[:, j])
                up = self._unconstrained(fit.y, fit.jitter + shift, turns)
                columns.append(((up - self._unconstrained(fit.y, fit.jitter - shift, turns)) / 2)[..., None])
        for quantity in self.law:
            index = quantity.index or 0
            column = torch.zeros_like(center)
            column[:, index] = _prior_width(self.prior.marginals[index])
            columns.append(column[..., None])
        return Pilot(center, torch.cat(columns, -1))

    def _turns(self, y: Tensor) -> Tensor:
        """Whole periods that bring each conjunction nearest to the middle of its prior, (N, P)."""
        turns = []
        for p, orbit in enumerate(self.orbits):
            period, conjunction = self._ephemeris(y, p)
            turns.append(torch.round((orbit.conjunction.value - conjunction) / period))
        return torch.stack(turns, -1)

    def _ephemeris(self, y: Tensor, planet: int) -> tuple[Tensor, Tensor]:
        r"""Period and a time of conjunction (d): $T_c = t_0 + P (M_c + \omega - \lambda_0) / 2\pi$."""
        cycles, longitude, _, k, h = y[..., COORDINATES * planet :][..., :COORDINATES].unbind(-1)
        e = (k.square() + h.square()).sqrt().clamp(1e-9, 0.98)
        omega = torch.atan2(h, k)
        at_conjunction = mean_anomaly_at_conjunction(e, omega.cos(), omega.sin()) + omega
        period = self.span / cycles
        # M_c + omega is defined up to whole turns; near pi/2 it is continuous in k and h
        lead = at_conjunction - TWO_PI * torch.round((at_conjunction - math.pi / 2) / TWO_PI)
        return period, self.epoch + period * (lead - longitude) / TWO_PI

    def _unconstrained(self, y: Tensor, jitter: Tensor, turns: Tensor) -> Tensor:
        """u of coordinates (..., N, C), jitters (N, J) and whole turns (N, P): (..., N, D)."""
        values: dict[int, Tensor] = {}
        for p, orbit in enumerate(self.orbits):
            period, conjunction = self._ephemeris(y, p)
            _, _, log_k, k, h = y[..., COORDINATES * p :][..., :COORDINATES].unbind(-1)
            root = (k.square() + h.square()).sqrt().clamp_min(1e-9).sqrt()
            shrink = torch.where(root > 0.97, 0.97 / root, 1.0) / root
            found = (period, conjunction + period * turns[:, p], log_k, k * shrink, h * shrink)
            for quantity, value in zip(_quantities(orbit), found, strict=True):
                if quantity is not None and quantity.index is not None:
                    values[quantity.index] = value
        linear = y[..., COORDINATES * len(self.orbits) :]
        for quantity, value in zip(self.trend, linear.unbind(-1), strict=True):
            values[quantity.index or 0] = value
        for j, quantity in enumerate(self.jitters):
            if quantity.index is not None:
                values[quantity.index] = jitter[..., j].expand(y.shape[:-1])
        for quantity in self.law:
            values[quantity.index or 0] = y.new_full(y.shape[:-1], quantity.value)
        return torch.stack([_to_real(self.prior.marginals[d], values[d]) for d in range(len(values))], dim=-1)


def pilot_features(pilot: Pilot, log_joint: Callable[[Tensor], Tensor], others: Sequence[Tensor]) -> Tensor:
    r"""Location, log scale, correlations, departures of the log joint density from that Gaussian, and what else there is.

    Along each column g of G: $\mathrm{asinh}[\log p(u + s g) - \log p(u) + s^2 / 2]$ for the `DEPARTURE_STEPS` s.

    Args:
        log_joint: u (..., N, D) -> log p(u, x), (..., N).
        others: (N, ...) each.
    """
    scale = pilot.scale
    correlation = (pilot.columns @ pilot.columns.mT) / (scale[:, :, None] * scale[:, None, :])
    lower = torch.tril_indices(scale.shape[1], scale.shape[1], -1, device=scale.device)
    steps = torch.tensor(DEPARTURE_STEPS, dtype=scale.dtype, device=scale.device)
    around = pilot.location + steps[:, None, None, None] * pilot.columns.movedim(-1, 0)  # (S, C, N, D)
    density = log_joint(torch.cat([pilot.location[None], around.flatten(0, 1)])).clamp_min(-1e6)
    departure = density[1:] - density[0] + 0.5 * steps.square().repeat_interleave(pilot.columns.shape[-1])[:, None]
    parts = [pilot.location, scale.log(), correlation[:, lower[0], lower[1]], torch.asinh(departure).T, *others]
    return torch.cat([p.flatten(1) for p in parts], dim=-1)


def _quantities(orbit: Orbit) -> tuple[Quantity | None, ...]:
    return orbit.period, orbit.conjunction, orbit.logk, orbit.secosw, orbit.sesinw


def _to_real(marginal: Distribution, value: Tensor) -> Tensor:
    """biject_to(support)^-1 of a value that is first brought inside the prior's range."""
    ends = marginal.icdf(torch.tensor([MARGIN, 1 - MARGIN], dtype=torch.float64))
    low, high = float(ends[0]), float(ends[1])
    inverse = biject_to(marginal.support).inv
    assert inverse is not None  # a bijection has one; torch's annotation allows None
    return torch.as_tensor(inverse(value.clamp(low, high)))


def _prior_width(marginal: Distribution) -> float:
    """Half of what the middle 68 % of a prior span on the unconstrained space."""
    low, high = _to_real(marginal, marginal.icdf(torch.tensor([0.16, 0.84], dtype=torch.float64))).tolist()
    return abs(high - low) / 2


def _positive(covariance: Tensor) -> Tensor:
    """With a diagonal that a Cholesky factor needs where a coordinate is not fitted."""
    return covariance + 1e-18 * torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
