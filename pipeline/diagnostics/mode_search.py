r"""A search for the optima of a joint density that starts from the prior, so that it can see what q cannot.

Many starts climb together, by Adam, the annealed density

    b log p(x|theta) + log p(w),     b from 0.003 to 1 in equal ratios over the first 70 % of the steps,

which lets them cross the valleys of the likelihood while they are shallow. Newton's method then brings the best of
them to their optima w_i, and each optimum gets the mass of a Gaussian that has its height and its curvature (Laplace),

    log Z_i = log p(x, w_i) + D/2 log 2 pi - 1/2 log det(-H_i),     H_i the Hessian at w_i.

A likelihood without a gradient is climbed by `particles` alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diagnostics.landscape import Landscape, Progress

LOWEST_POWER, ANNEALED = 0.003, 0.7
RATE, LAST_RATE = 0.1, 1e-3
"""Of Adam, in units of the prior's width: while annealing, and at the end."""
BETA = (0.9, 0.99)
SCREENED = 64
"""Draws of the prior whose likelihood is looked at for each start: 16,384 for 256 starts meet a basin of a 3,000th of the prior."""
TOP, TEMPERED = 0.125, 0.375
"""Shares of the starts: those of the largest likelihood; those drawn in proportion to a power of it. The rest are plain draws."""
TEMPERED_ESS = 0.05
POLISHED = 64
"""Ends of climbs that Newton's method takes up, those of the largest density."""
APART = (0.3, 0.02)
"""Least distance between two of them, in widths of the prior: for half of them, so that the climbs that ended beside the highest
optimum leave room for others; and for the rest."""
NEWTON_STEPS = 30
TRUST = 0.5
"""Longest step at first, in widths of the prior; four times as long after a step that gains what was foreseen."""
LEAST_PRECISION = 0.05
"""Of a direction in which an optimum is flat: no Gaussian is wider than 4.5 widths of the prior."""
SAME = 0.1
"""Squared distance in the metric of the better one, over D, below which two optima are one."""


VALLEY = 2.0
"""Nats between two optima that make them two."""


@dataclass(frozen=True)
class Optima:
    """Optima of log p(x, w), the best first.

    Attributes:
        w: (C, D).
        log_density: log p(x, w), (C,).
        covariance: inverse of -H, (C, D, D).
        log_mass: Laplace, (C,), nats.
    """

    w: Tensor
    log_density: Tensor
    covariance: Tensor
    log_mass: Tensor

    def __len__(self) -> int:
        return len(self.w)

    def rows(self, index: Tensor) -> Optima:
        """Some of them."""
        return Optima(self.w[index], self.log_density[index], self.covariance[index], self.log_mass[index])


def no_optima(landscape: Landscape) -> Optima:
    """None at all."""
    empty = landscape.center.new_zeros
    d = landscape.dimension
    return Optima(empty(0, d), empty(0), empty(0, d, d), empty(0))


def screen(landscape: Landscape, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`SCREENED` draws of the prior for each of `count` starts, and their log likelihood: w (K, D), (K,)."""
    w = landscape.draw_prior(SCREENED * count, generator)
    return w, landscape.parts(w)[0]


def choose_starts(w: Tensor, log_likelihood: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Starts (S, D) among screened draws w (K, D): the likeliest, likely ones, and any, none of likelihood zero."""
    usable = log_likelihood.isfinite()
    w, log_likelihood = w[usable], log_likelihood[usable]
    if len(w) <= count:
        return w
    power = _power_with_ess(log_likelihood, TEMPERED_ESS * len(w))
    uniform = torch.rand(len(w), generator=generator, device=w.device, dtype=torch.float64)
    gumbel = -(-uniform.clamp_min(1e-300).log()).log()
    by_power = (power * log_likelihood + gumbel).argsort(descending=True)
    top = log_likelihood.argsort(descending=True)[: int(TOP * count)]
    chosen = torch.cat([top, by_power[: int(TEMPERED * count)], torch.arange(count, device=w.device)])
    return w[_first_of_each(chosen)[:count]]


def _first_of_each(index: Tensor) -> Tensor:
    """Without repeats, in the order of their first appearance."""
    return torch.tensor(list(dict.fromkeys(index.tolist())), device=index.device)


def _power_with_ess(log_likelihood: Tensor, ess: float) -> float:
    """The largest b for which weights L^b leave `ess` draws effective."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        w = middle * (log_likelihood - log_likelihood.max())
        effective = float((2 * torch.logsumexp(w, 0) - torch.logsumexp(2 * w, 0)).exp())
        low, high = (middle, high) if effective >= ess else (low, middle)
    return low


def climb(
    landscape: Landscape, starts: Tensor, *, steps: int, informed: int = 0, advance: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """The best point that each climb met, w (S, D) and log p(x, w) (S,), from starts (S, D).

    A step to where the density is zero is taken back, and that climb goes on with half its rate.

    Args:
        informed: so many starts, the first, lie near a mode if there is one: they climb the density itself, since the prior would
            draw them out of a narrow basin while the likelihood is still faint.
    """
    w, best, value = starts.clone(), starts.clone(), torch.full_like(starts[:, 0], -torch.inf)
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    rate = torch.ones_like(value)
    good = w
    for step in range(steps):
        progress = step / steps
        power = LOWEST_POWER ** max(0.0, 1 - progress / ANNEALED)
        powers = torch.full_like(value, power)
        powers[:informed] = 1.0
        density, gradient = landscape.gradient(w, powers)
        lost = ~density.isfinite()
        w = torch.where(lost[:, None], good, w)
        good = w
        rate = torch.where(lost, 0.5 * rate, rate)
        better = density > value
        best, value = torch.where(better[:, None], w, best), torch.where(better, density, value)
        gradient = torch.where(lost[:, None], 0.0, gradient)
        first = torch.where(lost[:, None], 0.0, BETA[0] * first + (1 - BETA[0]) * gradient)
        second = BETA[1] * second + (1 - BETA[1]) * gradient.square()
        late = max(0.0, (progress - ANNEALED) / (1 - ANNEALED))
        size = RATE * (LAST_RATE / RATE) ** late / (1 - BETA[0] ** (step + 1))
        root = (second / (1 - BETA[1] ** (step + 1))).sqrt() + 1e-12
        w = w + size * rate[:, None] * first / root
        if advance:
            advance(1)
    return best, value


def find_optima(landscape: Landscape, w: Tensor, value: Tensor) -> Optima:
    """Optima near the best of points w (S, D) with log p(x, w) = value (S,), merged."""
    kept = value.isfinite()
    w, value = w[kept], value[kept]
    if not len(w):
        return no_optima(landscape)
    ordered = w[value.argsort(descending=True)]
    first = _apart(landscape, ordered[:0], ordered, APART[0], POLISHED // 2)
    chosen = _apart(landscape, first, ordered, APART[1], POLISHED)
    return _merged(landscape, polish(landscape, chosen))


def _apart(landscape: Landscape, taken: Tensor, w: Tensor, distance: float, most: int) -> Tensor:
    """Those that are taken, (T, D), and then each of w (S, D) that is `distance` from all before it, at most `most`."""
    kept = list(taken)
    for point in w:
        if len(kept) == most:
            break
        if all(float(landscape.distance(point, k).norm()) > distance for k in kept):
            kept.append(point)
    return torch.stack(kept)


def polish(landscape: Landscape, w: Tensor) -> Optima:
    """Newton's method from w (C, D), steps that lower the density taken back; the Hessian from differences of gradients."""
    count, dimension = w.shape
    step = w.new_full((count, dimension), 1e-4)
    damping, trust = w.new_full((count,), 1e-3), w.new_full((count, 1), TRUST)
    value, gradient = landscape.gradient(w)
    hessian = _hessian(landscape, w, step)
    for _ in range(NEWTON_STEPS):
        eigenvalue, vector = torch.linalg.eigh(-hessian)
        largest = eigenvalue.abs().amax(1, keepdim=True)
        curvature = eigenvalue.abs().clamp_min(LEAST_PRECISION) + damping[:, None] * largest
        move = (vector @ ((vector.mT @ gradient[..., None])[..., 0] / curvature)[..., None])[..., 0]
        move = move * (trust / torch.maximum(move.norm(dim=1, keepdim=True), trust))
        trial = w + move
        new_value, new_gradient = landscape.gradient(trial)
        better = new_value > value
        gain = torch.where(better, new_value - value, 0.0)
        foreseen = (move * gradient).sum(1) + 0.5 * (move[:, None] @ hessian @ move[..., None])[:, 0, 0]
        trust = trust * torch.where(gain > 0.5 * foreseen, 4.0, torch.where(better, 1.0, 0.25))[:, None]
        w, value = torch.where(better[:, None], trial, w), torch.where(better, new_value, value)
        gradient = torch.where(better[:, None], new_gradient, gradient)
        damping = (damping * torch.where(better, 0.1, 10.0)).clamp(1e-8, 1e3)
        width = 1 / hessian.diagonal(dim1=1, dim2=2).abs().clamp_min(LEAST_PRECISION).sqrt()
        step = (0.05 * width).clamp(1e-9, 0.05)
        hessian = _hessian(landscape, w, step)
        if not bool((better & (gain > 1e-3)).any() | (~better & (foreseen > 1e-2)).any()):
            break
    eigenvalue, vector = torch.linalg.eigh(-hessian)
    precision = eigenvalue.clamp_min(LEAST_PRECISION)
    covariance = (vector / precision[:, None]) @ vector.mT
    log_mass = value + 0.5 * (dimension * math.log(2 * math.pi) - precision.log().sum(1))
    return Optima(w, value, covariance, log_mass)


def _hessian(landscape: Landscape, w: Tensor, step: Tensor) -> Tensor:
    r"""$[g(w + h_d e_d) - g(w - h_d e_d)] / 2 h_d$, made symmetric, of points w (C, D) with steps h (C, D): (C, D, D)."""
    count, dimension = w.shape
    shift = torch.diag_embed(step)  # (C, D, D): one row for each direction
    around = torch.cat([w[:, None] + shift, w[:, None] - shift]).reshape(-1, dimension)
    up, down = landscape.gradient(around)[1].view(2, count, dimension, dimension)
    hessian = (up - down) / (2 * step[..., None])
    return torch.nan_to_num(0.5 * (hessian + hessian.mT))


def _connected(landscape: Landscape, optima: Optima, i: int, k: int) -> bool:
    """Whether the density does not fall by more than `VALLEY` between two optima: boxes of a flat likelihood have no width."""
    share = torch.tensor([[0.25], [0.5], [0.75]], dtype=optima.w.dtype, device=optima.w.device)
    between = optima.w[k] + share * landscape.distance(optima.w[i], optima.w[k])
    lowest = landscape.log_density(between).min()
    return bool(lowest > torch.minimum(optima.log_density[i], optima.log_density[k]) - VALLEY)


def _merged(landscape: Landscape, optima: Optima) -> Optima:
    """Without those that lie within `SAME` of a better one; the best first."""
    optima = optima.rows(optima.log_mass.argsort(descending=True))
    precision = torch.linalg.inv(optima.covariance)
    kept: list[int] = []
    for i in range(len(optima)):
        apart = True
        for k in kept:
            d = landscape.distance(optima.w[i], optima.w[k])
            near = float(d @ precision[k] @ d) < SAME * len(d)
            apart = apart and not (near and _connected(landscape, optima, i, k))
        if apart and bool(optima.log_mass[i].isfinite()):
            kept.append(i)
    return optima.rows(torch.tensor(kept, dtype=torch.long, device=optima.w.device))
