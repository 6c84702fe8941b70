r"""A search for the posterior mass that the delivered draws lack: what no weight of theirs can see.

Optima and particles that were found from the prior alone (`diagnostics.mode_search`, `diagnostics.particles`) make a
mixture g of Student t components. Its draws say where the posterior has mass of which the delivered mixture m has no draws,

    lacking  =  { w : p(x, w) / [m(w) p(x)]  >  K / 200 },     fewer than `SEEN` of K draws of m lie there,
    share    =  < p(x, w) / g(w) 1[w lacking] >_g  /  p(x).

A region that m knows of, however poorly, is none of these: its draws are there, and their weights say how good they are.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.baselines.evidence_check import StudentMixture, fit_mixture
from pipeline.diagnostics.landscape import Landscape
from pipeline.diagnostics.mode_search import Optima, choose_starts, climb, find_optima, no_optima, screen
from pipeline.diagnostics.particles import anneal
from pipeline.errors import InputError
from pipeline.estimators.importance import WeightedDraws
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Proposal, log_q_in_blocks
from pipeline.progress import progress_bar
from pipeline.rng import derived_seed, generator
from pipeline.search_settings import SearchSettings
from pipeline.stages.product import merged
from simulators.protocol import Data, candidates_of

LARGEST_SHARE = 1 / 200
"""Share of all weight above which a single draw would be a surprise: a region of such draws is lacking."""
SEEN = 20
"""Draws of m in a region from which their weights speak for it."""
WEIGHED = 4_000
"""Draws of g."""
KEPT_NATS = 12.0
"""Below the largest Laplace mass, beyond which an optimum is no component of g: 6e-6 of it."""
MOST_COMPONENTS = 40
ALONE = 4
"""Times as many particles where no climb is possible."""
PARTLY = 0.25
"""Of the starts, how many more are delivered draws of which one parameter is drawn anew from the prior."""


@dataclass(frozen=True)
class Fitted:
    """A mixture of Student t components in the coordinates of a landscape, as a proposal of theta for ONE observation."""

    mixture: StudentMixture
    landscape: Landscape

    def draw(self, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        w = torch.from_numpy(self.mixture.sample(draws, np.random.default_rng(seed))).to(self.landscape.center)
        theta = self.landscape.to_theta(w)[0][:, None]
        log_q = self.log_q(theta)
        return theta, log_q, log_q

    def log_q(self, theta: Tensor) -> Tensor:
        """(K, 1, D) -> (K, 1); an angle is summed over the turns that reach it."""
        w = self.landscape.to_real(theta[:, 0])
        log_det = self.landscape.to_theta(w)[1]
        shifted = [w]
        for d in self.landscape.angles:
            turn = torch.zeros_like(w[0])
            turn[d] = 2 * math.pi
            shifted = [s + k * turn for s in shifted for k in (-1, 0, 1)]
        parts = [torch.from_numpy(self.mixture.log_prob(s.cpu().numpy())).to(w) for s in shifted]
        return (torch.logsumexp(torch.stack(parts), 0) - log_det)[:, None]

    def densities(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_q = self.log_q(theta)
        return log_q, log_q

    def row(self, n: int) -> Fitted:
        return self


@dataclass(frozen=True)
class Found:
    """What a search of one observation found.

    Attributes:
        landscape: the joint density.
        optima: where the climbs ended.
        mixture: g; None where nothing was found.
        theta: draws of g, (n, 1, D).
        w: the same in the coordinates of the landscape, (n, D).
        log_joint: log p(x, w), (n,).
        log_g: (n,).
        starts: points from which it climbed.
        candidates: how many of them the simulator named.
    """

    landscape: Landscape
    optima: Optima
    mixture: StudentMixture | None
    theta: Tensor
    w: Tensor
    log_joint: Tensor
    log_g: Tensor
    starts: int
    candidates: int

    @property
    def log_weight(self) -> Tensor:
        """Of the draws of g, (n,)."""
        return torch.where(self.log_joint.isfinite(), self.log_joint - self.log_g, -torch.inf)


@dataclass(frozen=True)
class Lack:
    """Posterior mass that a proposal lacks.

    Attributes:
        share: of the posterior.
        where: theta of its likeliest point, (D,); None where nothing is lacking.
    """

    share: float
    where: Tensor | None = None


def search(
    posterior: Posterior,
    x: Data,
    delivered: WeightedDraws,
    met: Tensor | None = None,
    *,
    settings: SearchSettings,
    seed: int,
    index: int,
) -> Found:
    """Optima and particles of ONE observation, from starts in the prior, and the mixture that they make.

    Args:
        x: one row.
        delivered: weighted draws, (K, 1): some of them, with one parameter drawn anew from the prior, are further starts.
        met: theta of notable draws of any rung, (P, D): a spike that one draw of thousands has met.
        index: random numbers depend on (seed, "infer-search", index).
    """
    stream = generator(seed, "infer-search", index, device=posterior.device)
    landscape = Landscape(posterior.simulator, posterior.prior, x, generator=stream)
    levels = 40 if settings.particles else 0
    with progress_bar("search", settings.steps + levels) as advance, torch.no_grad():
        w, log_likelihood = screen(landscape, settings.starts, generator=stream)
        candidates = _candidates(landscape, x)
        met_before = landscape.starts[:0] if met is None else landscape.to_real(met)
        informed = torch.cat(
            [candidates, met_before, _partly_new(landscape, delivered, int(PARTLY * settings.starts), stream)]
        )
        starts = torch.cat([informed, choose_starts(w, log_likelihood, settings.starts, generator=stream)])
        climbs = len(starts) > 0 and landscape.is_differentiable(starts[:16])
        count = settings.particles * (1 if climbs else ALONE)
        particles = (
            anneal(landscape, w, log_likelihood, count, generator=stream, advance=advance)
            if settings.particles
            else w[:0]
        )
        optima = no_optima(landscape)
        if climbs:
            best, value = climb(landscape, starts, steps=settings.steps, informed=len(informed), advance=advance)
            some = particles[: len(particles) // 8]
            optima = find_optima(landscape, torch.cat([best, some]), torch.cat([value, landscape.log_density(some)]))
    mixture = _mixture_of(optima, particles, settings, seed=derived_seed(seed, "infer-search-fit", index))
    return _weighed(
        landscape, optima, mixture, len(starts), len(candidates), derived_seed(seed, "infer-search-weigh", index)
    )


def _candidates(landscape: Landscape, x: Data) -> Tensor:
    """w of the points that the simulator names, (C, D)."""
    theta = candidates_of(landscape.simulator, x)
    if theta is None:
        return landscape.starts[:0]
    return landscape.to_real(theta.to(landscape.center))


def _partly_new(landscape: Landscape, delivered: WeightedDraws, count: int, stream: torch.Generator) -> Tensor:
    """Delivered draws of which one parameter is that of a prior draw; mirrored in some parameters, or in all; with two exchanged.

    Another alias, the other sign, the other order of two planets: modes that many posteriors have, and that no prior draw meets
    where parameters are many.
    """
    weight = torch.softmax(torch.nan_to_num(delivered.log_weight[:, 0], nan=-torch.inf, posinf=-torch.inf), 0)
    if not count or not bool(weight.isfinite().all()):
        return landscape.starts[:0]
    index = torch.multinomial(weight, count, replacement=True, generator=stream)
    w = landscape.to_real(delivered.theta[index, 0])
    new = landscape.draw_prior(count, stream)
    dimension, device = landscape.dimension, w.device
    which = torch.randint(dimension, (count, 1), generator=stream, device=device)
    redrawn = torch.where(torch.arange(dimension, device=device) == which, new, w)
    some = w[: count // 2]
    mirrored = torch.where(torch.rand(some.shape, generator=stream, device=device) < 0.5, -some, some)
    order = torch.rand(some.shape, generator=stream, device=device).argsort(1)[:, :2]  # two parameters of each
    exchanged = some.scatter(1, order, some.gather(1, order.flip(1)))
    return torch.cat([redrawn, -some[: count // 4], mirrored, exchanged])


def _mixture_of(optima: Optima, particles: Tensor, settings: SearchSettings, *, seed: int) -> StudentMixture | None:
    """Student t components at the optima, in proportion to the root of their mass, and a fit to the particles."""
    parts: list[StudentMixture] = []
    kept = (optima.log_mass > optima.log_mass.amax() - KEPT_NATS).nonzero()[:, 0] if len(optima) else []
    if len(kept):
        some = optima.rows(torch.as_tensor(kept)[:MOST_COMPONENTS])
        weight = torch.softmax(0.5 * some.log_mass, 0)
        factor = settings.widening * torch.linalg.cholesky(some.covariance)
        parts.append(StudentMixture(*(t.cpu().numpy() for t in (weight, some.w, factor))))
    points = particles.cpu().numpy()
    if len(points) >= 200 and (points.std(0) > 0).all():
        with suppress(InputError, ValueError):  # particles that coincide have no covariance: the optima are left
            parts.append(fit_mixture(points, rng=np.random.default_rng(seed)))
    return merged(parts, [1 / len(parts)] * len(parts)) if parts else None


def _weighed(
    landscape: Landscape, optima: Optima, mixture: StudentMixture | None, starts: int, candidates: int, seed: int
) -> Found:
    """Draws of g with their densities."""
    count = WEIGHED if mixture else 0
    stream = torch.Generator(landscape.center.device).manual_seed(seed)
    if mixture is None:
        w, theta, log_g = (
            landscape.starts[:0],
            landscape.to_theta(landscape.starts[:0])[0][:, None],
            landscape.starts[:0, 0],
        )
    else:
        theta, log_q, _ = Fitted(mixture, landscape).draw(count, stream)
        w = landscape.to_real(theta[:, 0])
        log_g = log_q[:, 0] + landscape.to_theta(w)[1]
    return Found(
        landscape, optima, mixture, theta, w, landscape.log_density(w) if count else log_g, log_g, starts, candidates
    )


# ---------------------------------------------------------------- what is lacking


def lack_of(found: Found, proposal: Proposal, log_evidence: float, draws: int) -> Lack:
    """The share of the posterior that `draws` draws of a proposal for this observation lack, as far as the search knows.

    Args:
        log_evidence: as estimated from those draws: the evidence of what they cover; may be -inf.
    """
    by_draws = _lack_by_draws(found, proposal, log_evidence, draws)
    by_optima = _lack_by_optima(found, proposal, log_evidence, draws)
    return max(by_draws, by_optima, key=lambda lack: lack.share)


def _lack_by_draws(found: Found, proposal: Proposal, log_evidence: float, draws: int) -> Lack:
    """By the draws of g, with weights p(x, w) / g(w)."""
    if not len(found.w):
        return Lack(0.0)
    log_m = _log_density(found, proposal, found.theta, found.w)
    return lack_by_weights(
        found.theta, found.log_joint, found.log_weight, log_m - found.log_g, log_m, log_evidence, draws
    )


def lack_by_weights(
    theta: Tensor,
    log_joint: Tensor,
    log_weight: Tensor,
    log_ratio: Tensor,
    log_m: Tensor,
    log_evidence: float,
    draws: int,
) -> Lack:
    """See the module: of n draws of any g, with `log_weight` = log p(x, w) / g(w) and `log_ratio` = log m(w) / g(w), (n,) each."""
    lacking = log_joint - log_m - log_evidence > math.log(max(draws * LARGEST_SHARE, 1.0))
    lacking = lacking & log_weight.isfinite()
    if not bool(lacking.any()):
        return Lack(0.0)
    count = len(log_weight)
    log_mass = float(torch.logsumexp(log_weight[lacking], 0)) - math.log(count)
    log_seen = float(torch.logsumexp(log_ratio[lacking], 0)) - math.log(count) + math.log(draws)
    if log_seen > math.log(SEEN):
        return Lack(0.0)
    best = torch.where(lacking, log_joint, -torch.inf).argmax()
    return Lack(_share(log_mass, log_evidence), theta[best, 0])


def _lack_by_optima(found: Found, proposal: Proposal, log_evidence: float, draws: int) -> Lack:
    """By the Laplace masses of the optima: g may have too few draws near one of them."""
    optima = found.optima
    if not len(optima):
        return Lack(0.0)
    theta = found.landscape.to_theta(optima.w)[0][:, None]
    log_m = _log_density(found, proposal, theta, optima.w)
    surprise = optima.log_density - log_m - log_evidence > math.log(max(draws * LARGEST_SHARE, 1.0))
    log_seen = log_m + optima.log_mass - optima.log_density + math.log(draws)
    lacking = surprise & (log_seen < math.log(SEEN))
    if not bool(lacking.any()):
        return Lack(0.0)
    best = torch.where(lacking, optima.log_mass, -torch.inf).argmax()
    return Lack(_share(float(optima.log_mass[best]), log_evidence), theta[best, 0])


def _log_density(found: Found, proposal: Proposal, theta: Tensor, w: Tensor) -> Tensor:
    """log m in the coordinates of the landscape, theta (n, 1, D) -> (n,); -inf where it is not a number."""
    log_q = log_q_in_blocks(proposal, theta)[:, 0].double() + found.landscape.to_theta(w)[1]
    return torch.nan_to_num(log_q, nan=-torch.inf)


def _share(log_mass: float, log_evidence: float) -> float:
    """Of a mass beside the evidence of everything else."""
    return 1.0 if log_evidence == -math.inf else 1 / (1 + math.exp(min(log_evidence - log_mass, 700.0)))


def with_twins(mixture: StudentMixture, angles: list[int]) -> StudentMixture:
    """Components whose angle reaches over the cut at pi stand a second time, a turn away: half of each is inside."""
    for d in angles:
        width = np.sqrt((mixture.cholesky[:, d] ** 2).sum(-1))
        over = np.abs(mixture.mean[:, d]) + 3 * width > np.pi
        if over.any():
            mean = mixture.mean[over].copy()
            mean[:, d] -= 2 * np.pi * np.sign(mean[:, d])
            twin = StudentMixture(mixture.weight[over] / mixture.weight[over].sum(), mean, mixture.cholesky[over])
            share = float(mixture.weight[over].sum())
            mixture = merged([mixture, twin], (1 / (1 + share), share / (1 + share)))
    return mixture


Array = NDArray[np.float64]


def log_joint_within(landscape: Landscape, w: Array) -> Array:
    """log p(x, w) of w (K, D), -inf outside one turn of an angle, for a mixture that knows of no turns."""
    points = torch.from_numpy(np.ascontiguousarray(w)).to(landscape.center)
    values = landscape.log_density(points)
    for d in landscape.angles:
        values = torch.where(points[:, d].abs() > math.pi, -torch.inf, values)
    return values.cpu().numpy()
