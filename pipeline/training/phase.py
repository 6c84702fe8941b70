"""One phase of the schedule as a Lightning module: loss, averaged weights, held-out checks."""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.config import PhaseSettings, TrainSettings
from pipeline.estimators.importance import WeightedDraws, ess_fraction, log_evidence
from pipeline.estimators.network import PosteriorNetwork
from pipeline.objectives.elbo import Bound, elbo
from pipeline.objectives.forward_kl import forward_kl
from pipeline.rng import generator
from pipeline.training.averaging import follow
from pipeline.training.data import Batches, TrainingSet
from simulators.protocol import Simulator, has_likelihood, log_likelihood

HELD_OUT_DRAWS = 256
WARM_UP_STEPS = 100
CRITERION = {"forward_kl": "held_out_forward_log_q", "elbo": "held_out_elbo"}


class Phase(L.LightningModule):
    """Optimise one objective for a number of steps.

    Batches and noise of step t depend on (seed, phase, t) alone, so that a resumed phase equals an
    uninterrupted one. `averaged` follows the network as an exponential moving average; it is what is checked
    on held-out simulations, and the best of it is what the phase delivers.
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
        training: TrainingSet,
        held_out: TrainingSet,
    ) -> None:
        super().__init__()
        self.network = network
        self.averaged = copy.deepcopy(network).requires_grad_(False)
        self.best = copy.deepcopy(network).requires_grad_(False)
        self.best_value = -math.inf
        self.phase, self.index, self.settings, self.seed = phase, index, settings, seed
        self.simulator, self.prior = simulator, prior
        self.training_rows, self.held_out = training, held_out
        self.batches = Batches(
            len(training), phase.batch, seed=seed, stage=f"train-{index}", device=training.theta.device
        )
        self.history: list[dict[str, float]] = []
        self.register_buffer("refused", torch.zeros((), dtype=torch.long))
        self.recent: dict[str, Tensor] = {}

    # ------------------------------------------------------------ one step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        step = self.global_step
        rows = self.training_rows.rows(self.batches[step])
        stream = generator(self.seed, f"train-{self.index}", step, device=self.device)
        condition = self.network.condition(rows.inputs)
        share = 1.0 if self.phase.objective == "forward_kl" else self.phase.forward_kl_share
        loss = torch.zeros((), device=self.device)
        self.recent = {}
        if share > 0:
            log_q = self.network.log_q(rows.theta, condition)
            weights = rows.log_importance.float() if self.phase.weighted else None
            loss = loss + share * forward_kl(log_q.float(), weights)
        if share < 1:
            bound = self._bound(rows, condition, stream)
            loss = loss - (1 - share) * bound.elbo.float()
            self.refused += bound.refused
            self.recent = {
                "elbo": bound.elbo,
                "reconstruction": bound.reconstruction,
                "regularization": bound.regularization,
            }
        self.recent = {k: v.detach() for k, v in (self.recent | {"loss": loss}).items()}
        return loss

    def _bound(self, rows: TrainingSet, condition: Any, stream: torch.Generator) -> Bound:
        path = self.phase.gradient == "sticking_the_landing"
        # float64: a time in days since 4713 BC has steps of a quarter of a day in float32
        theta, log_q = self.network.draw(
            condition, self.phase.draws, generator=stream, path_gradient=path, dtype=torch.float64
        )
        x = rows.x
        return elbo(
            theta,
            log_q,
            log_likelihood=lambda t: log_likelihood(self.simulator, t, x),
            log_prior=self.prior.log_prob,
        )

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.phase.learning_rate)

        def factor(step: int) -> float:
            """Linear warm-up, then a cosine to a hundredth."""
            progress = min(1.0, step / self.phase.steps)
            return min(1.0, (step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

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
        """Append a row of the training log, and keep the best averaged weights."""
        row = {"phase": float(self.index), "step": float(step)}
        row |= {k: float(v) for k, v in self.recent.items()}
        row |= held_out_figures(self.averaged, self.simulator, self.prior, self.held_out, seed=self.seed)
        self.history.append(row)
        value = row[CRITERION[self.phase.objective]]
        if value > self.best_value:
            self.best_value = value
            self.best.load_state_dict(self.averaged.state_dict())
        if self.logger is not None:
            self.logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history
        checkpoint["best_value"] = self.best_value

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]
        self.best_value = checkpoint["best_value"]


@torch.no_grad()
def held_out_figures(
    network: PosteriorNetwork, simulator: Simulator, prior: Distribution, held_out: TrainingSet, *, seed: int
) -> dict[str, float]:
    r"""What simulations that were not trained on say of q.

    `held_out_forward_log_q` is the mean log q of the true theta: the one figure that sees a lost mode. Where
    theta came from a proposal it is weighted by prior / proposal. With a likelihood also the held-out
    ELBO, its two terms, the gap to the evidence as 256 draws estimate it (a lower bound where weights vary
    much), and mean and median of the ESS fraction.
    """
    condition = network.condition(held_out.inputs)
    log_q = network.log_q(held_out.theta, condition)
    weights = torch.softmax(held_out.log_importance, 0)
    figures = {"held_out_forward_log_q": float((weights * log_q).sum())}
    if not has_likelihood(simulator):
        return figures
    stream = generator(seed, "train-held-out", device=held_out.theta.device)
    theta, log_q = network.draw(condition, HELD_OUT_DRAWS, generator=stream, dtype=torch.float64)
    draws = WeightedDraws(theta, log_q, log_likelihood(simulator, theta, held_out.x), prior.log_prob(theta))
    log_weight = draws.log_weight
    usable = log_weight.isfinite()
    count = usable.sum()

    def mean(values: Tensor) -> float:
        """Over usable draws only; the share of unusable ones is reported beside it."""
        return float(torch.where(usable, values, 0.0).sum() / count)

    ess = ess_fraction(log_weight)
    figures["held_out_elbo"] = mean(log_weight)
    figures["held_out_reconstruction"] = mean(draws.log_likelihood)
    figures["held_out_regularization"] = mean(draws.log_q - draws.log_prior)
    figures["held_out_kl_gap"] = float(log_evidence(log_weight).mean()) - figures["held_out_elbo"]
    figures["held_out_refused"] = float((~usable).double().mean())
    figures["held_out_ess_fraction"] = float(ess.mean())
    figures["held_out_ess_fraction_median"] = float(ess.median())
    return figures
