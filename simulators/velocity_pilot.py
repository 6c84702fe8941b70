r"""What a least-squares fit says of the posterior: location and scale on the unconstrained space, and the network's inputs.

The covariance of the fit is carried over to theta by sigma points: u at y +- each column of its Cholesky factor. Near a
circle, where sqrt(e) cos(omega) changes without bound, differences over a standard deviation stay what they should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Normal, biject_to

from simulators.kepler import TWO_PI, mean_anomaly_at_conjunction
from simulators.orbit import Orbit, Quantity
from simulators.orbit_fit import COORDINATES, OrbitFit
from simulators.unconstrained import UnconstrainedPrior

MARGIN = 1e-4
"""Share of the prior's range, at either end, that first guesses keep away from."""
WIDEST, NARROWEST = 3.0, 1e-7
"""Scale of a guess on the unconstrained space."""
MOST_TURNS, NEAR, MOST_CANDIDATES = 8, 0.1, 64
"""Orbits by which a conjunction is moved at most, if its prior allows it to a tenth of a period, and candidates of one star."""
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
        pilot = self._with_priors(center, torch.cat(columns, -1))
        law = [torch.zeros_like(center) for _ in self.law]
        for quantity, column in zip(self.law, law, strict=True):
            index = quantity.index or 0
            column[:, index] = _prior_width(self.prior.marginals[index])
        return replace(pilot, columns=torch.cat([pilot.columns, *(c[..., None] for c in law)], -1))

    def _with_priors(self, location: Tensor, columns: Tensor) -> Pilot:
        r"""The fit and what the priors know besides: a conjunction from transits is far narrower than what velocities say of it.

        With u = m + G z, z ~ N(0, 1), and priors N(a, s) of u_R: $A = 1 + G_R^T s^{-2} G_R$, $z = A^{-1} G_R^T s^{-2} (a - m_R)$,
        covariance of z $A^{-1}$. A bounded prior that the whole fit lies outside of is all that is known: its middle and width.
        """
        law = [q.index for q in self.law]
        known = [(d, g) for d, m in enumerate(self.prior.marginals) if d not in law and (g := _gaussian(m)) is not None]
        if known:
            index = torch.tensor([d for d, _ in known], device=location.device)
            mean, scale = location.new_tensor([g for _, g in known]).unbind(-1)
            rows = columns[:, index]  # (N, R, C)
            weighted = rows.mT / scale.square()
            precision = weighted @ rows + torch.eye(rows.shape[-1]).to(location)
            factor = torch.linalg.cholesky_ex(precision)[0]
            shift = torch.cholesky_solve(weighted @ (mean - location[:, index])[..., None], factor)
            location = location + (columns @ shift)[..., 0]
            columns = torch.linalg.solve_triangular(factor, columns.mT, upper=False).mT
        for d, marginal in enumerate(self.prior.marginals):
            ends = [_to_real(marginal, marginal.icdf(location.new_tensor(q))) for q in (MARGIN, 1 - MARGIN)]
            at_end = (location[:, d] == ends[0]) | (location[:, d] == ends[1])
            lost = at_end & (columns[:, d].norm(dim=-1) < NARROWEST)
            middle = _to_real(marginal, marginal.icdf(location.new_tensor(0.5)))
            location[:, d] = torch.where(lost, middle, location[:, d])
            columns[:, d, 0] = torch.where(lost, _prior_width(marginal), columns[:, d, 0])
        return Pilot(location, columns)

    def candidates(self, fit: OrbitFit) -> Tensor:
        """theta (C, D) of fits of one star, best first, then those with a conjunction of another orbit that its prior allows."""
        turns = self._turns(fit.y)
        rows, others = list(range(len(fit.y))), [turns]
        for p, orbit in enumerate(self.orbits):
            if orbit.conjunction.index is None:
                continue
            period, conjunction = self._ephemeris(fit.y, p)
            marginal = self.prior.marginals[orbit.conjunction.index]
            low, high = (marginal.icdf(fit.y.new_tensor(q)) for q in (MARGIN, 1 - MARGIN))
            for turn in (t for n in range(1, MOST_TURNS + 1) for t in (n, -n)):
                moved = conjunction + period * (turns[:, p] + turn)
                inside = ((moved > low - NEAR * period) & (moved < high + NEAR * period)).nonzero()[:, 0]
                rows += inside.tolist()
                others.append(turns[inside] + turn * torch.eye(len(self.orbits)).to(turns)[p])
        row = torch.tensor(rows, device=fit.y.device)
        is_moved = torch.arange(len(row), device=row.device) >= len(fit.y)
        chosen = (row + len(fit.y) * is_moved).argsort(stable=True)[
            :MOST_CANDIDATES
        ]  # every orbit of the best fits first
        row = row[chosen]
        return self.prior.theta(self._unconstrained(fit.y[row], fit.jitter[row], torch.cat(others)[chosen]))

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


def _gaussian(marginal: Distribution) -> tuple[float, float] | None:
    """Mean and standard deviation of a prior that is normal on the unconstrained space, None for others."""
    if isinstance(marginal, (Normal, LogNormal)):
        return float(marginal.loc), float(marginal.scale)
    return None


def _to_real(marginal: Distribution, value: Tensor) -> Tensor:
    """biject_to(support)^-1 of a value, brought inside the prior's range first unless the prior is normal there."""
    if isinstance(marginal, Normal):
        return value
    if isinstance(marginal, LogNormal):
        return value.clamp_min(torch.finfo(value.dtype).tiny).log()
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
