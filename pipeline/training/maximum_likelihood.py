r"""Maximum likelihood of one network on stored simulations, with early stopping on held-out ones.

    minimise  -(1/B) sum_b log p(target_b | condition_b)

AdamW, a cosine from the learning rate to a hundredth of it, a running average of the weights. What is delivered is the
average at its best on held-out simulations: few simulations are learned by heart in a few hundred steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.likelihood_settings import LikelihoodSettings
from pipeline.rng import generator
from pipeline.training.averaging import follow

WARM_UP_STEPS = 100
AVERAGE = 0.99
GRADIENT_CLIP = 5.0

Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
"""(network, row numbers, random numbers) -> mean of -log p over those rows."""


@dataclass(frozen=True)
class Fitted:
    """A trained network.

    Attributes:
        network: the average of its weights where it was best.
        held_out: mean log density of held-out simulations there, nats.
        steps: taken.
    """

    network: nn.Module
    held_out: float
    steps: int


def fit(
    network: nn.Module,
    loss: Loss,
    held_out: Callable[[nn.Module], float],
    *,
    rows: int,
    settings: LikelihoodSettings,
    seed: int,
    purpose: str,
    device: torch.device,
    advance: Callable[..., None] | None = None,
) -> Fitted:
    """Train `network` in place; see the module.

    Args:
        held_out: mean log density of held-out simulations under a network.
        rows: simulations for training; every epoch is a permutation of them.
        purpose: random numbers of step t depend on (seed, purpose, t).
        advance: told of the steps done, with the held-out figure as note.

    Raises:
        InputError: the held-out figure was never finite.
    """
    batch = min(settings.batch, rows)
    averaged = copy.deepcopy(network).requires_grad_(False)
    best, best_value, stalled = copy.deepcopy(averaged), -math.inf, 0
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    batches = _Batches(rows, batch, seed, purpose, device)
    step, told = 0, 0
    while step < settings.steps and stalled < settings.patience:
        progress = step / settings.steps
        warm = min(1.0, (step + 1) / min(WARM_UP_STEPS, settings.steps // 5 + 1))
        optimizer.param_groups[0]["lr"] = (
            settings.learning_rate * warm * (0.01 + 0.495 * (1 + math.cos(math.pi * progress)))
        )
        optimizer.zero_grad()
        loss(network, batches[step], generator(seed, purpose, step, device=device)).backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
        if bool(norm.isfinite()):  # else the step is left out
            optimizer.step()
        follow(averaged, network, min(AVERAGE, (1 + step) / (10 + step)))
        step += 1
        if step % settings.check_every and step < settings.steps:
            continue
        value = held_out(averaged)
        stalled = 0 if value > best_value else stalled + 1
        if value > best_value:
            best_value = value
            best.load_state_dict(averaged.state_dict())
        if advance:
            advance(step - told, note=f"{purpose}: held-out log p {value:.3f}")
            told = step
    if advance:
        advance(settings.steps - told)  # those that early stopping saved
    if not math.isfinite(best_value):
        raise InputError(
            f"likelihood: the held-out log density of {purpose} was never finite; try a lower likelihood.learning_rate"
        )
    network.load_state_dict(best.state_dict())
    return Fitted(network.eval().requires_grad_(False), best_value, step)


class _Batches:
    """Row numbers of a step: epochs are permutations."""

    def __init__(self, rows: int, batch: int, seed: int, purpose: str, device: torch.device) -> None:
        self.rows, self.batch, self.seed, self.purpose, self.device = rows, batch, seed, purpose, device
        self.epoch, self.order = -1, torch.empty(0)

    def __getitem__(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.rows // self.batch)
        if epoch != self.epoch:
            stream = generator(self.seed, f"{self.purpose}-epoch", epoch)
            self.epoch, self.order = epoch, torch.randperm(self.rows, generator=stream).to(self.device)
        return self.order[position * self.batch : (position + 1) * self.batch]
