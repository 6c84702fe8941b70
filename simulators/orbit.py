r"""One planet's orbit: its parameters, fixed or free, and the velocity that it gives its star."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.kepler import TWO_PI, keplerian_velocity, mean_anomaly_at_conjunction, wrap_turns
from simulators.observing_design import check_keys, number
from simulators.priors import PriorSpec, distribution_from_spec
from simulators.protocol import Parameter

MAX_ECCENTRICITY = 0.99
"""Orbits at or beyond it have likelihood zero. Kepler's equation is solved to full precision below it."""
_CIRCULAR = 1e-12  # below this e, omega has no meaning and its gradient no finite value
_PLANET_KEYS = ("period", "conjunction", "logk", "secosw", "sesinw")


@dataclass(frozen=True)
class Quantity:
    """A fixed number, or a component of theta.

    Attributes:
        value: the number, or the median of the prior.
        index: component of theta; None where fixed.
    """

    value: float
    index: int | None = None

    def of(self, theta: Tensor) -> Tensor | float:
        """Its value given theta (..., N, D): (..., N, 1), or the number."""
        return self.value if self.index is None else theta[..., self.index, None]


@dataclass(frozen=True)
class Orbit:
    """Parameters of one planet's orbit; secosw and sesinw are None where it is circular.

    Attributes:
        period: P (d).
        conjunction: time of inferior conjunction T_c (d).
        logk: natural logarithm of the semi-amplitude in m/s.
        secosw: sqrt(e) cos(omega).
        sesinw: sqrt(e) sin(omega).
    """

    period: Quantity
    conjunction: Quantity
    logk: Quantity
    secosw: Quantity | None = None
    sesinw: Quantity | None = None

    @property
    def has_fixed_ephemeris(self) -> bool:
        """Whether period and conjunction are numbers: the velocity is then linear in the amplitudes."""
        return self.period.index is None and self.conjunction.index is None

    @property
    def linear_columns(self) -> int:
        """Columns of a linear fit: the fundamental, or both phases of the first two harmonics if eccentric."""
        return 1 if self.secosw is None else 4

    def eccentricity_vector(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(e) cos(omega) and sqrt(e) sin(omega), (..., N, 1) each."""
        pair = (q.of(theta) for q in (self.secosw, self.sesinw) if q is not None)
        secosw, sesinw = (v if isinstance(v, Tensor) else theta.new_full((1,), v) for v in pair)
        return secosw, sesinw

    def velocity(self, theta: Tensor, time: Tensor) -> Tensor:
        r"""Velocity of the star due to this planet (m/s), theta (..., N, D), time (N, M) (d) -> (..., N, M).

        Circular: $v = -K \sin 2\pi\phi$ with $\phi = (t - T_c)/P$. Eccentric: the mean anomaly is
        $M = 2\pi\phi + M_c$. Whole turns are removed in float64: in float32 a time of 2,450,000 d has
        steps of a quarter of a day. Eccentricities from 0.99 on are computed at 0.99.
        """
        turns = wrap_turns((time - self.conjunction.of(theta)) / self.period.of(theta))
        phase = TWO_PI * turns.to(theta.dtype)
        logk = self.logk.of(theta)
        semi_amplitude = logk.exp() if isinstance(logk, Tensor) else math.exp(logk)
        if self.secosw is None:
            return -semi_amplitude * phase.sin()
        eccentricity, cos_omega, sin_omega = orbital_elements(*self.eccentricity_vector(theta))
        mean_anomaly = phase + mean_anomaly_at_conjunction(eccentricity, cos_omega, sin_omega)
        return keplerian_velocity(mean_anomaly, eccentricity, cos_omega, sin_omega, semi_amplitude)


def orbital_elements(secosw: Tensor, sesinw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""e, cos(omega) and sin(omega): $e = a^2 + b^2$ for $a = \sqrt{e}\cos\omega$, $b = \sqrt{e}\sin\omega$.

    e is clamped to 0.99, and omega is 0 where e < 1e-12. Each branch of `where` sees only values at which
    its derivative is finite, so that the branch not taken adds no NaN.
    """
    eccentricity = secosw.square() + sesinw.square()
    defined = eccentricity > _CIRCULAR
    root = torch.where(defined, eccentricity, 1.0).sqrt()
    cos_omega = torch.where(defined, secosw / root, 1.0)
    sin_omega = torch.where(defined, sesinw / root, 0.0)
    return torch.where(eccentricity < MAX_ECCENTRICITY, eccentricity, MAX_ECCENTRICITY), cos_omega, sin_omega


def are_bound(orbits: Sequence[Orbit], theta: Tensor) -> Tensor:
    """Whether every eccentricity is below 0.99, theta (..., N, D) -> (..., N)."""
    bound = torch.ones(theta.shape[:-1], dtype=torch.bool, device=theta.device)
    for orbit in orbits:
        if orbit.secosw is not None:
            secosw, sesinw = orbit.eccentricity_vector(theta)
            bound = bound & (secosw.square() + sesinw.square() < MAX_ECCENTRICITY)[..., 0]
    return bound


# ---------------------------------------------------------------- from options to orbits


def declare(
    declared: list[Parameter],
    value: float | PriorSpec,
    name: str,
    *,
    unit: str = "",
    label: str = "",
    owner: str = "radial_velocity",
) -> Quantity:
    """A fixed number, or a new parameter appended to `declared`; `owner` is the simulator that messages name."""
    if not isinstance(value, Mapping):
        return Quantity(number(value, f"{owner}: {name}"))
    prior = distribution_from_spec(value, f"{owner}: {name}")
    declared.append(Parameter(name, prior, unit, label))
    median = prior.icdf(torch.tensor(0.5, dtype=torch.float64))
    return Quantity(float(median), len(declared) - 1)


def orbit_from_spec(spec: object, position: int, declared: list[Parameter], *, owner: str = "radial_velocity") -> Orbit:
    """One planet's mapping of the config; its free parameters are appended to `declared`.

    Raises:
        ValueError: a key is missing or unknown, or a number is outside its domain.
    """
    what = f"{owner}: planet {position}"
    if not isinstance(spec, Mapping):
        raise ValueError(f"{what}: expected a mapping with {', '.join(_PLANET_KEYS[:3])}, got {spec!r}")
    check_keys(spec, _PLANET_KEYS, what)
    missing = [key for key in _PLANET_KEYS[:3] if key not in spec]
    if missing:
        raise ValueError(f"{what}: {missing[0]} is missing")
    if ("secosw" in spec) != ("sesinw" in spec):
        raise ValueError(f"{what}: secosw and sesinw belong together: give both, or neither for a circular orbit")
    if not isinstance(spec["logk"], Mapping):
        raise ValueError(
            f"{what}: logk is always free: give a prior such as {{normal: [1.6, 10]}}, got {spec['logk']!r}"
        )
    n = position
    period = declare(declared, spec["period"], f"per{n}", unit="d", label=f"$P_{{{n}}}$", owner=owner)
    _check_period(period, declared, what)
    conjunction = declare(declared, spec["conjunction"], f"tc{n}", unit="d", label=f"$T_{{c,{n}}}$", owner=owner)
    logk = declare(declared, spec["logk"], f"logk{n}", label=rf"$\ln K_{{{n}}}$", owner=owner)
    if "secosw" not in spec:
        return Orbit(period, conjunction, logk)
    secosw = declare(
        declared, spec["secosw"], f"secosw{n}", label=rf"$\sqrt{{e_{{{n}}}}}\cos\omega_{{{n}}}$", owner=owner
    )
    sesinw = declare(
        declared, spec["sesinw"], f"sesinw{n}", label=rf"$\sqrt{{e_{{{n}}}}}\sin\omega_{{{n}}}$", owner=owner
    )
    eccentricity = secosw.value**2 + sesinw.value**2
    if secosw.index is None and sesinw.index is None and eccentricity >= MAX_ECCENTRICITY:
        raise ValueError(f"{what}: secosw^2 + sesinw^2 = e must be below {MAX_ECCENTRICITY}, got {eccentricity:g}")
    return Orbit(period, conjunction, logk, secosw, sesinw)


def _check_period(period: Quantity, declared: list[Parameter], what: str) -> None:
    """Refuse a period, or a prior of it, that is not positive."""
    lowest = period.value
    if period.index is not None:
        prior = declared[period.index].prior
        lowest = float(prior.icdf(torch.tensor(1e-6, dtype=torch.float64))) if prior is not None else lowest
    if lowest <= 0:
        raise ValueError(
            f"{what}: period must be positive, got {lowest:g} d (a prior: at its 1e-6 quantile); use log_normal or uniform"
        )
