"""Learn a summary of x, the ensemble p(s given theta, context), and the flow r(theta given s) that guards it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.estimators.likelihood import LikelihoodNetwork, LikelihoodShape, context_numbers, mixture
from pipeline.estimators.network import NetworkInput, PosteriorNetwork
from pipeline.estimators.summary import (
    Summary,
    SummaryShape,
    chosen_kind,
    examine,
    fit_components,
    numbers_of,
    summary_size,
)
from pipeline.likelihood_settings import LikelihoodSettings
from pipeline.rng import derived_seed, generator
from pipeline.training.data import TrainingSet
from pipeline.training.joint_likelihood import JointData, JointNetworks, fit_joint
from pipeline.training.maximum_likelihood import Fitted, fit
from pipeline.training.prepared import prepared_input
from simulators.priors import prior_of
from simulators.protocol import Simulator, feature_shape

BLOCK = 16_384
"""Simulations whose summary is computed at once."""
LEVEL_STEPS = 1_500
LEAST = 20
"""Held-out simulations for early stopping, and as many for the levels of the guard, at least."""


@dataclass(frozen=True)
class Numbers:
    """N simulations as the likelihood reads them: theta (N, T), s (N, S) float64, context (N, C), all standardised but s."""

    theta: Tensor
    s: Tensor
    context: Tensor


@dataclass(frozen=True)
class Learned:
    """What stage `likelihood` has made.

    Attributes:
        network: frozen.
        held_out: mean log density of held-out simulations under each member, nats; of joint training the bound.
        steps: of summary, r, and each member.
        posterior: trained with it, if it was.
    """

    network: LikelihoodNetwork
    held_out: dict[str, float]
    steps: dict[str, int]
    posterior: PosteriorNetwork | None = None


@dataclass(frozen=True)
class Learner:
    """One case: simulations, settings, and what is told of progress.

    Attributes:
        simulator: with its own likelihood, if it has one, unused.
        training, watched: simulations that are learned from, and those on which learning is stopped.
        member: makes a trained member from an untrained one, or takes it from where an interrupted run left it.
        posterior: makes an untrained q of so many features, for joint training.
    """

    simulator: Simulator
    settings: LikelihoodSettings
    training: TrainingSet
    watched: TrainingSet
    seed: int
    advance: Callable[..., None] | None = None
    member: Callable[[int, nn.Module, Callable[[nn.Module], Fitted]], Fitted] = lambda e, network, make: make(network)
    posterior: Callable[[LikelihoodNetwork, int], PosteriorNetwork] | None = None

    def __post_init__(self) -> None:
        if len(self.watched) < LEAST:
            raise InputError(f"likelihood: needs {2 * LEAST} held-out simulations or more, raise simulate.held_out")

    @property
    def device(self) -> torch.device:
        return self.training.theta.device

    def learn(self, summary: Summary | None = None) -> Learned:
        """The learned likelihood; with `summary`, that of another model as it is."""
        steps: dict[str, int] = {}
        if summary is None:
            summary = self._new_summary(steps)
        context = context_numbers(self.simulator, self.training.rows(slice(1)).x).shape[1]
        network = self._seeded(
            "likelihood-initial",
            lambda: LikelihoodNetwork(self.simulator, LikelihoodShape(summary.shape, context), self.settings),
        )
        network.summary = summary
        if context:
            network.context.fit(_in_blocks(lambda rows: context_numbers(self.simulator, rows.x), self.training))
        network.coordinates.standardize.fit(network.coordinates.raw(self.training.theta))
        training, watched = self._numbers(network, self.training), self._numbers(network, self.watched)
        fitted = self._fit_support(network, training, watched)
        steps["support"] = fitted.steps
        if self.settings.joint.enabled:
            return self._learn_jointly(network, training, watched, steps)
        held_out = {}
        for e, member in enumerate(network.members):
            fitted = self.member(e, member, lambda m, e=e: self._fit_member(network, m, e, training, watched))
            steps[f"member {e}"], held_out[f"member {e}"] = fitted.steps, fitted.held_out
        return Learned(network.eval().requires_grad_(False), held_out, steps)

    def _learn_jointly(
        self, network: LikelihoodNetwork, training: Numbers, watched: Numbers, steps: dict[str, int]
    ) -> Learned:
        assert self.posterior is not None
        sets = []
        for numbers, data in ((training, self.training), (watched, self.watched)):
            compressed = network.summary.compresses  # q then reads what p~ knows
            inputs = _in_blocks_of_inputs(network, numbers, data) if compressed else data.inputs
            sets.append(JointData(_read(data, inputs), numbers.theta, numbers.s, numbers.context))
        build = self.posterior
        posterior = self._seeded("joint-initial", lambda: build(network, sets[0].rows.inputs.features.shape[1]))
        posterior.standardize(self.training.theta, sets[0].rows.inputs)
        networks = JointNetworks(network.members, posterior)
        fitted = self.member(
            0,
            networks,
            lambda _: fit_joint(networks, network, *sets, settings=self.settings, seed=self.seed, advance=self.advance),
        )
        steps["joint"] = fitted.steps
        return Learned(network.eval().requires_grad_(False), {"joint bound": fitted.held_out}, steps, posterior)

    # ------------------------------------------------------------ the summary

    def _new_summary(self, steps: dict[str, int]) -> Summary:
        kind = chosen_kind(self.settings.summary, self.simulator)
        numbers = numbers_of(kind, self.simulator, self.training.rows(slice(BLOCK)).x)
        read = numbers.shape[1]
        size = read if kind in ("none", "features") else min(summary_size(self.settings.summary, self.simulator), read)
        build = lambda kept: Summary(SummaryShape(kind, read, size, kept), self.settings.summary, self.simulator)  # noqa: E731
        summary = self._seeded("likelihood-summary", lambda: build(size))
        if kind == "learned":
            fitted = self._fit_embedding(summary)
            steps["summary"] = fitted.steps
        if kind == "pca":
            center, components = fit_components(numbers, size)
            summary.center.copy_(center)
            summary.components.copy_(components)
        given = _in_blocks(lambda rows: summary(numbers_of(kind, self.simulator, rows.x)), self.training)
        kept, whole = examine(self.simulator, kind, given)
        final = build(len(kept)).to(self.device)
        made = ("embedding.", "center", "components")
        carried = {k: v for k, v in summary.state_dict().items() if k.startswith(made)}
        final.load_state_dict(carried, strict=False)
        final.kept.copy_(kept)
        final.whole.copy_(whole)
        final.fit_scale(given[:, kept])
        return final.eval().requires_grad_(False)

    def _fit_embedding(self, summary: Summary) -> Fitted:
        """Forward KL through the embedding: its flow is left behind, what it read stays.

        The flow is not told the simulator's pilot: what it knew from there, s would not have to say.
        """
        network = self._seeded("likelihood-embedding", lambda: self._posterior_network(summary))
        training, watched = (_read(data, _without_pilot(data.inputs)) for data in (self.training, self.watched))
        network.standardize(training.theta, training.inputs)
        training = replace(training, inputs=prepared_input(training.inputs, network))
        fitted = fit(
            network,
            lambda n, rows, _: _forward_kl(n, training.rows(rows)),
            lambda n: float(-_forward_kl(n, watched)),
            rows=len(self.training),
            settings=self.settings,
            seed=self.seed,
            purpose="summary",
            device=self.device,
            advance=self.advance,
        )
        assert summary.embedding is not None
        summary.embedding.load_state_dict(network.embedding.state_dict())
        return fitted

    def _posterior_network(self, summary: Summary) -> PosteriorNetwork:
        return PosteriorNetwork(
            prior_of(self.simulator),
            summary.shape.read,
            flow=self.settings.flow.model_copy(update={"kind": "coupling"}),
            embedding=self.settings.summary.embedding,
            periodic=[p.periodic for p in self.simulator.parameters],
            shape=feature_shape(self.simulator),
            readout=summary.shape.given,
        )

    # ------------------------------------------------------------ densities

    def _numbers(self, network: LikelihoodNetwork, data: TrainingSet) -> Numbers:
        kind = network.shape.summary.kind
        return Numbers(
            network.coordinates(data.theta),
            _in_blocks(lambda rows: network.summary(numbers_of(kind, self.simulator, rows.x)), data),
            _in_blocks(lambda rows: network.context(context_numbers(self.simulator, rows.x)), data),
        )

    def _fit_support(self, network: LikelihoodNetwork, training: Numbers, watched: Numbers) -> Fitted:
        """r(theta given s, context), of the training set as it is: of its proposal, and of all its simulations."""
        inputs, watched_inputs = (
            _in_blocks_of_inputs(network, numbers, data)
            for numbers, data in ((training, self.training), (watched, self.watched))
        )
        sets = [
            TrainingSet(data.theta, {}, i, torch.zeros_like(data.theta[:, 0]))
            for data, i in ((self.training, inputs), (self.watched, watched_inputs))
        ]
        network.support.standardize(self.training.theta, inputs)
        fitted = fit(
            network.support,
            lambda n, rows, _: _forward_kl(n, sets[0].rows(rows)),
            lambda n: float(-_forward_kl(n, sets[1])),
            rows=len(self.training),
            settings=self.settings,
            seed=self.seed,
            purpose="support",
            device=self.device,
            advance=self.advance,
        )
        self._fit_level(network, sets)
        return fitted

    def _fit_level(self, network: LikelihoodNetwork, sets: list[TrainingSet]) -> None:
        """g(s), the mean of log r over theta: regressed on the simulations' own theta, each a draw given its s."""
        (context, log_r), (watched_context, watched_log_r) = (
            (network.support.condition(data.inputs).context, _each_in_blocks(network, data)) for data in sets
        )

        def mean(n: Any, contexts: Tensor, values: Tensor) -> Tensor:
            return nn.functional.smooth_l1_loss(n(contexts)[:, 0], values)

        few = self.settings.model_copy(update={"steps": min(self.settings.steps, LEVEL_STEPS), "weight_decay": 0.0})
        with torch.no_grad():
            network.level[-1].bias.fill_(float(log_r.median()))  # pyright: ignore[reportCallIssue]
        fit(
            network.level,
            lambda n, rows, _: mean(n, context[rows], log_r[rows]),
            lambda n: -float(mean(n, watched_context, watched_log_r)),
            rows=len(context),
            settings=few,
            seed=self.seed,
            purpose="level",
            device=self.device,
        )

    def _fit_member(
        self, network: LikelihoodNetwork, member: nn.Module, index: int, training: Numbers, watched: Numbers
    ) -> Fitted:
        summary = network.summary

        def mean(m: Any, numbers: Numbers, rows: Tensor | slice, stream: torch.Generator) -> Tensor:
            s = numbers.s[rows]
            v, log_det = summary.standardized(s + summary.noise(len(s), stream))
            return (m.log_prob(v.float(), numbers.theta[rows], numbers.context[rows]) + log_det).mean()

        @torch.no_grad()
        def held_out(m: nn.Module) -> float:
            stream = generator(self.seed, "likelihood-watched", device=self.device)
            return float(mean(m, watched, slice(None), stream))

        if self.settings.estimator == "sbi_nle":
            from pipeline.training.sbi_nle import train_nle

            conditions = torch.cat([training.theta, training.context], dim=1)
            most = math.ceil(self.settings.steps * self.settings.batch / len(training.s))
            seed = derived_seed(self.seed, "sbi-nle", index)
            return train_nle(member, summary, conditions, training.s, held_out, seed=seed, most_epochs=most)
        return fit(
            member,
            lambda m, rows, stream: -mean(m, training, rows, stream),
            held_out,
            rows=len(training.s),
            settings=self.settings,
            seed=self.seed,
            purpose=f"member {index}",
            device=self.device,
            advance=self.advance,
        )

    def _seeded(self, purpose: str, build: Callable[[], Any]) -> Any:
        """A network with weights drawn from the seed, on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, purpose))
            return build().to(self.device)


def _read(data: TrainingSet, inputs: NetworkInput) -> TrainingSet:
    """Simulations without x, of which batches then need no copy."""
    return replace(data, x={}, inputs=inputs)


def _without_pilot(inputs: NetworkInput) -> NetworkInput:
    """Features alone."""
    return inputs._replace(location=torch.zeros_like(inputs.location), scale=torch.ones_like(inputs.scale))


def _forward_kl(network: Any, rows: TrainingSet) -> Tensor:
    """-<log r(theta given x)> of the true theta."""
    return -network.log_q(rows.theta, network.condition(rows.inputs)).mean()


@torch.no_grad()
def _each_in_blocks(network: LikelihoodNetwork, data: TrainingSet) -> Tensor:
    """log r(theta given s) of each simulation, (N,), float32."""
    support = network.support
    log_r = _in_blocks(lambda rows: support.log_q(rows.theta, support.condition(rows.inputs)), data)
    return log_r.float()


@torch.no_grad()
def _in_blocks(function: Callable[[TrainingSet], Tensor], data: TrainingSet) -> Tensor:
    return torch.cat([function(data.rows(slice(i, i + BLOCK))) for i in range(0, len(data), BLOCK)])


@torch.no_grad()
def _in_blocks_of_inputs(network: LikelihoodNetwork, numbers: Numbers, data: TrainingSet) -> Any:
    """What r reads of simulations, whose pilot is known already."""
    context = _in_blocks(lambda rows: network.context.standardized(context_numbers(network.simulator, rows.x)), data)
    features = torch.cat([network.summary.standardized(numbers.s)[0], context], dim=1)
    return data.inputs._replace(features=features)


@torch.no_grad()
def set_levels(network: LikelihoodNetwork, data: TrainingSet) -> dict[str, float]:
    """Levels of the guard, from held-out simulations that nothing was stopped on; and their mean log density.

    Returns:
        `held_out_log_prob` of the mixture and `held_out_spread`, the mean spread, nats.
    """
    judged = network.judge(data.theta, network.read(data.x))
    guard = network.settings.guard
    if len(judged.members) > 1:
        network.spread_level.copy_(torch.quantile(judged.spread, guard.spread_level).clamp_min(1e-3))
    network.depth_level.copy_(torch.quantile(judged.depth, guard.density_level))
    return {"held_out_log_prob": float(mixture(judged.members).mean()), "held_out_spread": float(judged.spread.mean())}
