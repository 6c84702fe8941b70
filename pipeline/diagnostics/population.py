r"""Likelihood of a population from the posterior draws of its members, and how far it can be trusted.

    log L(lambda) = sum_n [ log Z_n + log (1/S) sum_s w_ns ],     w_ns = p(theta_ns | lambda) / p(theta_ns)

theta_ns: S draws of the posterior of observation n under the prior p(theta), Z_n its evidence (Hogg, Myers and Bovy 2010,
https://arxiv.org/abs/1008.4146). The sum over draws is importance sampling, with

    ess_n(lambda) = (sum_s w_ns)^2 / sum_s w_ns^2,     Var[log L] = sum_n ( 1/ess_n - 1/S )

(Farr 2019, https://arxiv.org/abs/1904.10879; Talbot and Golomb 2023, https://arxiv.org/abs/2304.06138). A draw that stands m
times among the S is one draw of m times the weight: both figures are multiplied by what that leaves, S / sum_k m_k^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Uniform

from simulators.priors import distribution_from_spec

BLOCK = 1 << 17
"""Numbers in a temporary array: 1 MB of float64 stays in a core's cache, 4.3 ns a density against 37 ns at 16 times as many."""


@dataclass(frozen=True)
class Family:
    """The population of one parameter: a family, its arguments columns of lambda or fixed numbers.

    Attributes:
        build: distribution class, arguments in the order of its specification.
        arguments: index of a hyperparameter (int), or a number (float).
        domain: where the family has a density for any arguments; None where that depends on them.
        interior: a point of the domain.
    """

    build: Callable[..., Distribution]
    arguments: tuple[int | float, ...]
    domain: Any
    interior: float

    def at(self, hyper: Tensor) -> tuple[Distribution, Tensor]:
        """The distribution for each of W rows of lambda (W, H), shape (W, 1, 1), and which are valid, (W,)."""
        values = [hyper[:, a] if isinstance(a, int) else torch.full_like(hyper[:, 0], a) for a in self.arguments]
        valid = torch.ones(len(hyper), dtype=torch.bool, device=hyper.device)
        if self.domain is None:  # uniform, whose numbers bound each other
            valid = values[0] < values[1]
        else:
            checked: dict[str, Any] = getattr(self.build, "arg_constraints", {})
            for value, constraint in zip(values, checked.values(), strict=True):
                valid = valid & constraint.check(value)
        safe = [torch.where(valid, v, float(i + 1)) for i, v in enumerate(values)]
        return self.build(*(v[:, None, None] for v in safe), validate_args=False), valid


def family_from(name: str, arguments: Sequence[float | str], hyperparameters: Sequence[str]) -> Family:
    """A family by its name in `simulators.priors`, its arguments numbers or names of hyperparameters."""
    example = distribution_from_spec({name: [float(i + 1) for i in range(len(arguments))]}, "population")
    indices = tuple(hyperparameters.index(a) if isinstance(a, str) else float(a) for a in arguments)
    return Family(
        type(example), indices, None if isinstance(example, Uniform) else example.support, float(example.mean)
    )


@dataclass(frozen=True)
class Catalogue:
    """Posterior draws of N observations, as far as a population speaks of them.

    Attributes:
        theta: by parameter, (N, S) float64 each.
        log_prior: log p(theta_ns) of these parameters together, (N, S).
        log_evidence: log Z_n, (N,).
        distinct: S / sum_k m_k^2 of draws that stand m_k times, (N,): 1 where none is repeated.
    """

    theta: Mapping[str, Tensor]
    log_prior: Tensor
    log_evidence: Tensor
    distinct: Tensor


def distinct_share(theta: Tensor) -> Tensor:
    r"""$S / \sum_k m_k^2$ for draws (N, S) of which the k-th distinct one stands $m_k$ times, (N,)."""
    ordered = theta.sort(dim=1).values
    shares = []
    for row in ordered:
        counts = torch.unique_consecutive(row, return_counts=True)[1].double()
        shares.append(len(row) / counts.square().sum())
    return torch.stack(shares)


class PopulationLikelihood:
    """The estimate of log L and its diagnostics, for W values of lambda at once, in blocks over observations.

    Args:
        families: by parameter.
        catalogue: draws of every observation.
    """

    def __init__(self, families: Mapping[str, Family], catalogue: Catalogue) -> None:
        self.families, self.catalogue = dict(families), catalogue
        self.count, self.draws = catalogue.log_prior.shape
        self._constant = float(catalogue.log_evidence.sum())
        self._inside = {
            name: f.domain.check(catalogue.theta[name]) for name, f in families.items() if f.domain is not None
        }

    def log_likelihood(self, hyper: Tensor) -> Tensor:
        """log L in nats, lambda (W, H) -> (W,); -inf where lambda is invalid or an observation has no draw left."""
        total = torch.full((len(hyper),), self._constant, dtype=torch.float64)
        for rows in self._blocks(len(hyper)):
            top, weight = self._weights(hyper, rows)
            total += (top + weight.sum(-1).log() - math.log(self.draws)).sum(-1)
        return torch.where(torch.isnan(total) | ~self._valid(hyper), -torch.inf, total)

    def ess(self, hyper: Tensor) -> Tensor:
        r"""$\mathrm{ess}_n$ for each lambda, repeats counted once, (W, H) -> (W, N)."""
        parts = []
        for rows in self._blocks(len(hyper)):
            _, weight = self._weights(hyper, rows)
            total, square = weight.sum(-1), weight.square_().sum(-1)
            parts.append(torch.where(square > 0, total.square() / square, 0.0) * self.catalogue.distinct[rows])
        return torch.cat(parts, dim=1)

    def variance(self, ess: Tensor) -> Tensor:
        r"""$\mathrm{Var}[\log L] = \sum_n (1/\mathrm{ess}_n - 1/S_n)$, $S_n$ the distinct draws, (W, N) -> (W,)."""
        return (1 / ess - 1 / (self.draws * self.catalogue.distinct)).clamp_min(0).sum(-1)

    def _valid(self, hyper: Tensor) -> Tensor:
        valid = torch.ones(len(hyper), dtype=torch.bool)
        for family in self.families.values():
            valid = valid & family.at(hyper)[1]
        return valid

    def _blocks(self, walkers: int) -> list[slice]:
        step = max(1, BLOCK // (walkers * self.draws))
        return [slice(n, min(n + step, self.count)) for n in range(0, self.count, step)]

    def _weights(self, hyper: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Largest log w_ns (W, N) and w_ns over its exponential (W, N, S), of some observations."""
        log_weight = -self.catalogue.log_prior[rows].expand(len(hyper), -1, -1)
        for name, family in self.families.items():
            distribution, _ = family.at(hyper)
            theta = self.catalogue.theta[name][rows]
            inside = self._inside[name][rows] if name in self._inside else None
            if inside is None or bool(inside.all()):
                log_weight = log_weight + distribution.log_prob(theta)
            else:
                density = distribution.log_prob(torch.where(inside, theta, family.interior))
                log_weight = log_weight + torch.where(inside, density, -torch.inf)
        top = log_weight.amax(-1)
        shift = torch.where(top.isfinite(), top, 0.0)
        return top, log_weight.sub_(shift[..., None]).exp_()
