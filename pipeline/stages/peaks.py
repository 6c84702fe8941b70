r"""Peaks of the posterior of one observation: climbs of the log joint density from given starts, and the mass under each.

On the unconstrained space u, with $f(u) = \log p(x|\theta) + \log p(\theta) + \log|d\theta/du|$, damped Newton steps of all starts at
once, then Laplace's estimate

    ln mass  =  f(u)  +  D/2 ln 2 pi  -  1/2 ln det C,      C^-1 = -d^2 f / du^2

The second derivatives are differences of gradients over a twentieth of each coordinate's conditional width: Kepler's
equation offers autograd first ones only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.support import SupportTransform
from simulators.priors import IndependentPrior
from simulators.protocol import Data, Simulator, candidates_of, has_likelihood, log_likelihood, pilot_of

STEPS = 30
STEP_LENGTHS = (1.0, 0.5, 0.2, 0.05, 0.01)
"""Of each Newton step: the one that climbs highest is taken."""
LARGEST_STEP = 3.0
"""In each coordinate's conditional width."""
DIFFERENCE = 0.05
WIDTHS = tuple(10.0**e for e in range(-9, 1))
"""Tried for the conditional widths at the starts."""
FARTHER, REACH = tuple(1.3**n for n in range(18)), 1.3
"""Factors of the widths at which a range is tried to go on, to a hundredfold; it then goes on to the next."""
FALLEN = 0.8
CLOSE = 0.3
"""Peaks nearer than so many standard deviations of either are one; Newton's steps end much nearer."""


@dataclass(frozen=True)
class Peaks:
    """K peaks, the heaviest first.

    Attributes:
        location: on the unconstrained space, (K, D).
        covariance: there, (K, D, D).
        log_mass: Laplace's estimate of ln of the evidence under each, nats, (K,).
    """

    location: Tensor
    covariance: Tensor
    log_mass: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviations, (K, D)."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()

    @property
    def share(self) -> Tensor:
        """Of the mass of all of them, (K,)."""
        return torch.softmax(self.log_mass, 0)


@dataclass(frozen=True)
class LogJoint:
    """f(u) of one observation.

    Attributes:
        simulator: with a log_likelihood.
        support: theta to u and back.
        prior: of theta.
        x: one row.
    """

    simulator: Simulator
    support: SupportTransform
    prior: Distribution
    x: Data

    def __call__(self, u: Tensor) -> Tensor:
        """f, (..., D) -> (...); -inf where it is not a number."""
        theta, log_det = self.support.to_theta(u)
        found = (
            log_likelihood(self.simulator, theta[..., None, :], self.x)[..., 0] + self.prior.log_prob(theta) + log_det
        )
        return torch.where(found.isnan(), -torch.inf, found)

    def gradient(self, u: Tensor) -> Tensor:
        """df/du, (..., D), zero where it is not finite."""
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            (found,) = torch.autograd.grad(self(leaf).sum(), leaf)
        return torch.nan_to_num(found, posinf=0.0, neginf=0.0)


def posterior_peaks(simulator: Simulator, prior: Distribution, x: Data) -> Peaks | None:
    """Peaks of the posterior of one observation that a climb from the simulator's candidates and its pilot reaches.

    None where there is nothing to start from, no likelihood with a gradient, a joint or a periodic prior.

    Args:
        simulator: with or without `pilot` and `candidates`.
        prior: of theta.
        x: one row.
    """
    if not isinstance(prior, IndependentPrior) or any(p.periodic for p in simulator.parameters):
        return None
    support = SupportTransform(prior)
    start = starts(simulator, support, x)
    if not len(start) or not has_gradient(simulator, support.to_theta(start[:1])[0], x):
        return None
    return climb(LogJoint(simulator, support, prior, x), start)


def starts(simulator: Simulator, support: SupportTransform, x: Data) -> Tensor:
    """Location of the pilot, then candidates, on the unconstrained space, (C, D); C is 0 where the simulator offers neither."""
    pilot, candidates = pilot_of(simulator, x), candidates_of(simulator, x)
    found = [] if pilot is None else [pilot[0].double()]
    found += [] if candidates is None else [support.to_unconstrained(candidates)]
    return torch.cat(found) if found else torch.empty(0, support.dimension, dtype=torch.float64)


def has_gradient(simulator: Simulator, theta: Tensor, x: Data) -> bool:
    """Whether it has a likelihood that autograd goes through, tried at theta (1, D)."""
    if not has_likelihood(simulator):
        return False
    with torch.enable_grad():
        return log_likelihood(simulator, theta.detach().requires_grad_(), x).requires_grad


@torch.no_grad()
def climb(log_joint: LogJoint, start: Tensor) -> Peaks:
    """The peaks that are reached from starts (C, D) of u; starts where f is not finite are left out."""
    u = start[log_joint(start).isfinite()]
    width = _conditional_widths(log_joint, u)
    for _ in range(STEPS):
        value, gradient, precision = log_joint(u), log_joint.gradient(u), _precision(log_joint, u, width)
        step = torch.linalg.solve(precision, gradient[..., None])[..., 0]
        width = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
        longest = (step / width).abs().amax(-1, keepdim=True).clamp_min(1e-30)
        step = step * (LARGEST_STEP / longest).clamp_max(1.0)
        trials = torch.stack([u + length * step for length in STEP_LENGTHS])
        best, index = log_joint(trials).max(0)
        higher = best > value
        chosen = trials.gather(0, index[None, :, None].expand(1, *u.shape))[0]
        u = torch.where(higher[:, None], chosen, u)
        if not bool((best - value > 1e-6).any()):
            break
    precision = _precision(log_joint, u, width)
    log_mass = log_joint(u) + 0.5 * u.shape[-1] * math.log(2 * math.pi) - 0.5 * torch.linalg.slogdet(precision)[1]
    return _merged(Peaks(u, torch.linalg.inv(precision), log_mass))


@torch.no_grad()
def reach(log_joint: LogJoint, peaks: Peaks, widths: float) -> tuple[Tensor, Tensor]:
    r"""Ends of the ranges of u around each peak, (K, D) each: `widths` standard deviations, and further where f stays high.

    A normal density has fallen by $w^2/2$ nats at w widths. Where f along a coordinate has not even by what it has at 0.8 w, as
    along the logarithm of an amplitude that may be zero, the range goes on to where it has.
    """
    ends = []
    for sign in (-1.0, 1.0):
        end = peaks.location + sign * widths * peaks.scale
        on = torch.ones_like(end, dtype=torch.bool)
        for factor in FARTHER:
            moved = sign * factor * widths * peaks.scale
            there = log_joint((peaks.location[:, None] + torch.diag_embed(moved)).movedim(1, 0)).T  # (K, D)
            on = on & (log_joint(peaks.location)[:, None] - there < 0.5 * (FALLEN * widths) ** 2)
            end = torch.where(on, peaks.location + REACH * moved, end)
        ends.append(end)
    return ends[0], ends[1]


def _conditional_widths(log_joint: LogJoint, u: Tensor) -> Tensor:
    """Steps of each coordinate alone over which f bends by one nat, to a factor of ten, (C, D)."""
    steps = (
        torch.tensor(WIDTHS, dtype=u.dtype, device=u.device)[:, None, None, None]
        * torch.eye(u.shape[-1]).to(u)[:, None]
    )
    bend = 2 * log_joint(u) - log_joint(u + steps) - log_joint(u - steps)  # (W, D, C)
    reached = (bend.abs() > 1).double()
    first = torch.where(reached.any(0), reached.argmax(0), len(WIDTHS) - 1)
    return torch.tensor(WIDTHS, dtype=u.dtype, device=u.device)[first].T


def _precision(log_joint: LogJoint, u: Tensor, width: Tensor) -> Tensor:
    """-d^2 f / du^2 with the signs of its eigenvalues made positive, in units of the widths, (C, D, D)."""
    steps = DIFFERENCE * torch.diag_embed(width).movedim(1, 0)  # (D, C, D)
    change = log_joint.gradient(u - steps) - log_joint.gradient(u + steps)
    hessian = (change / (2 * DIFFERENCE)).movedim(0, 1) * width[:, None, :]  # of u / width
    value, vector = torch.linalg.eigh((hessian + hessian.mT) / 2)
    positive = vector @ torch.diag_embed(value.abs().clamp_min(1e-4)) @ vector.mT
    return positive / (width[:, :, None] * width[:, None, :])


def _merged(peaks: Peaks) -> Peaks:
    """Each peak once, the heaviest first; one with no mass to speak of (e^-100 of the heaviest) left out."""
    order = peaks.log_mass.argsort(descending=True)
    factor = torch.linalg.cholesky_ex(peaks.covariance)[0]
    kept: list[int] = []
    for index in order.tolist():
        if kept:
            apart = peaks.location[index] - peaks.location[kept]
            own = torch.linalg.solve_triangular(factor[index].expand(len(kept), -1, -1), apart[..., None], upper=False)
            theirs = torch.linalg.solve_triangular(factor[kept], apart[..., None], upper=False)
            nearest = torch.minimum(own.norm(dim=(1, 2)), theirs.norm(dim=(1, 2))).min()
            if float(nearest) < CLOSE or float(peaks.log_mass[kept[0]] - peaks.log_mass[index]) > 100:
                continue
        kept.append(index)
    return Peaks(peaks.location[kept], peaks.covariance[kept], peaks.log_mass[kept])
