"""Simulations as training batches, by direct indexing: a batch is a function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.network import NetworkInput, network_input
from pipeline.rng import generator
from simulators.protocol import Data, Simulator


@dataclass(frozen=True)
class TrainingSet:
    """N simulations on the training device, with what the network reads of them computed once.

    Attributes:
        theta: (N, D), float64.
        x: observables, (N, ...).
        inputs: features and pilot of x.
        log_importance: log prior - log proposal of theta, (N,).
    """

    theta: Tensor
    x: Data
    inputs: NetworkInput
    log_importance: Tensor

    def __len__(self) -> int:
        return len(self.theta)

    def rows(self, index: Tensor | slice) -> TrainingSet:
        """Some of the simulations."""
        x = {k: v[index] for k, v in self.x.items()}
        return TrainingSet(self.theta[index], x, self.inputs.rows(index), self.log_importance[index])


def training_set(
    simulator: Simulator,
    theta: Tensor,
    x: Data,
    *,
    prior: Distribution,
    proposal: Distribution,
    device: torch.device,
    block: int = 32_768,
) -> TrainingSet:
    """Move simulations to `device`, and compute features and pilot in blocks."""
    x = {k: v.to(device) for k, v in x.items()}
    parts = [network_input(simulator, {k: v[i : i + block] for k, v in x.items()}) for i in range(0, len(theta), block)]
    inputs = NetworkInput(*(torch.cat(p) for p in zip(*parts, strict=True)))
    theta = theta.double()
    log_importance = prior.log_prob(theta) - proposal.log_prob(theta)
    return TrainingSet(theta.to(device), x, inputs, log_importance.to(device))


class Batches:
    """Row numbers of every step: epochs are permutations, each row once, and depend on the seed alone.

    Args:
        rows: N.
        batch: rows a step; N where that is smaller.
        seed, stage: of the random stream.
    """

    def __init__(self, rows: int, batch: int, *, seed: int, stage: str, device: torch.device) -> None:
        self.rows, self.batch = rows, min(batch, rows)
        self.seed, self.stage, self.device = seed, stage, device
        self.per_epoch = rows // self.batch
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __getitem__(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            stream = generator(self.seed, f"{self.stage}-epoch", epoch)
            self._order = torch.randperm(self.rows, generator=stream).to(self.device)
            self._epoch = epoch
        return self._order[position * self.batch : (position + 1) * self.batch]
