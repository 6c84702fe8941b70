r"""Radial velocities of a star with planets, from several instruments, at any number of irregular epochs.

    v_m = gamma_i(m) + sum_p K_p [cos(nu_p(t_m) + omega_p) + e_p cos(omega_p)] + dvdt (t_m - t_0) + curv (t_m - t_0)^2 + noise_m
    noise_m = sqrt(err_m^2 + jit_i(m)^2) eps_m,      eps_m ~ N(0, 1), or a law with outliers of `simulators.noise_laws`

as radvel has it (Fulton et al. 2018, PASP 130, 044504, https://arxiv.org/abs/1801.01947). The offset gamma_i of each instrument is
marginalised under a flat prior of density 1 per m/s, analytically where the noise is Gaussian (`simulators.offset_integral`). Points may be absent: `present` is 0, and nothing depends on
what stands in the other numbers. `radial_velocity` is the simulator for one instrument and fixed ephemerides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulators.kepler import TWO_PI, wrap_turns
from simulators.noise_laws import declare_noise
from simulators.observing_design import DesignSpec, number
from simulators.offset_integral import NODES, gaussian_log_marginal, log_marginal, robust_mean, weighted_mean
from simulators.orbit import Quantity, are_bound, declare, orbit_from_spec
from simulators.orbit_candidates import candidate_orbits
from simulators.orbit_fit import OrbitFit, Velocities, fit_orbits
from simulators.priors import PriorSpec
from simulators.protocol import Data, Parameter, PredictiveView
from simulators.unconstrained import UnconstrainedPrior
from simulators.velocity_design import arrays_of, velocity_design
from simulators.velocity_files import read_all_velocities
from simulators.velocity_options import (
    blocks,
    declare_jitters,
    free_orbit,
    masked_observables,
    period_grid,
    planet_list,
)
from simulators.velocity_pilot import Coordinates, Pilot, pilot_features

PART_NUMBERS = 200_000
"""Velocities that are computed at once: a dozen arrays of 1.6 MB."""
ROBUST_FITS = 2
"""After the first, whose jitter an outlier may have raised until it looks like none."""
ZERO_STEP = 10_000
"""Zero of the time axis of a figure: the last multiple before the first epoch (d)."""
BINS = 20
"""Of the phase, for the means in the folded figures."""


class MultiInstrumentVelocity:
    r"""Radial velocities of one star, several instruments, one to three planets with free periods.

    Order of theta: for planet 1, 2, ...: `per`, `tc`, `logk`, `secosw`, `sesinw` (with the planet's number), then `dvdt`, `curv`,
    `jit`, or `jit_` and the instrument's name for each of them, and those of the noise law; only those with a prior.

    Args:
        planets: a mapping each: priors of `period` (d), `conjunction` (d, time system of the data; a range of one period or
            less), `logk` (natural logarithm of K in m/s), and for eccentric orbits `secosw` and `sesinw`, sqrt(e) cos(omega)
            and sqrt(e) sin(omega). The priors of the periods say which planet is which: let them not overlap. Where e >= 0.99
            the likelihood is zero, and `simulate` and `model_curve` use e = 0.99.
        dvdt: trend (m/s/d), a number or a prior.
        curv: curvature (m/s/d^2), which multiplies (t - t_0)^2 without a factor 1/2.
        reference_epoch: t_0 (d), needed with dvdt or curv.
        jit: jitter (m/s) that all instruments share, or a mapping from the name of each to its own; numbers or priors.
        likelihood: gaussian, student_t or mixture: for nights that no error bar foresaw.
        noise: numbers or priors of `freedom`, or `outlier_fraction` and `outlier_width`; see `simulators.noise_laws`.
        offset_scale: standard deviation (m/s) of the offsets that `simulate` draws. It changes no posterior.
        design: where epochs, error bars and instruments come from; see `simulators.velocity_design`.
        size: M, points of one star at most; default: those of the design.
        instruments: their names; default: those of the design's observation.
        inputs: what the network reads. `summary`: figures of the least-squares fit; `points`: every point with its residual, for
            train.embedding.kind set or transformer.

    Raises:
        ValueError: a key, number or prior that is no such model; says what to change.

    >>> planet = {"period": {"uniform": [10, 20]}, "conjunction": {"uniform": [0, 10]}, "logk": {"normal": [1.6, 1]}}
    >>> design = {"points": [20, 60], "baseline": 300, "error": [1, 2]}
    >>> jit = {"a": {"uniform": [0, 5]}, "b": {"uniform": [0, 5]}}
    >>> simulator = MultiInstrumentVelocity(planets=[planet], jit=jit, design=design, instruments=["a", "b"])
    >>> [p.name for p in simulator.parameters]
    ['per1', 'tc1', 'logk1', 'jit_a', 'jit_b']
    """

    name = "multi_instrument_velocity"
    exchangeable = ("time", "velocity_error", "instrument", "present", "velocity")

    def __init__(
        self,
        *,
        planets: Sequence[Mapping[str, PriorSpec]],
        dvdt: float | PriorSpec = 0.0,
        curv: float | PriorSpec = 0.0,
        reference_epoch: float | None = None,
        jit: float | Mapping[str, Any] = 0.0,
        likelihood: str = "gaussian",
        noise: Mapping[str, float | PriorSpec] | None = None,
        offset_scale: float = 5.0,
        design: DesignSpec | None = None,
        size: int | None = None,
        instruments: Sequence[str] | None = None,
        inputs: str = "summary",
    ) -> None:
        self.design = velocity_design(design, size=size, instruments=instruments)
        self.instruments = self.design.instruments
        declared: list[Parameter] = []
        self.orbits = tuple(
            orbit_from_spec(free_orbit(spec, n), n, declared, owner=self.name)
            for n, spec in enumerate(planet_list(planets), start=1)
        )
        self.dvdt = declare(declared, dvdt, "dvdt", unit="m / (s d)", label=r"$\dot{\gamma}$", owner=self.name)
        self.curv = declare(declared, curv, "curv", unit="m / (s d2)", label=r"$\ddot{\gamma}/2$", owner=self.name)
        self.has_trend = self.dvdt != Quantity(0.0) or self.curv != Quantity(0.0)
        if self.has_trend and reference_epoch is None:
            raise ValueError(f"{self.name}: dvdt and curv need `reference_epoch` (d), the epoch that they are about")
        self.reference_epoch = number(reference_epoch or 0.0, f"{self.name}: reference_epoch")
        self.shared_jitter = not (isinstance(jit, Mapping) and set(jit) & set(self.instruments))
        self.jitters = declare_jitters(declared, jit, self.instruments, shared=self.shared_jitter)
        self.noise = declare_noise(declared, likelihood, noise or {}, owner=self.name)
        self.offset_scale = number(offset_scale, f"{self.name}: offset_scale")
        if self.offset_scale < 0:
            raise ValueError(f"{self.name}: offset_scale must not be negative, got {self.offset_scale:g}")
        if inputs not in ("summary", "points"):
            raise ValueError(f"{self.name}: inputs: expected summary or points, got {inputs!r}")
        self.inputs = inputs
        self.parameters = tuple(declared)
        self.observables = masked_observables(self.design.size)
        self._prior = UnconstrainedPrior.of(self.parameters)
        trend = tuple(q for q in (self.dvdt, self.curv) if q.index is not None)
        span = self.design.baseline[1]
        law = tuple(q for q in self.noise.quantities.values() if q.index is not None)
        self._coordinates = Coordinates(self.orbits, trend, self.jitters, law, self._prior, self.design.epoch, span)
        self._grids = [period_grid(o.period, self.parameters, span) for o in self.orbits]
        self._latest: tuple[tuple[Tensor, ...], list[Pilot], list[OrbitFit]] | None = None
        if inputs == "points":
            self.feature_shape = (self.design.size, 5 + len(self.instruments) + 2 * len(self.orbits))

    # ------------------------------------------------------------ the model

    def velocity(self, theta: Tensor, time: Tensor, *, planets: Sequence[int] | None = None) -> Tensor:
        """Noise-free velocity without offsets (m/s), theta (..., N, D), time (N, M) (d) -> (..., N, M).

        Args:
            planets: of these alone (from 0), without trend; default: everything.
        """
        if planets is not None:
            parts = [self.orbits[p].velocity(theta, time) for p in planets]
            return sum(parts[1:], parts[0])
        total: Tensor | float = 0.0
        if self.has_trend:
            elapsed = (time - self.reference_epoch).to(theta.dtype)
            total = (self.dvdt.of(theta) + self.curv.of(theta) * elapsed) * elapsed
        for orbit in self.orbits:
            total = total + orbit.velocity(theta, time)
        return torch.as_tensor(total)

    def _membership(self, x: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """1 where a point is there and of instrument i, (N, M, I)."""
        code = torch.arange(len(self.instruments), device=x["instrument"].device)
        is_of = (x["instrument"][..., None] - code).abs() < 0.5
        return (is_of & (x["present"][..., None] > 0.5)).to(dtype)

    def _jitter(self, theta: Tensor) -> Tensor:
        """Jitter of each instrument (m/s), (..., N, I)."""
        values = [torch.as_tensor(q.of(theta), dtype=theta.dtype, device=theta.device) for q in self.jitters]
        shape = (*theta.shape[:-1], 1)
        jitter = torch.cat([v.expand(shape) for v in values], dim=-1)
        return jitter.expand(*shape[:-1], len(self.instruments))

    def _variance(self, theta: Tensor, x: Mapping[str, Tensor], membership: Tensor) -> Tensor:
        """err^2 + jit^2 (m^2/s^2), (..., N, M)."""
        square = self._jitter(theta).square()
        return x["velocity_error"].to(theta.dtype).square() + (membership @ square[..., None])[..., 0]

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        r"""Velocities with noise and offsets $\gamma_i \sim N(0, \mathrm{offset\_scale})$; zero where absent.

        Args:
            theta: (N, D).
            context: `time` (d), `velocity_error` (m/s), `instrument` (its number) and `present`, (N, M) each; None draws them.
            generator: the only source of random numbers, on the device of theta.

        Returns:
            the context, and velocity (m/s), (N, M) each. Finite also where e >= 0.99, which is then computed at e = 0.99.
        """
        count = theta.shape[0]
        x = dict(context) if context is not None else self.design.draw(count, generator=generator)
        points, instruments = x["time"].shape[1], len(self.instruments)
        eps = self.noise.law(theta).draw((count, points), generator=generator, dtype=theta.dtype)
        normal = torch.randn((count, instruments), generator=generator, device=theta.device, dtype=theta.dtype)
        membership = self._membership(x, theta.dtype)
        offset = (membership @ (self.offset_scale * normal[..., None]))[..., 0]
        noise = self._variance(theta, x, membership).sqrt() * eps
        velocity = self.velocity(theta, x["time"].double()) + offset + noise
        return x | {"velocity": torch.where(x["present"] > 0.5, velocity, 0.0).double()}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""log p(velocity given theta), theta (..., N, D), x of N rows -> (..., N).

        Of $r_m = v_m - model_m$ and $s_m^2 = err_m^2 + jit_i^2$ over the points that are present, offsets marginalised:
        `offset_integral.gaussian_log_marginal`, `log_marginal` for other laws. -inf, with gradient zero, where an eccentricity is 0.99 or
        more. Draws go through in parts that stay in a cache, unless gradients are wanted.
        """
        return self._log_likelihood(theta, x, laplace=False)

    def _log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor], *, laplace: bool) -> Tensor:
        """With `laplace`, offsets by a Gaussian about their likeliest values: the same for Gaussian noise, else cheap and nearly so."""
        nodes = 1 if self.noise.is_gaussian or laplace else NODES
        part = max(1, PART_NUMBERS // (nodes * x["time"].numel()))
        if theta.dim() > 2 and len(theta) > part and not torch.is_grad_enabled():
            return torch.cat([self._log_likelihood(some, x, laplace=laplace) for some in theta.split(part)])
        membership = self._membership(x, theta.dtype)
        there = membership.sum(-1)
        residual = self._centered(x, membership, theta.dtype) - self.velocity(theta, x["time"].double())
        variance = self._variance(theta, x, membership)
        if self.noise.is_gaussian:
            found = gaussian_log_marginal(residual, variance, membership)
        else:
            scale = torch.where(there > 0.5, variance, 1.0).sqrt()
            found = log_marginal(self.noise.law(theta), residual, scale, membership, laplace=laplace)
        return torch.where(are_bound(self.orbits, theta), found, -torch.inf)

    def _centered(self, x: Mapping[str, Tensor], membership: Tensor, dtype: torch.dtype) -> Tensor:
        """Velocities less the plain mean of each instrument, zero where absent: an offset of km/s would cost float32 digits."""
        exact = membership.double()
        _, mean = weighted_mean(x["velocity"].double(), exact.sum(-1), exact)
        return (exact.sum(-1) * (x["velocity"].double() - (exact @ mean[..., None])[..., 0])).to(dtype)

    def canonical(self, x: Mapping[str, Tensor]) -> Data:
        """Velocities (m/s) less the mean of each instrument's, which `log_likelihood` does not see."""
        return {"velocity": self._centered(x, self._membership(x, torch.float64), torch.float64)}

    def _without_offsets(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        """Velocities of one star (m/s) less the likeliest offset of each instrument given theta, (K, D) -> (K, M)."""
        draws = theta[:, None, :]
        membership = self._membership(x, theta.dtype)
        centered = self._centered(x, membership, theta.dtype)
        residual = centered - self.velocity(draws, x["time"].double())
        scale = torch.where(membership.sum(-1) > 0.5, self._variance(draws, x, membership), 1.0).sqrt()
        mean, _ = robust_mean(self.noise.law(draws), residual, scale, membership)
        return (centered - (membership @ mean[..., None])[..., 0])[:, 0]

    def predictive_views(self, theta: Tensor, x: Mapping[str, Tensor]) -> list[PredictiveView]:
        """Velocities over time, then folded at each planet's period; offsets, other planets and trend at their medians taken out.

        Args:
            theta: draws of the posterior of one star, (K, D).
            x: one row.
        """
        there = x["present"][0] > 0.5
        jitter = (self._membership(x, theta.dtype) @ self._jitter(theta).median(0).values[None, :, None])[0, :, 0]
        error = (x["velocity_error"][0].to(theta.dtype).square() + jitter.square()).sqrt()[there]
        time, free = x["time"].double()[:, there], self._without_offsets(theta, x)[:, there]
        draws = theta[:, None, :]
        everything = self.velocity(draws, time)[:, 0]
        grid = torch.linspace(float(time.min()), float(time.max()), 2000, dtype=torch.float64)
        curves = self.velocity(draws, grid[None])[:, 0]
        unit = "velocity less offsets [m / s]"
        zero = ZERO_STEP * math.floor(float(time.min()) / ZERO_STEP)
        since = f"time - {zero} [d]" if zero else "time [d]"
        data = free.median(0).values
        views = [PredictiveView("velocities", since, unit, time[0] - zero, data, error, grid - zero, curves)]
        phase = torch.linspace(-0.5, 0.5, 400, dtype=torch.float64)
        for p, orbit in enumerate(self.orbits):
            period, conjunction = (q.of(draws) for q in (orbit.period, orbit.conjunction))  # (K, 1, 1)
            alone = self.velocity(draws, time, planets=[p])[:, 0]
            at = wrap_turns((time[0] - torch.as_tensor(conjunction).median()) / torch.as_tensor(period).median())
            folded = self.velocity(draws, conjunction + phase * period, planets=[p])[:, 0]
            data = (free - everything + alone).median(0).values
            views.append(
                PredictiveView(
                    name=f"planet {p + 1}",
                    abscissa_label=f"orbital phase of planet {p + 1}",
                    data_label=unit,
                    abscissa=at,
                    observed=data,
                    error=error,
                    grid=phase,
                    curves=folded,
                    bins=BINS,
                )
            )
        return views

    # ------------------------------------------------------------ inputs of the network

    def pilot(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Periodograms and a least-squares fit on the unconstrained space: location (N, D) and scale (N, D)."""
        pilots, _ = self._fits(x)
        return torch.cat([p.location for p in pilots]), torch.cat([p.scale for p in pilots])

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        """What the network reads, (N, F), blind to the offsets: see option `inputs`."""
        pilots, fits = self._fits(x)
        parts = [
            self._points(part, p) if self.inputs == "points" else self._summary(part, p, f)
            for part, p, f in zip(blocks(x), pilots, fits, strict=True)
        ]
        return torch.cat(parts)

    def _summary(self, x: Data, pilot: Pilot, fit: OrbitFit) -> Tensor:
        def log_joint(u: Tensor) -> Tensor:
            return self._prior.log_prob(u) + self._log_likelihood(self._prior.theta(u), x, laplace=True)

        counts = self._membership(x, torch.float64).sum(1)
        orbits = fit.y[:, : 5 * len(self.orbits)].unflatten(1, (-1, 5))
        error = fit.covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12).sqrt()
        others = [counts.log1p(), fit.rms.log()[:, None], fit.power.clamp_min(1e-3).log(), fit.rival, orbits[..., 3:]]
        return pilot_features(pilot, log_joint, [*others, error[:, : 5 * len(self.orbits)].log()])

    def _points(self, x: Data, pilot: Pilot) -> Tensor:
        """Every point: time, asinh of velocity and of residual in its errors, log error, instrument, phases, mask; (N, M * numbers)."""
        theta = self._prior.theta(pilot.location)
        membership = self._membership(x, torch.float64)
        time, variance = x["time"].double(), self._variance(theta, x, membership)
        centered = self._centered(x, membership, torch.float64)
        residual = (centered - self.velocity(theta, time)) * membership.sum(-1)
        _, mean = weighted_mean(residual, membership.sum(-1) / variance, membership)
        residual = residual - (membership @ mean[..., None])[..., 0]
        elapsed = 2 * (time - self.design.epoch) / self.design.baseline[1]
        numbers = [elapsed, *(torch.asinh(v / variance.sqrt()) for v in (centered, residual)), 0.5 * variance.log()]
        for orbit in self.orbits:
            phase = TWO_PI * wrap_turns((time - orbit.conjunction.of(theta)) / orbit.period.of(theta))
            numbers += [phase.cos(), phase.sin()]
        there = membership.sum(-1, keepdim=True)
        return torch.cat([torch.stack(numbers, -1) * there, membership, there], dim=-1).flatten(1)

    def _fits(self, x: Mapping[str, Tensor]) -> tuple[list[Pilot], list[OrbitFit]]:
        """Fits, a block of stars at a time. The latest are kept: the network asks for features and pilot of the same x in turn."""
        arrays = tuple(x[o.name] for o in self.observables)
        if self._latest is None or any(a is not b for a, b in zip(arrays, self._latest[0], strict=True)):
            fits = [self._fit(part) for part in blocks(x)]
            self._latest = (arrays, [self._coordinates.pilot(f) for f in fits], fits)
        return self._latest[1], self._latest[2]

    def _velocities(self, x: Mapping[str, Tensor]) -> Velocities:
        """x as the least-squares fit takes it, fixed trend and curvature taken out."""
        membership, time = self._membership(x, torch.float64), x["time"].double()
        elapsed = time - self.reference_epoch
        fixed = [q.value if q.index is None else 0.0 for q in (self.dvdt, self.curv)]
        powers = [elapsed**power for power, q in ((1, self.dvdt), (2, self.curv)) if q.index is not None]
        velocity = self._centered(x, membership, torch.float64) - (fixed[0] + fixed[1] * elapsed) * elapsed
        return Velocities(
            elapsed=time - self.design.epoch,
            velocity=velocity * membership.sum(-1),
            variance=x["velocity_error"].double().square(),
            membership=membership,
            linear=torch.stack(powers, -1) if powers else velocity.new_zeros(*velocity.shape, 0),
            span=self.design.baseline[1],
        )

    def _orbit_options(self) -> dict[str, Any]:
        """How orbits are fitted: which are eccentric, and their jitter."""
        free = [self.parameters[q.index].prior for q in self.jitters if q.index is not None]
        typical = [float(p.mean) for p in free if p is not None] + [q.value for q in self.jitters if q.index is None]
        return {
            "eccentric": [o.secosw is not None for o in self.orbits],
            "typical_jitter": abs(typical[0]),
            "shared_jitter": self.shared_jitter,
            "free_jitter": bool(free),
        }

    def _fit(self, x: Data) -> OrbitFit:
        data, options = self._velocities(x), self._orbit_options()
        found = fit_orbits(data, self._grids, **options)
        for _ in range(0 if self.noise.is_gaussian else ROBUST_FITS):
            found = fit_orbits(self._without_outliers(data, x, found), self._grids, **options)
        return found

    def candidates(self, x: Mapping[str, Tensor]) -> Tensor:
        """Orbits at every combination of periodogram peaks that could matter, x of one star, (C, D), best first."""
        _, fits = self._fits(x)
        data = self._velocities(x)
        if not self.noise.is_gaussian:
            data = self._without_outliers(data, x, fits[0])
        found = candidate_orbits(data, fits[0], self._grids, **self._orbit_options())
        return self._coordinates.candidates(found)

    def _without_outliers(self, data: Velocities, x: Mapping[str, Tensor], fit: OrbitFit) -> Velocities:
        """Data whose error bars are widened as far as the noise law, at the median of its prior, counts each residual for less."""
        theta = self._prior.theta(self._coordinates.pilot(fit).location)
        centered = self._centered(x, data.membership, torch.float64)
        residual = centered - self.velocity(theta, x["time"].double())
        square = torch.where(data.membership.sum(-1) > 0.5, self._variance(theta, x, data.membership), 1.0)
        scale = square.sqrt()
        law = self.noise.law(theta)
        center, _ = robust_mean(law, residual, scale, data.membership)
        eps = (residual - (data.membership @ center[..., None])[..., 0]) / scale
        widened = data.variance + square * (1 / law.weight(eps).clamp(1e-6, 1.0) - 1)
        return replace(data, variance=widened)

    # ------------------------------------------------------------ observed files

    def read_observation(self, path: Path | str) -> tuple[Data, list[str]]:
        """One observed star, from a table of radvel's kind, as x of one row; its identifier is the file's stem.

        Raises:
            ValueError: unreadable, more points than `size`, or an instrument that is not known.
        """
        arrays = arrays_of(read_all_velocities(path), self.instruments, self.design.size, str(path))
        return {name: torch.from_numpy(values[None]) for name, values in arrays.items()}, [Path(path).stem]
