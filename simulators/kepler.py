r"""Keplerian orbits in batched torch: Kepler's equation and the radial velocity of a star.

Conventions are radvel's (Fulton et al. 2018, PASP 130, 044504, https://arxiv.org/abs/1801.01947): omega is
the argument of periastron of the star's orbit, and conjunction is the planet's transit.
Every function has a fixed number of operations and no branch on data, so nothing waits for a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TWO_PI = 2 * math.pi


def wrap_turns(turns: Tensor) -> Tensor:
    """Remove whole turns, to [-1/2, 1/2]; the derivative is that of the identity.

    >>> wrap_turns(torch.tensor([0.25, 0.75, -3.25]))
    tensor([ 0.2500, -0.2500, -0.2500])
    """
    return turns - torch.round(turns).detach()


def eccentric_anomaly(mean_anomaly: Tensor, eccentricity: Tensor | float) -> Tensor:
    r"""Eccentric anomaly E (rad), the root of Kepler's equation $M = E - e \sin E$.

    Markley's (1995) starter and fifth-order correction, without gradient, then one Newton step

    $$E = E_0 - \frac{E_0 - e \sin E_0 - M}{1 - e \cos E_0}$$

    whose denominator is held constant, so that autograd returns the derivatives of the implicit function,
    $\partial E/\partial M = 1/(1 - e \cos E)$ and $\partial E/\partial e = \sin E/(1 - e \cos E)$.
    First derivatives only: second ones would lack terms.

    Args:
        mean_anomaly: M (rad), any number of turns.
        eccentricity: e in [0, 0.99], broadcast against M.

    Returns:
        E, in the same turn as M.

    >>> bool(eccentric_anomaly(torch.tensor(0.3, dtype=torch.float64), 0.0) == 0.3)
    True

    Reference: Markley 1995, Celestial Mechanics 63, 101, https://doi.org/10.1007/BF00691917
    """
    eccentricity = torch.as_tensor(eccentricity, dtype=mean_anomaly.dtype, device=mean_anomaly.device)
    turns = TWO_PI * torch.round(mean_anomaly.detach() / TWO_PI)
    reduced = mean_anomaly - turns  # [-pi, pi]
    with torch.no_grad():
        start = _markley(reduced, eccentricity)
        slope = 1 - eccentricity * start.cos()
    step = (start - eccentricity * start.sin() - reduced) / slope
    return start - step + turns


def _markley(mean_anomaly: Tensor, eccentricity: Tensor) -> Tensor:
    r"""E to about 1e-15 for M in [-pi, pi]: Markley (1995), eqs. 5, 9, 10, 14-16, 20 and 21-24.

    $\alpha = \frac{3\pi^2 + 1.6\pi(\pi - M)/(1 + e)}{\pi^2 - 6}$, $d = 3(1 - e) + \alpha e$,
    $q = 2\alpha d (1 - e) - M^2$, $r = 3\alpha d (d - 1 + e) M + M^3$, $w = (r + \sqrt{q^3 + r^2})^{2/3}$,
    $E_1 = [2rw/(w^2 + wq + q^2) + M]/d$, then one correction of fifth order.
    """
    sign = torch.where(mean_anomaly < 0, -1.0, 1.0)
    m, e = mean_anomaly.abs(), eccentricity  # the starter holds for M >= 0; E is odd in M
    alpha = (3 * math.pi**2 + 1.6 * math.pi * (math.pi - m) / (1 + e)) / (math.pi**2 - 6)
    d = 3 * (1 - e) + alpha * e
    q = 2 * alpha * d * (1 - e) - m.square()
    r = 3 * alpha * d * (d - 1 + e) * m + m**3
    # round-off alone can make the discriminant negative
    w = (r + (q**3 + r.square()).clamp_min(0).sqrt()) ** (2 / 3)
    guess = (2 * r * w / (w.square() + w * q + q.square()) + m) / d
    f2, f3 = e * guess.sin(), e * guess.cos()
    f0, f1, f4 = guess - f2 - m, 1 - f3, -f2
    delta3 = -f0 / (f1 - 0.5 * f0 * f2 / f1)
    delta4 = -f0 / (f1 + 0.5 * delta3 * f2 + delta3.square() * f3 / 6)
    delta5 = -f0 / (f1 + 0.5 * delta4 * f2 + delta4.square() * f3 / 6 + delta4**3 * f4 / 24)
    return sign * (guess + delta5)


def keplerian_velocity(
    mean_anomaly: Tensor, eccentricity: Tensor, cos_omega: Tensor, sin_omega: Tensor, semi_amplitude: Tensor | float
) -> Tensor:
    r"""Radial velocity of the star, in the unit of the semi-amplitude, from the mean anomaly (rad).

    $$v = K [\cos(\nu + \omega) + e \cos \omega]
        = K \frac{\sqrt{1 - e^2}}{1 - e \cos E} [\sqrt{1 - e^2} \cos\omega \cos E - \sin\omega \sin E]$$

    The second form needs no true anomaly nu, and is smooth at e = 0. All arguments broadcast.
    """
    anomaly = eccentric_anomaly(mean_anomaly, eccentricity)
    cos, sin = anomaly.cos(), anomaly.sin()
    axis_ratio = (1 - eccentricity.square()).sqrt()
    projected = axis_ratio * cos_omega * cos - sin_omega * sin
    return semi_amplitude * axis_ratio / (1 - eccentricity * cos) * projected


def mean_anomaly_at_conjunction(eccentricity: Tensor, cos_omega: Tensor, sin_omega: Tensor) -> Tensor:
    r"""Mean anomaly (rad, in [-pi, pi]) at conjunction, where the true anomaly is $\nu_c = \pi/2 - \omega$.

    $$M_c = E_c - e \sin E_c, \qquad \tan\frac{E_c}{2} = \sqrt{\frac{1 - e}{1 + e}} \tan\frac{\nu_c}{2}$$

    computed as $E_c = \mathrm{atan2}(\sqrt{1 - e^2} \sin\nu_c, \; e + \cos\nu_c)$, which has no pole at
    $\omega = -\pi/2$.
    """
    cos_nu, sin_nu = sin_omega, cos_omega  # nu_c = pi/2 - omega
    axis_ratio = (1 - eccentricity.square()).sqrt()
    anomaly = torch.atan2(axis_ratio * sin_nu, eccentricity + cos_nu)
    return anomaly - eccentricity * anomaly.sin()


def time_periastron_from_conjunction(
    conjunction: Tensor | float, period: Tensor | float, eccentricity: Tensor, omega: Tensor
) -> Tensor:
    r"""Time of periastron passage, $T_p = T_c - \frac{P}{2\pi} M_c$, in the unit of the times.

    Args:
        conjunction: time of inferior conjunction (transit) T_c.
        period: P, in the unit of T_c.
        eccentricity: e in [0, 0.99].
        omega: argument of periastron of the star (rad).
    """
    return conjunction - period * mean_anomaly_at_conjunction(eccentricity, omega.cos(), omega.sin()) / TWO_PI


def radial_velocity(
    t: Tensor,
    period: Tensor | float,
    time_periastron: Tensor | float,
    eccentricity: Tensor,
    omega: Tensor,
    semi_amplitude: Tensor | float,
) -> Tensor:
    r"""Radial velocity of the star, $v = K [\cos(\nu(t) + \omega) + e \cos\omega]$, in the unit of K.

    Args:
        t: times; period and time_periastron in the same unit.
        period: P.
        time_periastron: T_p.
        eccentricity: e in [0, 0.99].
        omega: argument of periastron of the star (rad).
        semi_amplitude: K.

    All arguments broadcast.

    >>> one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    >>> round(float(radial_velocity(one * 7.0, 4.0, 7.0, 0.5 * one, zero, 2.0)), 12)  # periastron: K (1 + e)
    3.0
    """
    mean_anomaly = TWO_PI * wrap_turns((t - time_periastron) / period)
    return keplerian_velocity(mean_anomaly, eccentricity, omega.cos(), omega.sin(), semi_amplitude)
