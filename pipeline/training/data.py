"""Training pairs, stored or fresh: a batch is a function of (seed, stage, step), and lies on the training device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.network import NetworkInput, network_input
from pipeline.rng import generator
from simulators.priors import sample
from simulators.protocol import Data, Simulator, likelihood_data


@dataclass(frozen=True)
class TrainingSet:
    """N simulations on the training device, with what the network reads of them computed once.

    Attributes:
        theta: (N, D), float64.
        x: what the likelihood needs of x, (N, ...) each: all observables, or less where the simulator says so.
        inputs: features and pilot of x.
        log_importance: log prior - log proposal of theta, (N,).
        numbers: for rows of a stored set, which they are, (N,); None for the set itself, and for fresh simulations.
    """

    theta: Tensor
    x: Data
    inputs: NetworkInput
    log_importance: Tensor
    numbers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.theta)

    def rows(self, index: Tensor | slice) -> TrainingSet:
        """Some of the simulations."""
        x = {k: v[index] for k, v in self.x.items()}
        return TrainingSet(self.theta[index], x, self.inputs.rows(index), self.log_importance[index])

    def batches(self, batch: int, *, seed: int, stage: str) -> Batches:
        """Batches of stored simulations."""
        return StoredBatches(self, batch, seed=seed, stage=stage)


def together(one: TrainingSet, other: TrainingSet) -> TrainingSet:
    """The simulations of both."""
    return TrainingSet(
        torch.cat([one.theta, other.theta]),
        {k: torch.cat([v, other.x[k]]) for k, v in one.x.items()},
        NetworkInput(*(torch.cat(pair) for pair in zip(one.inputs, other.inputs, strict=True))),
        torch.cat([one.log_importance, other.log_importance]),
    )


class Batches(Protocol):
    """Training pairs of every step."""

    def __getitem__(self, step: int) -> TrainingSet: ...


class Source(Protocol):
    """Where training pairs come from: stored simulations (`TrainingSet`), or fresh ones (`FreshSimulations`)."""

    def batches(self, batch: int, *, seed: int, stage: str) -> Batches:
        """Batches of `batch` rows, a function of (seed, stage, step)."""
        ...


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
    """Move simulations to `device`, and compute features and pilot in blocks.

    Args:
        prior, proposal: on the device of theta.
    """
    x = {k: v.to(device) for k, v in x.items()}
    parts = [network_input(simulator, {k: v[i : i + block] for k, v in x.items()}) for i in range(0, len(theta), block)]
    inputs = NetworkInput(*(torch.cat(p) for p in zip(*parts, strict=True)))
    theta = theta.double()
    with torch.no_grad():
        held = [
            likelihood_data(simulator, {k: v[i : i + block] for k, v in x.items()}) for i in range(0, len(theta), block)
        ]
        x = {k: torch.cat([part[k] for part in held]) for k in held[0]}
    if proposal is prior:
        log_importance = theta.new_zeros(len(theta))
    else:
        log_importance = prior.log_prob(theta) - proposal.log_prob(theta)
    return TrainingSet(theta.to(device), x, inputs, log_importance.to(device))


class StoredBatches:
    """Batches of stored simulations by direct indexing: epochs are permutations, each row at most once.

    Args:
        stored: N simulations.
        batch: rows a step; N where that is smaller.
        seed, stage: of the random stream.
    """

    def __init__(self, stored: TrainingSet, batch: int, *, seed: int, stage: str) -> None:
        self.stored, self.batch = stored, min(batch, len(stored))
        self.seed, self.stage = seed, stage
        self.per_epoch = len(stored) // self.batch
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def index(self, step: int) -> Tensor:
        """Row numbers of a step."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            stream = generator(self.seed, f"{self.stage}-epoch", epoch)
            self._order = torch.randperm(len(self.stored), generator=stream).to(self.stored.theta.device)
            self._epoch = epoch
        return self._order[position * self.batch : (position + 1) * self.batch]

    def __getitem__(self, step: int) -> TrainingSet:
        index = self.index(step)
        return replace(self.stored.rows(index), numbers=index)


@dataclass(frozen=True)
class FreshSimulations:
    """An endless supply: every batch is simulated on the training device when it is asked for.

    Attributes:
        simulator: fast and batched.
        prior, proposal: on `device`.
        device: of training.
    """

    simulator: Simulator
    prior: Distribution
    proposal: Distribution
    device: torch.device

    def batches(self, batch: int, *, seed: int, stage: str) -> Batches:
        """Batches of fresh simulations."""
        return _FreshBatches(self, batch, seed, stage)


@dataclass(frozen=True)
class _FreshBatches:
    source: FreshSimulations
    batch: int
    seed: int
    stage: str

    def __getitem__(self, step: int) -> TrainingSet:
        s = self.source
        stream = generator(self.seed, f"{self.stage}-fresh", step, device=s.device)
        theta = sample(s.proposal, self.batch, stream)
        x = s.simulator.simulate(theta, None, generator=stream)
        return training_set(s.simulator, theta, x, prior=s.prior, proposal=s.proposal, device=s.device)
