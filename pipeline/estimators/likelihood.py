r"""p(s given theta, c): an ensemble of conditional flows, and where it is not to be trusted.

    log p~(s|theta) = log (1/E) sum_e p_e(s|theta)  -  a relu( spread / spread_0 - 1 )^2  -  b relu( h - h_0 )

    spread(theta, s)  standard deviation of log p_e(s|theta) over the members e
    h(theta, s)       g(s) - log r(theta|s), r a flow of theta given s fitted to the training set by forward KL, and g its
                      mean log density at s, a regression: by how many nats that of theta lies below

spread_0 and h_0 are quantiles of both over held-out simulations. Those are draws of p(theta, s), as are draws of an exact
posterior: where q is the posterior, next to nothing is subtracted. An ELBO seeks out where p~ is too high; it is too high
only where no simulation was near, and there the members disagree, or r has no density.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from sbi.neural_nets.embedding_nets import FCEmbedding
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pipeline.estimators.flow import ConditionalFlow
from pipeline.estimators.network import BLOCK, Condition, NetworkInput, PosteriorNetwork
from pipeline.estimators.standardize import Standardize
from pipeline.estimators.summary import Summary, SummaryShape, numbers_of
from pipeline.likelihood_settings import LikelihoodSettings
from simulators.priors import IndependentPrior, prior_of
from simulators.protocol import Data, Simulator, pilot_of

LEVEL_WIDTH = 32
"""Of the network of g."""
SUMMARY, CONTEXT, EMBEDDED, LOCATION, SCALE, LEVEL = "summary", "context", "embedded", "location", "scale", "level"


class Density(nn.Module):
    """Log density of standardised s given conditions: a member of the ensemble.

    Args:
        size: S.
        theta: numbers of the standardised theta.
        context: numbers of observing conditions; 0 where there are none.
        settings: sizes of flow and context embedding.
    """

    def __init__(self, size: int, theta: int, context: int, settings: LikelihoodSettings) -> None:
        super().__init__()
        width = settings.context
        self.embedding = (
            FCEmbedding(context, output_dim=width, num_layers=2, num_hiddens=2 * width) if context else None
        )
        self.flow = ConditionalFlow(size, theta + (width if context else 0), settings.flow)

    def _condition(self, theta: Tensor, context: Tensor) -> Tensor:
        return theta if self.embedding is None else torch.cat([theta, self.embedding(context)], dim=-1)

    def log_prob(self, v: Tensor, theta: Tensor, context: Tensor) -> Tensor:
        """log density of v (M, S) given theta (M, T) and context (M, C), (M,)."""
        return self.flow.log_prob(v, self._condition(theta, context))

    def sample(self, theta: Tensor, context: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """v (draws, M, S)."""
        condition = self._condition(theta, context)
        noise = self.flow.noise(draws * len(theta), generator=generator, device=theta.device, dtype=theta.dtype)
        return self.flow.sample_and_log_prob(noise.view(draws, len(theta), -1), condition)[0]


class Coordinates(nn.Module):
    """theta as the flow of s reads it: sine and cosine of angles, the logarithm of what is half-bounded, standardised.

    An interval stays as it is: on its unconstrained form the ends, where many draws lie, would be infinitely far.

    Args:
        prior: of theta.
        periodic: for each parameter, whether it is.
    """

    low: Tensor

    def __init__(self, prior: Distribution, periodic: list[bool]) -> None:
        super().__init__()
        count = prior.event_shape[0]
        marginals = prior.marginals if isinstance(prior, IndependentPrior) else [None] * count
        self.register_buffer("low", torch.zeros(count, dtype=torch.float64))
        period = torch.ones(count, dtype=torch.float64)
        self.angles = [d for d in range(count) if periodic[d]]
        self.half_bounded: list[int] = []
        for d, marginal in enumerate(marginals):
            support: Any = None if marginal is None else marginal.support
            lower, upper = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
            if lower is not None:
                self.low[d] = float(lower)
                period[d] = 1.0 if upper is None else float(upper) - float(lower)
            if isinstance(support, (type(constraints.positive), type(constraints.nonnegative))):
                self.half_bounded.append(d)
        self.period: Tensor
        self.register_buffer("period", period, persistent=False)
        self.plain = [d for d in range(count) if d not in self.angles and d not in self.half_bounded]
        self.size = len(self.plain) + len(self.half_bounded) + 2 * len(self.angles)
        self.standardize = Standardize(self.size)

    def raw(self, theta: Tensor) -> Tensor:
        """(..., D) -> (..., T), float64."""
        theta = theta.double()
        parts = [theta[..., self.plain]]
        if self.half_bounded:
            parts.append((theta[..., self.half_bounded] - self.low[self.half_bounded]).clamp_min(1e-300).log())
        if self.angles:
            turn = 2 * torch.pi * (theta[..., self.angles] - self.low[self.angles]) / self.period[self.angles]
            parts += [turn.sin(), turn.cos()]
        return torch.cat(parts, dim=-1)

    def forward(self, theta: Tensor) -> Tensor:
        """Not held at a bound: the prior says where theta may be, the guard where it was simulated."""
        return self.standardize.standardized(self.raw(theta)).float()


@dataclass(frozen=True)
class LikelihoodShape:
    """What is needed to build a learned likelihood again, beside its settings.

    Attributes:
        summary: of s.
        context: numbers of observing conditions.
    """

    summary: SummaryShape
    context: int


class Judged(NamedTuple):
    """What the ensemble says of points (..., N), float64; nats.

    Attributes:
        members: log p_e(s given theta), (E, ..., N).
        spread: their standard deviation, 0 for one member.
        depth: h, by how much log r(theta given s) lies below its mean.
    """

    members: Tensor
    spread: Tensor
    depth: Tensor


class LikelihoodNetwork(nn.Module):
    """The learned likelihood of a simulator.

    Args:
        simulator: whose x it reads.
        shape: numbers read and made.
        settings: sizes, and the guard.
    """

    spread_level: Tensor
    depth_level: Tensor

    def __init__(self, simulator: Simulator, shape: LikelihoodShape, settings: LikelihoodSettings) -> None:
        super().__init__()
        self.simulator, self.shape, self.settings = simulator, shape, settings
        prior, periodic = prior_of(simulator), [p.periodic for p in simulator.parameters]
        self.summary = Summary(shape.summary, settings.summary, simulator)
        size = shape.summary.kept
        self.coordinates = Coordinates(prior, periodic)
        self.context = Standardize(shape.context)
        self.members = nn.ModuleList(
            new_density(size, self.coordinates.size, shape.context, settings) for _ in range(settings.members)
        )
        self.support = PosteriorNetwork(
            prior,
            size + shape.context,
            flow=settings.flow.model_copy(update={"kind": "coupling"}),
            embedding=settings.summary.embedding.model_copy(update={"kind": "mlp"}),
            periodic=periodic,
        )
        self.level = nn.Sequential(
            nn.Linear(self.support.embedding.output, LEVEL_WIDTH), nn.SiLU(), nn.Linear(LEVEL_WIDTH, 1)
        )
        self.register_buffer("spread_level", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("depth_level", torch.tensor(torch.inf, dtype=torch.float64))

    # ------------------------------------------------------------ what is read of x

    @torch.no_grad()
    def read(self, x: Mapping[str, Tensor]) -> Data:
        """All that likelihood and guard need of N observations: s, context standardised, and r's view of them."""
        s = self.summary(numbers_of(self.shape.summary.kind, self.simulator, x))
        context = context_numbers(self.simulator, x)
        condition = self.support.condition(self.support_input(s, context, x))
        return {
            SUMMARY: s,
            CONTEXT: self.context.standardized(context),
            EMBEDDED: condition.context,
            LOCATION: condition.location,
            SCALE: condition.scale,
            LEVEL: self.level(condition.context)[:, 0].double(),
        }

    def support_input(self, s: Tensor, context: Tensor, x: Mapping[str, Tensor]) -> NetworkInput:
        """What r reads: standardised s and context, and the simulator's pilot."""
        features = torch.cat([self.summary.standardized(s)[0], self.context.standardized(context)], dim=1)
        dimension = self.support.dimension
        location = torch.zeros(len(s), dimension, dtype=torch.float64, device=s.device)
        scale = torch.ones_like(location)
        pilot = pilot_of(self.simulator, x, dimension=dimension)
        if pilot is not None:
            location, scale = pilot[0].double(), pilot[1].double().clone()
            scale[:, self.support.angles] = 1.0
        return NetworkInput(features, location, scale)

    @torch.no_grad()
    def held(self, x: Mapping[str, Tensor]) -> Tensor:
        """How many numbers of context, and of what a learned summary reads, are held at a bound, (N,)."""
        numbers = numbers_of(self.shape.summary.kind, self.simulator, x)
        return self.context.held(context_numbers(self.simulator, x)) + self.summary.held(numbers)

    # ------------------------------------------------------------ densities

    def member_log_prob(self, theta: Tensor, read: Mapping[str, Tensor]) -> Tensor:
        r"""$\log p_e(s|\theta) = \log \frac{1}{J} \sum_j p_e(s + u_j|\theta)$, theta (..., N, D) -> (E, ..., N), float64.

        u_j are points of the unit cell of whole numbers; J = 1 and u = 0 where s is continuous.
        """
        cells = self.summary.cells(self.settings.dequantize)
        coordinates = self.coordinates(theta)
        context = self.context.bounded(read[CONTEXT])
        parts = [self._at(coordinates, read[SUMMARY] + u, context) for u in cells]
        return mixture(torch.stack(parts))

    def _at(self, coordinates: Tensor, s: Tensor, context: Tensor) -> Tensor:
        """One member a row: coordinates (..., N, T) and s (N, S) -> (E, ..., N)."""
        v, log_det = self.summary.standardized(s)
        leading = coordinates.shape[:-1]
        rows = coordinates.reshape(-1, coordinates.shape[-1])
        values = v.float().expand(*leading, -1).reshape(len(rows), -1)
        conditions = context.expand(*leading, -1).reshape(len(rows), -1)
        blocks = [
            torch.stack([member.log_prob(a, t, c) for member in self.members])  # pyright: ignore[reportCallIssue]
            for a, t, c in zip(values.split(BLOCK), rows.split(BLOCK), conditions.split(BLOCK), strict=True)
        ]
        return torch.cat(blocks, 1).double().view(len(self.members), *leading) + log_det

    def judge(self, theta: Tensor, read: Mapping[str, Tensor]) -> Judged:
        """Members, their spread, and how deep theta lies under the training set, at theta (..., N, D)."""
        members = self.member_log_prob(theta, read)
        spread = members.std(0) if len(members) > 1 else torch.zeros_like(members[0])
        condition = Condition(read[EMBEDDED], read[LOCATION], read[SCALE])
        return Judged(members, spread, read[LEVEL] - self.support.log_q(theta.double(), condition))

    def penalty(self, judged: Judged) -> Tensor:
        r"""What the guard subtracts: $a\, \mathrm{relu}(\mathrm{spread}/\mathrm{spread}_0 - 1)^2 + b\, \mathrm{relu}(h - h_0)$, (..., N)."""
        guard = self.settings.guard
        apart = (judged.spread / self.spread_level - 1).clamp_min(0).square()
        deep = (judged.depth - self.depth_level).clamp_min(0)
        return guard.spread_penalty * apart + guard.density_penalty * deep

    def is_outside(self, judged: Judged) -> Tensor:
        """Whether a point lies outside what was simulated: either figure above its level, (..., N)."""
        return (judged.spread > self.spread_level) | (judged.depth > self.depth_level)

    def log_likelihood(self, theta: Tensor, read: Mapping[str, Tensor]) -> Tensor:
        """log p~(s given theta), theta (..., N, D) -> (..., N), float64."""
        if not self.settings.guard.enabled:
            return mixture(self.member_log_prob(theta, read))
        judged = self.judge(theta, read)
        return mixture(judged.members) - self.penalty(judged)

    @torch.no_grad()
    def sample(self, theta: Tensor, read: Mapping[str, Tensor], draws: int, *, generator: torch.Generator) -> Tensor:
        """s (draws, N, S) of the ensemble given theta (N, D): each member gives an equal share; standardised."""
        coordinates = self.coordinates(theta)
        counts = [draws // len(self.members) + (e < draws % len(self.members)) for e in range(len(self.members))]
        parts = [
            member.sample(coordinates, self.context.bounded(read[CONTEXT]), n, generator)  # pyright: ignore[reportCallIssue]
            for member, n in zip(self.members, counts, strict=True)
            if n
        ]
        return torch.cat(parts).double()


def new_density(size: int, theta: int, context: int, settings: LikelihoodSettings) -> nn.Module:
    """A member of the ensemble, by the name of the estimator."""
    if settings.estimator == "sbi_nle":
        from pipeline.estimators.sbi_likelihood import SbiDensity

        return SbiDensity(size, theta, context)
    return Density(size, theta, context, settings)


def mixture(members: Tensor) -> Tensor:
    r"""$\log \frac{1}{E} \sum_e p_e$, (E, ...) -> (...): of densities, the log of their mean."""
    return torch.logsumexp(members, 0) - math.log(len(members))


def context_numbers(simulator: Simulator, x: Mapping[str, Tensor]) -> Tensor:
    """Observing conditions of N observations, flattened, (N, C), float64; C = 0 where there are none."""
    parts = [x[o.name].reshape(len(x[o.name]), -1).double() for o in simulator.observables if o.role == "context"]
    rows = next(iter(x.values()))
    return torch.cat(parts, dim=1) if parts else torch.zeros(len(rows), 0, dtype=torch.float64, device=rows.device)
