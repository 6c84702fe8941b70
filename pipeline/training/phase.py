"""One phase of the schedule as a Lightning module: loss, averaged weights, held-out checks under the guard."""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.network import Condition, PosteriorNetwork
from pipeline.objectives.elbo import Bound, elbo
from pipeline.objectives.forward_kl import forward_kl
from pipeline.objectives.iwelbo import iwelbo
from pipeline.objectives.wake import wake
from pipeline.rng import generator
from pipeline.settings import PhaseSettings, TrainSettings
from pipeline.training.averaging import follow
from pipeline.training.data import Source, TrainingSet
from pipeline.training.guard import Guard, held_out_figures
from pipeline.training.processes import ALONE, Processes
from simulators.priors import sample
from simulators.protocol import Simulator, log_likelihood

WARM_UP_STEPS = 100


class Phase(L.LightningModule):
    """Optimise one objective for a number of steps.

    Batches and noise of step t depend on (seed, phase, t) alone, so that a resumed phase equals an
    uninterrupted one. `averaged` follows the network as an exponential moving average; it is what is checked
    on held-out simulations. The best of it that passes the guard is what the phase delivers; where none does,
    the network from which the phase started. Several processes with the same network take each its own rows of every
    batch, and draw what a single one would draw for them.
    """

    def __init__(
        self,
        network: PosteriorNetwork,
        *,
        phase: PhaseSettings,
        index: int,
        settings: TrainSettings,
        seed: int,
        simulator: Simulator,
        prior: Distribution,
        training: Source,
        held_out: TrainingSet,
        guard: Guard,
        proposal: Distribution | None = None,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__()
        self.network = network
        self.averaged = copy.deepcopy(network).requires_grad_(False)
        self.best = copy.deepcopy(network).requires_grad_(False)
        self.guard = guard
        self.best_value = guard.start
        self.kept = False
        self.phase, self.index, self.settings, self.seed = phase, index, settings, seed
        self.simulator, self.prior, self.proposal = simulator, prior, proposal
        self.held_out = held_out
        self.processes = processes
        self.batches = training.batches(
            phase.batch, seed=seed, stage=f"train-{index}", processes=processes, with_x=phase.needs_likelihood
        )
        self.history: list[dict[str, float]] = []
        self.memory: Tensor
        remembered = training.true_theta() if phase.memory else None
        self.register_buffer("memory", torch.empty(0) if remembered is None else remembered.clone())
        self.register_buffer("refused", torch.zeros((), dtype=torch.long))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.long))
        self.recent: dict[str, Tensor] = {}

    # ------------------------------------------------------------ one step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rows = self.batches[self.global_step]
        stream = generator(self.seed, f"train-{self.index}", self.global_step, device=rows.theta.device)
        condition = self.network.condition(rows.inputs)
        self.recent = {}
        parts = [w * self._loss(name, rows, condition, stream).float() for name, w in self.phase.weights.items()]
        loss = torch.stack(parts).sum()
        self.recent = {k: v.detach() for k, v in (self.recent | {"loss": loss}).items()}
        return loss

    def _loss(self, objective: str, rows: TrainingSet, condition: Condition, stream: torch.Generator) -> Tensor:
        """What one objective minimises, on the rows of this step."""
        if objective == "forward_kl":
            log_q = self.network.log_q(rows.theta, condition)
            return forward_kl(log_q, rows.log_importance if self.phase.weighted else None, mean=self.processes.mean)
        if objective == "wake":
            return self._wake(rows, condition, stream)
        bound = self._bound(objective, rows, condition, stream)
        self.refused += self.processes.total(bound.refused)
        self.recent |= {"reconstruction": bound.reconstruction, "regularization": bound.regularization}
        self.recent["elbo"] = bound.reconstruction - bound.regularization
        return -bound.value

    def _bound(self, objective: str, rows: TrainingSet, condition: Condition, stream: torch.Generator) -> Bound:
        path = objective == "iwelbo" or self.phase.gradient == "sticking_the_landing"
        # float64: a time in days since 4713 BC has steps of a quarter of a day in float32
        theta, log_q = self.network.draw(
            condition,
            self.phase.draws,
            generator=stream,
            path_gradient=path,
            dtype=torch.float64,
            part=(self.processes.rank, self.processes.world),
        )
        bound = iwelbo if objective == "iwelbo" else elbo
        return bound(
            theta,
            log_q,
            log_likelihood=lambda t: log_likelihood(self.simulator, t, rows.x),
            log_prior=self.prior.log_prob,
            power=self._power(),
            mean=self.processes.mean,
        )

    def _wake(self, rows: TrainingSet, condition: Condition, stream: torch.Generator) -> Tensor:
        r"""Self-normalised forward KL at draws of q, a share of them from the prior (balance heuristic).

        With memory one more draw of each row is the theta that it remembers: at first the true one, afterwards one of the
        draws, taken in proportion to their weights. This move (iterated sampling importance resampling, Andrieu, Lee
        and Vihola 2018, https://arxiv.org/abs/1312.6432) leaves the posterior invariant; a chain that starts from an exact
        draw of it therefore stays exact, and the gradient has no bias, however poor q is (Markovian score
        climbing, Naesseth, Lindsten and Blei 2020, https://arxiv.org/abs/2003.10374).
        """
        from_prior = round(self.phase.prior_share * self.phase.draws)
        with torch.no_grad():
            fixed = Condition(*(t.detach() for t in condition))
            whole = len(rows) * self.processes.world
            part = (self.processes.rank, self.processes.world)
            theta, _ = self.network.draw(
                fixed, self.phase.draws - from_prior, generator=stream, dtype=torch.float64, part=part
            )
            if from_prior:
                prior_draws = sample(self.prior, from_prior * whole, stream).view(from_prior, whole, theta.shape[-1])
                theta = torch.cat([theta, self.processes.own(prior_draws, 1).to(theta)])
            if self.phase.memory:
                theta = torch.cat([self._remembered(rows)[None], theta])
        log_q = self.network.log_q(theta, condition)
        with torch.no_grad():
            log_prior = self.prior.log_prob(theta)
            joint = self._power() * log_likelihood(self.simulator, theta, rows.x) + log_prior
            source = log_q
            if from_prior:
                share = from_prior / self.phase.draws
                source = torch.logaddexp(log_q + math.log1p(-share), log_prior + math.log(share))
            log_weight = joint - source
            unusable = ~log_weight.isfinite()
            self.refused += self.processes.total(unusable.sum())
            if self.phase.memory and rows.numbers is not None:
                noise = -log_weight.new_empty(len(log_weight), whole).exponential_(generator=stream).log()
                chosen = (torch.where(unusable, -torch.inf, log_weight) + self.processes.own(noise, 1)).argmax(0)
                chosen = theta[chosen, torch.arange(len(rows), device=chosen.device)]
                self.memory[self.processes.gather(rows.numbers)] = self.processes.gather(chosen)
        return wake(log_q, log_weight, mean=self.processes.mean)

    def _remembered(self, rows: TrainingSet) -> Tensor:
        """A posterior draw of each row, (N, D): that of a fresh simulation is its own theta."""
        return rows.theta if rows.numbers is None else self.memory[rows.numbers]

    def _power(self) -> float:
        r"""Exponent of the likelihood, $\beta = \beta_0^{\max(0, 1 - 2t/T)}$."""
        remaining = max(0.0, 1 - 2 * self.global_step / self.phase.steps)
        return self.phase.temper_from**remaining

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm; a step whose gradient is not finite is left out and counted, without waiting for the device."""
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip)
        infinite = ~norm.isfinite()
        self.adam.found_inf = infinite.float()  # pyright: ignore[reportAttributeAccessIssue]  # as torch.amp tells it
        self.skipped += infinite

    def configure_optimizers(self) -> Any:
        self.adam = torch.optim.Adam(self.network.parameters(), lr=self.phase.learning_rate, fused=True)
        warm_up = min(WARM_UP_STEPS, self.phase.steps // 5 + 1)

        def factor(step: int) -> float:
            """Linear warm-up, then a cosine to a hundredth."""
            progress = min(1.0, step / self.phase.steps)
            return min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

        schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, factor)
        return {"optimizer": self.adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def after_step(self) -> None:
        """Follow the weights with their average; check it on held-out simulations when that is due.

        Called before a checkpoint is written: Lightning runs callbacks before a module's own hook, and a
        checkpoint without this step's average would not resume bit for bit.
        """
        step = self.global_step
        # a young average must not remember the start
        decay = min(self.settings.average, (1 + step) / (10 + step))
        follow(self.averaged, self.network, decay)
        if step % self.settings.check_every == 0 or step == self.phase.steps:
            self._check(step)

    # ------------------------------------------------------------ held-out simulations

    @torch.no_grad()
    def _check(self, step: int) -> None:
        """Append a row of the training log, and keep the best averaged weights that pass the guard."""
        row = {"phase": float(self.index), "step": float(step)}
        row |= {k: float(self.processes.mean(v)) for k, v in self.recent.items()}
        figures = None
        if self.processes.first:  # one speaks for all, so that they decide alike
            figures = held_out_figures(
                self.averaged, self.simulator, self.prior, self.held_out, seed=self.seed, proposal=self.proposal
            )
        row |= self.processes.from_first(figures)
        self.history.append(row)
        value = row[self.guard.criterion]
        if self.guard.passes(row) and value > self.best_value:
            self.best_value, self.kept = value, True
            self.best.load_state_dict(self.averaged.state_dict())
        if self.logger is not None:
            self.logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=step)

    @property
    def is_hopeless(self) -> bool:
        """Whether the last `patience` checks have all lost more than the guard allows."""
        last = self.history[-self.settings.guard.patience :]
        return len(last) == self.settings.guard.patience and not any(self.guard.keeps_modes(row) for row in last)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history
        checkpoint["best_value"] = self.best_value
        checkpoint["kept"] = self.kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]
        self.best_value = checkpoint["best_value"]
        self.kept = checkpoint["kept"]
