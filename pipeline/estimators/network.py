r"""q(theta given x) as one torch module.

    theta = T(v),   v = location(x) + scale(x) (shift + width u),   u ~ flow(context(x))

T maps onto the support of the prior; location and scale are the simulator's pilot; without one a linear regression where
that explains theta almost wholly (`linear_start`), 0 and 1 elsewhere; shift and width standardise the training set; context
is the embedding of x. Features and pilot that lie far outside the training set are held at a bound
(`estimators.standardize`), so that q stays near what it knows. For a periodic parameter v is an
angle, u is v turned by the pilot's location, and there is no scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from pipeline.estimators.embedding import Embedding
from pipeline.estimators.flow import ConditionalFlow
from pipeline.estimators.linear_start import LinearStart
from pipeline.estimators.standardize import BOUND, SAME, location_and_scale
from pipeline.estimators.support import SupportTransform, unconstrained_dimension
from pipeline.settings import EmbeddingSettings, FlowSettings
from simulators.priors import prior_of
from simulators.protocol import Simulator, network_features, pilot_of

BLOCK = 65_536
"""Points that go through the flow at once where there may be many: bounds memory."""


class NetworkInput(NamedTuple):
    """What the network reads of N observations: features (N, F), pilot location and scale (N, D)."""

    features: Tensor
    location: Tensor
    scale: Tensor

    def rows(self, index: Tensor | slice) -> NetworkInput:
        """Some of the N observations."""
        return type(self)(self.features[index], self.location[index], self.scale[index])


class PreparedInput(NetworkInput):
    """The same with features that are standardised and held already, as `PosteriorNetwork.prepared` gives them."""

    __slots__ = ()


class Condition(NamedTuple):
    """Everything about x that a draw needs: context (N, C), pilot location and scale (N, D)."""

    context: Tensor
    location: Tensor
    scale: Tensor


def network_input(simulator: Simulator, x: Mapping[str, Tensor]) -> NetworkInput:
    """Features as the simulator gives them, of which no digit is lost before they are standardised; pilot in float64."""
    features = network_features(simulator, x)
    features = features if features.is_floating_point() else features.double()
    dimension = unconstrained_dimension(prior_of(simulator))
    pilot = pilot_of(simulator, x, dimension=dimension)
    if pilot is None:
        zero = torch.zeros(len(features), dimension, dtype=torch.float64, device=features.device)
        return NetworkInput(features, zero, torch.ones_like(zero))
    location, scale = pilot[0].double(), pilot[1].double()
    angles = [d for d, p in enumerate(simulator.parameters) if p.periodic]
    if angles:
        scale = scale.clone()
        scale[:, angles] = 1.0
    return NetworkInput(features, location, scale)


class PosteriorNetwork(nn.Module):
    """The variational posterior, amortized over x.

    Args:
        prior: joint prior; q has its support.
        features: F, size of the network's input.
        flow, embedding: kinds and sizes.
        periodic: for each parameter, whether it is periodic; none by default.
        shape: of the features of one observation, for embeddings with structure.
        readout: numbers of a linear layer at the embedding's end, for one that is to be a summary.
    """

    refinable = True  # a copy of its flow can be trained further

    shift: Tensor
    width: Tensor
    pilot_low: Tensor
    pilot_high: Tensor

    def __init__(
        self,
        prior: Distribution,
        features: int,
        *,
        flow: FlowSettings,
        embedding: EmbeddingSettings,
        periodic: Sequence[bool] = (),
        shape: Sequence[int] = (),
        readout: int | None = None,
    ) -> None:
        super().__init__()
        self.support = SupportTransform(prior, periodic)
        self.dimension = self.support.dimension
        self.angles = [d for d, p in enumerate(periodic) if p]
        self.embedding = Embedding(features, embedding, shape=shape, readout=readout)
        # a summary has to say all that is known of theta: beside a regression it would leave that out
        self.start = None if readout else LinearStart(features, self.support)
        self.flow = ConditionalFlow(self.dimension, self.embedding.output, flow, periodic=periodic)
        self.register_buffer("shift", torch.zeros(self.dimension, dtype=torch.float64))
        self.register_buffer("width", torch.ones(self.dimension, dtype=torch.float64))
        for name, sign in (("pilot_low", -1), ("pilot_high", 1)):  # of location and of log scale
            self.register_buffer(name, torch.full((2, self.dimension), sign * torch.inf, dtype=torch.float64))

    def standardize(self, theta: Tensor, inputs: NetworkInput) -> None:
        """Fit shift, width and the standardisation of features to a training set.

        Median and half the 16-84 % range, which single outliers of the pilot cannot spoil.
        """
        self.embedding.standardize.fit(inputs.features)
        self._begin(theta, inputs)
        inputs = self.started(inputs)
        w = (self.support.to_unconstrained(theta.double()) - inputs.location) / inputs.scale
        low, middle, high = torch.quantile(
            w[:100_000], torch.tensor([0.16, 0.5, 0.84], dtype=w.dtype, device=w.device), dim=0
        )
        _, scale = location_and_scale(w)  # where most are one number, the width of all
        width = torch.where(scale > 0, 1 / scale, 1.0)
        self.shift.copy_(middle)
        self.width.copy_(torch.where(high > low, (high - low) / 2, width))
        self.shift[self.angles] = 0.0  # a circle has no end to be measured from, and no unit but the turn
        self.width[self.angles] = 1.0
        pilot = pilot_numbers(inputs)
        least, most = pilot.amin(0), pilot.amax(0)
        middle, half = (most + least) / 2, (most - least) / 2
        self.pilot_low.copy_(middle - BOUND * half)
        self.pilot_high.copy_(middle + BOUND * half)
        self.pilot_low[:, self.angles], self.pilot_high[:, self.angles] = -torch.inf, torch.inf

    def _begin(self, theta: Tensor, inputs: NetworkInput) -> None:
        """Fit the linear start to a training set that has no pilot."""
        if self.start is not None and bool((inputs.location == 0).all() & (inputs.scale == 1).all()):
            self.start.fit(theta, self.embedding.standardize(inputs.features).flatten(1))

    def started(self, inputs: NetworkInput) -> NetworkInput:
        """The inputs with location and scale of the linear start, where there is one."""
        if self.start is None or not self.start.begun:
            return inputs
        prepared = isinstance(inputs, PreparedInput)
        features = inputs.features if prepared else self.embedding.standardize(inputs.features)
        return type(inputs)(inputs.features, *self.start(features.flatten(1)))

    def condition(self, inputs: NetworkInput) -> Condition:
        """Embed x, once for all its draws; features and pilot are held at the bounds of what training saw."""
        inputs = self.started(inputs)
        low, high = self.pilot_low, self.pilot_high
        scale = inputs.scale.clamp(low[1].exp(), high[1].exp())
        context = self.embedding(inputs.features, standardized=isinstance(inputs, PreparedInput))
        return Condition(context, inputs.location.clamp(low[0], high[0]), scale)

    @torch.no_grad()
    def prepared(self, inputs: NetworkInput) -> PreparedInput:
        """What `condition` makes the same of, without standardising features anew at every step of training."""
        return PreparedInput(self.embedding.standardize(inputs.features), inputs.location, inputs.scale)

    @torch.no_grad()
    def held(self, inputs: NetworkInput) -> Tensor:
        """How many features and numbers of the pilot of each of N observations are held at a bound, (N,)."""
        pilot = pilot_numbers(self.started(inputs))
        beyond = (pilot - pilot.clamp(self.pilot_low, self.pilot_high)).abs() > pilot_rounding(pilot)
        return self.embedding.standardize.held(inputs.features) + beyond.sum((1, 2))

    def draw(
        self,
        condition: Condition,
        draws: int,
        *,
        generator: torch.Generator,
        path_gradient: bool = False,
        dtype: torch.dtype = torch.float32,
        base_scale: float = 1.0,
        part: tuple[int, int] = (0, 1),
    ) -> tuple[Tensor, Tensor]:
        r"""`draws` draws of theta for each observation, and their log_q.

        With `path_gradient` log_q depends on the parameters through theta alone: the score term, whose
        expectation is zero, is dropped, and the gradient vanishes when q is the posterior (Roeder, Wu and
        Duvenaud 2017, https://arxiv.org/abs/1703.09194).

        Args:
            condition: of N observations.
            draws: K.
            part: (r, R) where they are rows r, r + R, ... of R N, whose noise is drawn as a whole: a draw does not
                depend on how rows are shared out.

        Returns:
            theta (K, N, D) and log_q (K, N), in `dtype`.
        """
        context = condition.context
        rank, parts = part
        count = context.shape[0] * parts
        noise = self.flow.noise(draws * count, generator=generator, device=context.device, dtype=context.dtype)
        noise = noise.view(draws, count, self.dimension)[:, rank::parts]
        u, log_q = self.flow.sample_and_log_prob(noise, context, base_scale=base_scale)
        if path_gradient:
            fixed = {f"flow.{k}": p.detach() for k, p in self.flow.named_parameters()}
            log_q = functional_call(_LogProb(self.flow), fixed, (u, context.detach(), base_scale))
        u = u.to(dtype)
        scale = condition.scale.to(dtype) * self.width.to(dtype)
        v = condition.location.to(dtype) + condition.scale.to(dtype) * self.shift.to(dtype) + scale * u
        theta, log_det = self.support.to_theta(v)
        return theta, log_q.to(dtype) - log_det - scale.log().sum(-1)

    def log_q(self, theta: Tensor, condition: Condition, *, base_scale: float = 1.0) -> Tensor:
        """log q(theta given x), theta (..., N, D) -> (..., N), in the dtype of theta."""
        dtype = theta.dtype
        v = self.support.to_unconstrained(theta)
        scale = condition.scale.to(dtype) * self.width.to(dtype)
        u = (v - condition.location.to(dtype) - condition.scale.to(dtype) * self.shift.to(dtype)) / scale
        log_q = self.flow.log_prob(u.to(condition.context.dtype), condition.context, base_scale=base_scale)
        return log_q.to(dtype) - self.support.to_theta(v)[1] - scale.log().sum(-1)


def draw_in_blocks(
    network: PosteriorNetwork, condition: Condition, draws: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`network.draw` in float64 for many draws, at most BLOCK points at once: theta (K, N, D) and log_q (K, N)."""
    block = max(1, BLOCK // len(condition.context))
    parts = [
        network.draw(condition, min(block, draws - k), generator=generator, dtype=torch.float64)
        for k in range(0, max(draws, 1), block)
    ]
    theta, log_q = (torch.cat(p) for p in zip(*parts, strict=True))
    return theta, log_q


def pilot_numbers(inputs: NetworkInput) -> Tensor:
    """The pilot's location and the logarithm of its scale, (N, 2, D)."""
    return torch.stack([inputs.location, inputs.scale.log()], dim=1)


def pilot_rounding(pilot: Tensor) -> Tensor:
    """How far `pilot_numbers` may differ between machines, (N, 2, D): of the scale itself a share, of its logarithm that number."""
    location, log_scale = pilot.abs().unbind(1)
    return SAME[torch.float64] * torch.stack([location, log_scale.clamp_min(1.0)], dim=1)


class _LogProb(nn.Module):
    """`flow.log_prob` as a forward call, in which functional_call replaces parameters."""

    def __init__(self, flow: ConditionalFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, u: Tensor, context: Tensor, base_scale: float) -> Tensor:
        return self.flow.log_prob(u, context, base_scale=base_scale)
