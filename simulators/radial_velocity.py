r"""Radial velocities of a star with planets: Keplerian orbits, trend, jitter, one instrument.

    v_i = gamma + sum_p K_p [cos(nu_p(t_i) + omega_p) + e_p cos(omega_p)]
          + dvdt (t_i - t_0) + curv (t_i - t_0)^2 + noise_i,      noise_i ~ N(0, sqrt(err_i^2 + jit^2))

as radvel has it (Fulton et al. 2018, PASP 130, 044504, https://arxiv.org/abs/1801.01947). The offset gamma
is marginalised analytically under a flat prior of density 1 per m/s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from simulators.kepler import TWO_PI, wrap_turns
from simulators.observing_design import DesignSpec, ObservingDesign, design_from_spec, number
from simulators.orbit import Quantity, are_bound, declare, orbit_from_spec
from simulators.orbit_candidates import candidate_orbits
from simulators.orbit_fit import Velocities, fit_orbits
from simulators.priors import PriorSpec
from simulators.protocol import Data, Parameter
from simulators.unconstrained import UnconstrainedPrior
from simulators.velocity_files import read_velocity_table
from simulators.velocity_options import period_grid, velocity_observables
from simulators.velocity_pilot import Coordinates
from simulators.velocity_summary import VelocitySummary, summarize_velocities


class RadialVelocity:
    r"""Radial velocities of one star, one instrument, any number of planets.

    Every option that takes a number takes a prior instead (`{normal: [1.6, 10]}`), which makes it a
    parameter of theta. Order of theta: for planet 1, 2, ...: `per`, `tc`, `logk`, `secosw`, `sesinw` (with
    the planet's number), then `dvdt`, `curv`, `jit`; only those with a prior.

    Args:
        planets: a mapping each: `period` (d), `conjunction` (d, time system of the data), `logk` (a prior of
            the natural logarithm of the semi-amplitude in m/s), and for eccentric orbits `secosw` and
            `sesinw`, sqrt(e) cos(omega) and sqrt(e) sin(omega). Where e >= 0.99 the likelihood is zero, and
            `simulate` and `model_curve` use e = 0.99.
        dvdt: trend (m/s/d).
        curv: curvature (m/s/d^2), which multiplies (t - t_0)^2 without a factor 1/2.
        reference_epoch: t_0 (d), needed with dvdt or curv.
        jit: jitter (m/s), enters squared: its sign has no meaning.
        offset_scale: standard deviation (m/s) of the offsets gamma that `simulate` draws. It changes no
            posterior: `features` and `log_likelihood` do not see gamma.
        design: where epochs and error bars come from; see `simulators.observing_design`.
        instrument: which one to read from files with several.

    Raises:
        ValueError: a key, number or prior that is no such model; says what to change.

    >>> planet = {"period": 20.885258, "conjunction": 2072.79438, "logk": {"normal": [1.6, 10]}}
    >>> design = {"points": 30, "baseline": 100, "start": 2364, "error": 1.7}
    >>> simulator = RadialVelocity(planets=[planet], jit={"normal": [1.1, 0.5]}, design=design)
    >>> [p.name for p in simulator.parameters]
    ['logk1', 'jit']
    """

    name = "radial_velocity"
    exchangeable = ("time", "velocity_error", "velocity")

    def __init__(
        self,
        *,
        planets: Sequence[Mapping[str, float | PriorSpec]] = (),
        dvdt: float | PriorSpec = 0.0,
        curv: float | PriorSpec = 0.0,
        reference_epoch: float | None = None,
        jit: float | PriorSpec = 0.0,
        offset_scale: float = 5.0,
        design: DesignSpec | None = None,
        instrument: str | None = None,
    ) -> None:
        declared: list[Parameter] = []
        self.orbits = tuple(
            orbit_from_spec(spec, position, declared) for position, spec in enumerate(_as_list(planets), start=1)
        )
        self.dvdt = declare(declared, dvdt, "dvdt", unit="m / (s d)", label=r"$\dot{\gamma}$")
        self.curv = declare(declared, curv, "curv", unit="m / (s d2)", label=r"$\ddot{\gamma}/2$")
        self.jit = declare(declared, jit, "jit", unit="m / s", label=r"$\sigma_{\mathrm{jit}}$")
        self.has_trend = self.dvdt != Quantity(0.0) or self.curv != Quantity(0.0)
        if not self.orbits and not self.has_trend:
            raise ValueError(
                "radial_velocity: no planets and no trend: give `planets`, or a prior for `dvdt` or `curv`"
            )
        if not declared:
            raise ValueError("radial_velocity: nothing is free: give a prior, such as jit: {normal: [1.1, 0.5]}")
        if self.has_trend and reference_epoch is None:
            raise ValueError("radial_velocity: dvdt and curv need `reference_epoch` (d), the epoch that they are about")
        self.reference_epoch = number(reference_epoch or 0.0, "radial_velocity: reference_epoch")
        self.offset_scale = number(offset_scale, "radial_velocity: offset_scale")
        if self.offset_scale < 0:
            raise ValueError(f"radial_velocity: offset_scale must not be negative, got {self.offset_scale:g}")
        self.instrument = instrument
        self.design: ObservingDesign = design_from_spec(design, instrument=instrument)
        self.parameters = tuple(declared)
        self.observables = velocity_observables(self.design.points)

    # ------------------------------------------------------------ the model

    def velocity(self, theta: Tensor, time: Tensor) -> Tensor:
        """Noise-free velocity without offset (m/s), theta (..., N, D), time (N, M) (d) -> (..., N, M)."""
        total = self._trend(theta, time) if self.has_trend else 0.0
        for orbit in self.orbits:
            total = total + orbit.velocity(theta, time)
        return torch.as_tensor(total)

    def _trend(self, theta: Tensor, time: Tensor) -> Tensor:
        """dvdt (t - t_0) + curv (t - t_0)^2 (m/s)."""
        elapsed = (time - self.reference_epoch).to(theta.dtype)
        return (self.dvdt.of(theta) + self.curv.of(theta) * elapsed) * elapsed

    def _variance(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        """err^2 + jit^2 (m^2/s^2), (..., N, M)."""
        jit = self.jit.of(theta)
        return x["velocity_error"].to(theta.dtype).square() + jit * jit

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        r"""Velocities with noise and an offset $\gamma \sim N(0, \mathrm{offset\_scale})$.

        Args:
            theta: (N, D).
            context: `time` (d) and `velocity_error` (m/s), (N, M) each; None draws them from the design.
            generator: the only source of random numbers, on the device of theta.

        Returns:
            time (d), velocity_error (m/s) and velocity (m/s), (N, M) each. Finite also where e >= 0.99,
            which is then computed at e = 0.99.
        """
        return self.observe(self.signal(theta, context, generator=generator), theta, generator=generator)

    def signal(self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator) -> Data:
        """time (d), velocity_error (m/s), and the noise-free velocity (m/s) without offset, (N, M) each."""
        if context is None:
            time, error = self.design.draw(theta.shape[0], generator=generator)
        else:
            time, error = context["time"].double(), context["velocity_error"].float()
        return {"time": time, "velocity_error": error, "velocity": self.velocity(theta, time)}

    def observe(self, signal: Data, theta: Tensor, *, generator: torch.Generator) -> Data:
        """Noise of error bars and jitter, and an offset, on a noise-free velocity (m/s)."""
        velocity = signal["velocity"]
        # one column more than epochs: the offset
        shape = (len(velocity), velocity.shape[1] + 1)
        normal = torch.randn(shape, generator=generator, device=theta.device, dtype=theta.dtype)
        noise = self.offset_scale * normal[:, :1] + self._variance(theta, signal).sqrt() * normal[:, 1:]
        return signal | {"velocity": (velocity + noise).double()}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""log p(velocity given theta), theta (..., N, D), x of N rows -> (..., N).

        With $r_i = v_i - m_i(\theta)$, $s_i^2 = err_i^2 + jit^2$, $w_i = 1/s_i^2$ and $\bar r = \sum wr/\sum w$,

        $$\log L = \log \int d\gamma \prod_i N(r_i; \gamma, s_i)
            = -\frac{1}{2}\Big[\sum_i w_i (r_i - \bar r)^2 + \sum_i \log 2\pi s_i^2 - \log\frac{2\pi}{\sum_i w_i}\Big]$$

        (Brandt 2017 as in radvel; $\sum w (r - \bar r)^2 = \sum wr^2 - (\sum wr)^2/\sum w$ without its
        cancellation.) -inf, with gradient zero, where an eccentricity is 0.99 or more.
        """
        velocity = x["velocity"] - x["velocity"].mean(-1, keepdim=True)  # an offset of km/s would cost float32 digits
        residual = velocity.to(theta.dtype) - self.velocity(theta, x["time"].double())
        variance = self._variance(theta, x)
        weight = 1 / variance
        total = weight.sum(-1)
        mean = (weight * residual).sum(-1) / total
        chi2 = (weight * (residual - mean[..., None]).square()).sum(-1)
        constant = (velocity.shape[-1] - 1) * math.log(TWO_PI)
        log_likelihood = -0.5 * (chi2 + variance.log().sum(-1) + total.log() + constant)
        return torch.where(are_bound(self.orbits, theta), log_likelihood, -torch.inf)

    def canonical(self, x: Mapping[str, Tensor]) -> Data:
        """Velocities (m/s) less their mean, which `log_likelihood` does not see."""
        velocity = x["velocity"].double()
        return {"velocity": velocity - velocity.mean(-1, keepdim=True)}

    def model_curve(self, theta: Tensor, x: Mapping[str, Tensor], grid: Tensor) -> Tensor:
        r"""Noise-free velocity (m/s) on a grid of times (d), for one observation.

        The offset is its posterior mean given theta, $\bar r = \sum w_i (v_i - m_i)/\sum w_i$.

        Args:
            theta: (K, D).
            x: one row.
            grid: (G,).

        Returns:
            (K, G), in the dtype of theta.
        """
        draws = theta[:, None, :]  # (K, 1, D) against one row
        center = x["velocity"].mean(-1, keepdim=True)
        residual = (x["velocity"] - center).to(theta.dtype) - self.velocity(draws, x["time"].double())
        weight = (1 / self._variance(draws, x)).expand_as(residual)
        gamma = (weight * residual).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
        return (self.velocity(draws, grid.double()[None, :]) + gamma + center.to(theta.dtype))[:, 0]

    # ------------------------------------------------------------ inputs of the network

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        r"""Physics-informed inputs of the network, (N, F), dimensionless, blind to the offset.

        From the linear fit of `_basis`: the significance z of each orbital amplitude, as asinh(z) and as z
        clamped to [-3, 8] (where the posterior of ln K changes its shape), the logarithm of the reduced rms,
        and asinh of the residuals, which trend, curvature and offset no longer change. Where the design
        lets them vary also the logarithm of the error bars; where epochs vary, they, and the logarithms of
        the amplitudes' standard errors.
        """
        summary, columns = self._summary(x), self._orbit_columns()
        z = summary.significance(columns)
        parts = [torch.asinh(z), z.clamp(-3, 8), summary.rms.log(), torch.asinh(summary.residual)]
        if self.design.error_scatter > 0:
            parts.append(torch.log(x["velocity_error"].double() / self.design.error))
        if self.design.epochs is None:
            parts.append(2 * (x["time"].double() - self.design.start) / self.design.baseline - 1)
            parts.append(summary.error[:, 1:].log())
        return torch.cat(parts, dim=-1)

    def pilot(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        r"""A first guess of the posterior from the linear fit, location (N, D) and scale (N, D).

        ln K of a circular planet with fixed ephemeris: $\ln \max(a, \sigma_a) \pm \sigma_a / \max(a, \sigma_a)$;
        trend and curvature: amplitude and standard error; jitter: by moments. What the fit says nothing
        about has location 0 and scale 1, and so has what is not on the whole real line.
        """
        summary = self._summary(x)
        location = torch.zeros(len(summary.rms), len(self.parameters), dtype=torch.float64, device=summary.rms.device)
        scale = torch.ones_like(location)
        guesses: dict[int, tuple[Tensor, Tensor]] = {}
        position = 1
        for orbit in self.orbits:
            if orbit.has_fixed_ephemeris:
                if orbit.secosw is None and orbit.logk.index is not None:
                    error = summary.error[:, position]
                    amplitude = torch.maximum(summary.amplitude[:, position], error)
                    guesses[orbit.logk.index] = (amplitude.log(), error / amplitude)
                position += orbit.linear_columns
        for power, quantity in ((1, self.dvdt), (2, self.curv)):
            if quantity.index is not None:
                unit = self._span**power
                guesses[quantity.index] = (summary.amplitude[:, position] / unit, summary.error[:, position] / unit)
                position += 1
        if self.jit.index is not None:
            guesses[self.jit.index] = summary.jitter()
        for index, (guess, error) in guesses.items():
            prior = self.parameters[index].prior
            if prior is not None and prior.support is constraints.real:
                location[:, index], scale[:, index] = guess, error
        return location, scale

    def candidates(self, x: Mapping[str, Tensor]) -> Tensor:
        """Orbits at every combination of periodogram peaks that could matter, x of one star, (C, D); none if all periods are fixed."""
        if all(o.period.index is None for o in self.orbits):
            return torch.empty(0, len(self.parameters), dtype=torch.float64)
        time, velocity = x["time"].double(), x["velocity"].double()
        elapsed = time - self.reference_epoch
        known = [q.value if q.index is None else 0.0 for q in (self.dvdt, self.curv)]
        powers = [elapsed**n for n, q in ((1, self.dvdt), (2, self.curv)) if q.index is not None]
        epoch, span = self.design.start + self.design.baseline / 2, self.design.baseline
        data = Velocities(
            elapsed=time - epoch,
            velocity=velocity - velocity.mean(-1, keepdim=True) - (known[0] + known[1] * elapsed) * elapsed,
            variance=x["velocity_error"].double().square(),
            membership=torch.ones_like(time)[..., None],
            linear=torch.stack(powers, -1) if powers else time.new_zeros(*time.shape, 0),
            span=span,
        )
        options: dict[str, Any] = {
            "grids": [period_grid(o.period, self.parameters, span) for o in self.orbits],
            "eccentric": [o.secosw is not None for o in self.orbits],
            "typical_jitter": self._typical_jitter(),
            "shared_jitter": True,
            "free_jitter": self.jit.index is not None,
        }
        trend = tuple(q for q in (self.dvdt, self.curv) if q.index is not None)
        prior = UnconstrainedPrior.of(self.parameters)
        coordinates = Coordinates(self.orbits, trend, (self.jit,), (), prior, epoch, span)
        return coordinates.candidates(candidate_orbits(data, fit_orbits(data, **options), **options))

    def _summary(self, x: Mapping[str, Tensor]) -> VelocitySummary:
        """The linear fit to x, fixed trend and curvature taken out first."""
        time, error, velocity = (x[name].double() for name in ("time", "velocity_error", "velocity"))
        elapsed = time - self.reference_epoch
        known = [q.value if q.index is None else 0.0 for q in (self.dvdt, self.curv)]
        velocity = velocity - (known[0] + known[1] * elapsed) * elapsed
        velocity = velocity - velocity.mean(-1, keepdim=True)  # a systemic velocity of km/s would cost digits
        return summarize_velocities(self._basis(time), velocity, error, self._typical_jitter())

    def _typical_jitter(self) -> float:
        """Root mean square of the jitter under its prior, or its fixed value (m/s)."""
        if self.jit.index is None:
            return self.jit.value
        prior = self.parameters[self.jit.index].prior
        assert prior is not None
        return float((prior.mean.square() + prior.variance).sqrt())

    @property
    def _span(self) -> float:
        """Unit of time in which trend and curvature have amplitudes of order the velocities (d)."""
        return max(self.design.baseline, abs(self.design.start - self.reference_epoch)) or 1.0

    def _orbit_columns(self) -> list[int]:
        """Columns of `_basis` that belong to orbits."""
        return list(range(1, 1 + sum(o.linear_columns for o in self.orbits if o.has_fixed_ephemeris)))

    def _basis(self, time: Tensor) -> Tensor:
        r"""Columns in which the model is linear, (N, M) -> (N, M, J): offset first, then orbits and trend.

        A planet with fixed period and conjunction gives $-\sin 2\pi\phi$; if eccentric, $\cos 2\pi\phi$ and the
        second harmonic too, which is first order in e. Trend and curvature are in units of `_span`.
        """
        columns = [torch.ones_like(time)]
        for orbit in self.orbits:
            if not orbit.has_fixed_ephemeris:
                continue
            phase = TWO_PI * wrap_turns((time - orbit.conjunction.value) / orbit.period.value)
            columns.append(-phase.sin())
            if orbit.secosw is not None:
                columns += [phase.cos(), (2 * phase).sin(), (2 * phase).cos()]
        elapsed = (time - self.reference_epoch) / self._span
        if self.dvdt.index is not None:
            columns.append(elapsed)
        if self.curv.index is not None:
            columns.append(elapsed.square())
        return torch.stack(columns, dim=-1)

    # ------------------------------------------------------------ observed files

    def read_observation(self, path: Path | str) -> tuple[Data, list[str]]:
        """One observed star, from a table of radvel's kind, as x of one row; its identifier is the file's stem.

        Raises:
            ValueError: unreadable, several instruments and none selected, or another number of points.
        """
        table = read_velocity_table(path, instrument=self.instrument)
        if len(table) != self.design.points:
            raise ValueError(
                f"{path}: has {len(table)} velocities, the simulator's design {self.design.points}: "
                "set design: {observation: FILE} to this file"
            )
        arrays = {o.name: getattr(table, o.name).astype(o.dtype)[None, :] for o in self.observables}
        return {name: torch.from_numpy(values) for name, values in arrays.items()}, [Path(path).stem]


def _as_list(planets: object) -> list[Any]:
    if not isinstance(planets, Sequence) or isinstance(planets, str):
        raise ValueError(f"radial_velocity: planets: expected a list of mappings, got {planets!r}")
    return list(planets)
