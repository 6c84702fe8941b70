r"""Distributions of theta given one block of observations, from which draws are weighted.

Amortized    q(theta|x)
Defensive    p(theta), which bounds the weights of a mixture that holds it
Mixture      sum_j a_j q_j(theta|x)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.copies import one_copy
from pipeline.estimators.importance import WeightedDraws
from pipeline.estimators.network import BLOCK, Condition, PosteriorNetwork
from simulators.priors import sample
from simulators.protocol import Simulator, log_likelihood


class Proposal(Protocol):
    """Draws with their density, for N observations at once."""

    def draw(self, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """theta (K, N, D), log_q (K, N) and the log_q of q itself (K, N), float64."""
        ...

    def log_q(self, theta: Tensor) -> Tensor:
        """(K, N, D) -> (K, N), float64."""
        ...

    def densities(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """log_q, and the log_q of q itself where this is a mixture that defends it, (K, N, D) -> (K, N) each."""
        ...

    def row(self, n: int) -> Proposal:
        """The same for observation n alone."""
        ...


def log_q_in_blocks(proposal: Proposal, theta: Tensor) -> Tensor:
    """log_q of theta (K, N, D), at most BLOCK points at once."""
    block = max(1, BLOCK // theta.shape[1])
    return torch.cat([proposal.log_q(part) for part in theta.split(block)])


@dataclass(frozen=True)
class Amortized:
    """q of a network at fixed observations, its base distribution N(0, base_scale^2 I).

    base_scale > 1 widens every tail of q: a defensive component of a mixture, which bounds the weights where
    the tails of q are lighter than the posterior's.
    """

    network: PosteriorNetwork
    condition: Condition
    base_scale: float = 1.0

    def draw(self, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        theta, log_q = self.network.draw(
            self.condition, draws, generator=generator, dtype=torch.float64, base_scale=self.base_scale
        )
        return theta, log_q, log_q

    def log_q(self, theta: Tensor) -> Tensor:
        return self.network.log_q(theta.double(), self.condition, base_scale=self.base_scale)

    def densities(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_q = self.log_q(theta)
        return log_q, log_q

    def row(self, n: int) -> Amortized:
        condition = Condition(*(t[n : n + 1] for t in self.condition))
        return Amortized(one_copy(self.network, n), condition, self.base_scale)


@dataclass(frozen=True)
class Defensive:
    r"""The prior p(theta) for each of `rows` observations.

    In a mixture with share a no weight exceeds $p(x|\theta) / a$ (Hesterberg 1995, https://doi.org/10.2307/1269620).
    """

    prior: Distribution
    rows: int

    def draw(self, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        theta = sample(self.prior, draws * self.rows, generator).double().unflatten(0, (draws, self.rows))
        log_q = self.log_q(theta)
        return theta, log_q, log_q

    def log_q(self, theta: Tensor) -> Tensor:
        return self.prior.log_prob(theta).double()

    def densities(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_q = self.log_q(theta)
        return log_q, log_q

    def row(self, n: int) -> Defensive:
        return Defensive(self.prior, 1)


@dataclass(frozen=True)
class Mixture:
    r"""$m(\theta|x) = \sum_j a_j q_j(\theta|x)$, each draw from a component chosen at random.

    Args:
        components: proposals for the same observations; the first is q itself, of which the certificate's ELBO and gap
            speak, and the others defend its weights.
        shares: a_j >= 0, which sum to one.
    """

    components: Sequence[Proposal]
    shares: Sequence[float]

    def draw(self, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        shares = torch.tensor(self.shares, dtype=torch.float64, device=generator.device)
        counts = (
            torch.multinomial(shares, draws, replacement=True, generator=generator)
            .bincount(minlength=len(shares))
            .tolist()
        )
        theta = torch.cat([c.draw(n, generator)[0] for c, n in zip(self.components, counts, strict=True) if n])
        order = torch.randperm(draws, generator=generator, device=generator.device)
        theta = theta[order]
        return theta, *self.densities(theta)

    def log_q(self, theta: Tensor) -> Tensor:
        return self.densities(theta)[0]

    def densities(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        first, itself = self.components[0].densities(theta)
        parts = [first, *(c.log_q(theta) for c in self.components[1:])]
        shared = [
            part + (math.log(a) if a > 0 else -math.inf)  # in float64: 0.9 in float32 is off by 2e-8
            for part, a in zip(parts, self.shares, strict=True)
        ]
        return torch.logsumexp(torch.stack(shared), 0), itself

    def row(self, n: int) -> Mixture:
        return Mixture([c.row(n) for c in self.components], self.shares)


@torch.no_grad()
def weigh(
    proposal: Proposal,
    simulator: Simulator,
    prior: Distribution,
    x: Mapping[str, Tensor],
    *,
    draws: int,
    generator: torch.Generator,
    batch: int = BLOCK,
    advance: Callable[[int], None] | None = None,
) -> WeightedDraws:
    """Draw from `proposal` and evaluate likelihood and prior, at most `batch` points at once.

    Args:
        x: the N observations of the proposal.
        draws: K, for each observation.
        advance: told how many of the K draws are done.
    """
    rows = len(next(iter(x.values())))
    step = max(1, batch // rows)
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        theta, log_q, log_q_itself = proposal.draw(count, generator)
        parts.append((theta, log_q, log_likelihood(simulator, theta, x), prior.log_prob(theta), log_q_itself))
        if advance:
            advance(count)
    return WeightedDraws(*(torch.cat(p).double() for p in zip(*parts, strict=True)))
