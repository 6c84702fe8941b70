r"""Are K simulations draws of the densities that are said to have made them? A test by exchange.

For each theta_k, v_k0 is simulated and v_k1 .. v_kL are drawn from the density in question. If
that density is right the L + 1 are exchangeable, and any of them might have been the simulated
one: the p-value is exact, wherever theta_k came from, and however often it repeats (Hemerik and
Goeman 2018, https://arxiv.org/abs/1411.7565).

Features of a choice l_1 .. l_K are sums over k, in units of their standard deviation under exchange:

    marginal   sum_k P_j(u_kd)             j = 1..4: shift, width, skewness, tails (Neyman 1937)
    theta      sum_k P_j(u_kd) h(t_k)      j = 1, 2, h linear and quadratic: dependence on theta
    pairs      sum_k P_1(u_kd) P_1(u_ke)   correlation

with u the rank of v_kl among the L + 1, P_j Legendre polynomials, t whitened theta. Ranked are the
numbers v_d, their principal directions given theta (what is narrow beside a common offset), the
combinations from which theta is read, and the log density.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ORDERS = 4
MOST_NUMBERS = 64
"""Numbers above which only so many principal directions, the widest, are ranked."""
MOST_PAIRED = 24
"""Principal directions of which every pair is a feature."""
FAR = 10.0
"""Robust standard deviations at which residuals are held: one draw must not turn the directions."""
FIRST, MOST, ENOUGH = 200, 1_500, 10
"""Choices tried; the further ones only where fewer than ENOUGH of the first were as extreme."""
BATCH = 50
"""Choices whose features exist at once: 50 x 400 x 276 numbers are 44 MB."""


@dataclass(frozen=True)
class Whitened:
    """Residuals of simulated (l = 0) and drawn numbers, along principal directions.

    Attributes:
        residual: over the standard deviation given theta, held within FAR of it, (K, L + 1, E).
        center: median of the L + 1 along the same directions, (K, E).
        matrix: from v to those directions, (S, E).
    """

    residual: Tensor
    center: Tensor
    matrix: Tensor


def whitened(v: Tensor) -> Whitened:
    """Principal directions of v (K, L + 1, S) about the median over l; those of no width left out."""
    center = v.median(1).values
    residual = torch.nan_to_num(v - center[:, None], nan=0.0)
    # a median of zero (most draws tie) leaves the standard deviation
    width = residual.abs().flatten(0, 1).median(0).values / 0.6745
    width = torch.where(width > 0, width, residual.flatten(0, 1).clamp(-1e150, 1e150).std(0))
    varies = width > 0
    held = (residual[..., varies] / width[varies]).clamp(-FAR, FAR)
    flat = held.flatten(0, 1)
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    use = (values > 1e-10 * values.max()).nonzero()[:, 0].flip(0)[:MOST_NUMBERS] if len(values) else values.long()
    turn = vectors[:, use] / values[use].sqrt()
    matrix = v.new_zeros(v.shape[2], len(use))
    matrix[varies] = turn / width[varies, None]
    return Whitened(held @ turn, center @ matrix, matrix)


def whitened_theta(theta: Tensor) -> Tensor:
    """theta (K, T) to uncorrelated columns of variance 1, each as near its own as can be, (K, <= T).

    $t = z R^{-1/2}$, z standardised and R its correlations; constant columns are left out.
    """
    z = theta - theta.mean(0)
    spread = z.std(0)
    z = z[:, spread > 0] / spread[spread > 0]
    if not z.shape[1]:
        return z
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    scale = torch.where(values > 1e-10 * values.max(), values.clamp_min(1e-300).rsqrt(), 0.0)
    return z @ (vectors * scale) @ vectors.T


def exchange_p_value(v: Tensor, log_density: Tensor, theta: Tensor, *, generator: torch.Generator) -> float:
    r"""p-value of the hypothesis that v_k0 and v_k1 .. v_kL are draws of one density for each k.

    $p = (1 + \#\{T_b \le T_0\}) / (1 + B)$ over B random choices. T is the least of four tail
    probabilities: of the sums of squares of marginal, theta and pair features (chi-squared), and of
    the largest feature (Bonferroni). Only the ranking of T counts: what these approximations lack
    costs power, not validity.

    Args:
        v: simulated at l = 0, drawn at l >= 1, (K, L + 1, S).
        log_density: of each given theta_k, up to a constant of k, (K, L + 1).
        theta: (K, T); angles as sine and cosine.
        generator: on the device of v.
    """
    white = whitened(v)
    numbers = v if v.shape[2] <= MOST_NUMBERS else v[..., :0]
    turned = white.residual if v.shape[2] > 1 else v[..., :0]
    # of all L + 1 alike, or they were not exchangeable: what the data say of theta, to first order
    level = (white.center + white.residual.mean(1))[:, : turned.shape[2]]
    read = turned @ (level - level.mean(0)).T @ whitened_theta(theta)
    ranked = torch.cat([log_density[..., None], turned, read, numbers], dim=2)
    features = _Features.of(_legendre(_ranks(ranked, generator)), theta, min(turned.shape[2], MOST_PAIRED))
    count, size = v.shape[:2]
    observed = features.statistic(torch.zeros(1, count, dtype=torch.long, device=v.device))
    extreme = tried = 0
    for start in range(0, MOST, BATCH):
        if start == FIRST and extreme >= ENOUGH:
            break
        choice = torch.randint(size, (BATCH, count), generator=generator, device=v.device)
        extreme += int((features.statistic(choice) <= observed).sum())
        tried += BATCH
    return (1 + extreme) / (1 + tried)


def _ranks(values: Tensor, generator: torch.Generator) -> Tensor:
    """(rank + 1/2) / (L + 1) of values (K, L + 1, P) over l; equal ones in random order."""
    order = torch.rand(values.shape[:2], generator=generator, device=values.device).argsort(1)
    order = order[..., None].expand_as(values)
    ranks = values.gather(1, order).argsort(dim=1, stable=True).argsort(1).double()
    return (torch.empty_like(ranks).scatter_(1, order, ranks) + 0.5) / values.shape[1]


def _legendre(u: Tensor) -> Tensor:
    """P_1 .. P_4 of u in (0, 1), of mean 0 and variance 1 over it, (..., P) -> (..., P, 4)."""
    z = 2 * u - 1
    p = [z, (3 * z**2 - 1) / 2, (5 * z**3 - 3 * z) / 2, (35 * z**4 - 30 * z**2 + 3) / 8]
    return torch.stack([(2 * j + 1) ** 0.5 * q for j, q in enumerate(p, 1)], dim=-1)


@dataclass(frozen=True)
class _Features:
    """What is summed over k, centred over l, with the standard deviations of the sums.

    Attributes:
        marginal: (K, L + 1, A), A = P * ORDERS.
        slope: of those the first two orders, (K, L + 1, 2P).
        pairs: (K, L + 1, R).
        weight: what of theta multiplies slopes, (K, H).
        scale: one over the standard deviations of the sums, (A,), (2P, H) and (R,).
    """

    marginal: Tensor
    slope: Tensor
    pairs: Tensor
    weight: Tensor
    scale: tuple[Tensor, Tensor, Tensor]

    @staticmethod
    def of(scores: Tensor, theta: Tensor, paired: int) -> _Features:
        """Of scores (K, L + 1, P, ORDERS); paired are the first so many after the log density."""
        t = whitened_theta(theta).clamp(-4, 4)
        weight = torch.cat([t, t.square() - 1], dim=1)
        first = scores[..., 1 : 1 + paired, 0]
        i, j = torch.triu_indices(paired, paired, 1, device=scores.device)
        parts = [scores.flatten(2), scores[..., :2].flatten(2), first[..., i] * first[..., j]]
        marginal, slope, pairs = (p - p.mean(1, keepdim=True) for p in parts)
        variances = [marginal.square().mean(1).sum(0), slope.square().mean(1).T @ weight.square()]
        variances.append(pairs.square().mean(1).sum(0))
        scales = [torch.where(q > 1e-12, q.clamp_min(1e-12).rsqrt(), 0.0) for q in variances]
        return _Features(marginal, slope, pairs, weight, (scales[0], scales[1], scales[2]))

    def statistic(self, choice: Tensor) -> Tensor:
        """T of choices (B, K), (B,)."""
        rows = torch.arange(choice.shape[1], device=choice.device)
        sums = (
            self.marginal[rows, choice].sum(1) * self.scale[0],
            (torch.einsum("bka,kh->bah", self.slope[rows, choice], self.weight) * self.scale[1]).flatten(1),
            self.pairs[rows, choice].sum(1) * self.scale[2],
        )
        groups = [_upper(z.square().sum(1), z.shape[1]) for z in sums if z.shape[1]]
        largest = torch.cat(sums, 1).square()
        groups.append(largest.shape[1] * _upper(largest.max(1).values, 1))
        return torch.stack(groups).min(0).values


def _upper(chi_squared: Tensor, degrees: int) -> Tensor:
    """P(chi^2_degrees > chi_squared)."""
    half = torch.full_like(chi_squared, degrees / 2)
    return torch.special.gammaincc(half, chi_squared / 2)
