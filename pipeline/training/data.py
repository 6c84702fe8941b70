"""Training pairs, stored or fresh: a batch is a function of (seed, stage, step), and lies on the training device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.errors import InputError
from pipeline.estimators.network import NetworkInput, network_input
from pipeline.rng import generator
from pipeline.training.processes import ALONE, Processes
from simulators.noise_free import WithSignal
from simulators.priors import sample
from simulators.protocol import Data, Simulator, likelihood_data, simulate

HEAD_ROWS = 16_384
"""First simulations, on which the network is standardised, and with which observations are compared, where not all of
them fit on the training device."""


@dataclass(frozen=True)
class TrainingSet:
    """N simulations on one device, with what the network reads of them computed once.

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

    @property
    def row_bytes(self) -> int:
        """Bytes of one simulation in memory."""
        return sum(t[:1].numel() * t.element_size() for t in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Everything that has a row for each simulation."""
        return [self.theta, *self.x.values(), *self.inputs, self.log_importance]

    def like(self, tensors: Iterable[Tensor]) -> TrainingSet:
        """Others in place of `tensors`, in their order; numbers are not kept."""
        theta, *rest = tensors
        x = dict(zip(self.x, rest, strict=False))
        *inputs, log_importance = rest[len(x) :]
        return TrainingSet(theta, x, type(self.inputs)(*inputs), log_importance)

    def each(self, change: Callable[[Tensor], Tensor]) -> TrainingSet:
        """The same change made to all of `tensors`; numbers are not kept."""
        return self.like(change(t) for t in self.tensors())

    def rows(self, index: Tensor | slice) -> TrainingSet:
        """Some of the simulations, by number."""
        if isinstance(index, slice):
            return self.each(lambda t: t[index])
        return self.each(lambda t: t.index_select(0, index))  # t[index] takes 2.4 to 4.4 times as long on a CPU

    def to(self, device: torch.device) -> TrainingSet:
        """On `device`, numbers included."""
        numbers = None if self.numbers is None else self.numbers.to(device)
        return replace(self.each(lambda t: t.to(device)), numbers=numbers)

    def empty(self, count: int) -> TrainingSet:
        """Room for `count` simulations of this kind."""
        return self.each(lambda t: t.new_empty((count, *t.shape[1:])))

    def put(self, index: Tensor | slice, rows: TrainingSet) -> None:
        """Write rows in place."""
        for own, given in zip(self.tensors(), rows.tensors(), strict=True):
            own[index] = given

    @property
    def head(self) -> TrainingSet:
        """What the network is standardised on: all of them."""
        return self

    def true_theta(self) -> Tensor:
        """Theta of every simulation, (N, D)."""
        return self.theta

    def batches(
        self, batch: int, *, seed: int, stage: str, processes: Processes = ALONE, with_x: bool = True
    ) -> Batches:
        """Batches of stored simulations."""
        stored = self if with_x else self.without_x()
        return StoredBatches(stored, batch, seed=seed, stage=stage, processes=processes)

    def without_x(self) -> TrainingSet:
        """What an objective without a likelihood needs: x in float64 is most of a row's bytes."""
        return replace(self, x={})


def joined(parts: Sequence[TrainingSet]) -> TrainingSet:
    """The simulations of all parts, one part after the other; numbers where every part has them."""
    if len(parts) == 1:
        return parts[0]
    known = [p.numbers for p in parts if p.numbers is not None]
    numbers = torch.cat(known) if len(known) == len(parts) else None
    columns = zip(*(p.tensors() for p in parts), strict=True)
    return replace(parts[0].like(torch.cat(c) for c in columns), numbers=numbers)


class Batches(Protocol):
    """Training pairs of every step: those rows of the batch that are this process's own."""

    def __getitem__(self, step: int) -> TrainingSet: ...

    def close(self) -> None:
        """Nothing more will be asked for."""
        ...


class Source(Protocol):
    """Where training pairs come from: stored simulations (`TrainingSet`, `StreamedSet`), or fresh ones (`FreshSimulations`)."""

    def batches(
        self, batch: int, *, seed: int, stage: str, processes: Processes = ALONE, with_x: bool = True
    ) -> Batches:
        """Batches of `batch` rows, a function of (seed, stage, step); of each, process r of R has rows r, r + R, ...

        Args:
            batch: rows a step.
            seed, stage: of the random stream.
            processes: which share the rows.
            with_x: whether x is needed, as a likelihood does; features and pilot are there in any case.
        """
        ...

    def true_theta(self) -> Tensor | None:
        """Theta of every stored simulation, (N, D); None where simulations are fresh."""
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


def in_epochs(start: int, stop: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Places start to stop - 1 of an endless sequence of epochs of `length` rows: (epoch, first, last + 1) of each part.

    >>> list(in_epochs(8, 14, 10))
    [(0, 8, 10), (1, 0, 4)]
    """
    while start < stop:
        epoch, first = divmod(start, length)
        last = min(length, first + stop - start)
        yield epoch, first, last
        start += last - first


class StoredBatches:
    """Batches of stored simulations by direct indexing.

    Epochs are permutations of all N rows, one after the other, and batches are cut from that endless sequence: each row
    comes once an epoch, no remainder is left out, and a batch may hold the end of one epoch and the start of the next.

    Args:
        stored: N simulations.
        batch: rows a step; N where that is smaller.
        seed, stage: of the random stream.
        processes: which share the rows of a batch.
        device: where batches go; default: where the simulations are.
    """

    def __init__(
        self,
        stored: TrainingSet,
        batch: int,
        *,
        seed: int,
        stage: str,
        processes: Processes = ALONE,
        device: torch.device | None = None,
    ) -> None:
        self.stored, self.batch = stored, min(batch, len(stored))
        processes.need_even(self.batch)
        self.seed, self.stage, self.processes = seed, stage, processes
        self.device = device or stored.theta.device
        self._orders: dict[int, Tensor] = {}

    def index(self, step: int) -> Tensor:
        """Row numbers of a step."""
        start = step * self.batch
        parts = [
            self._order(e)[first:last] for e, first, last in in_epochs(start, start + self.batch, len(self.stored))
        ]
        return self.processes.own(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _order(self, epoch: int) -> Tensor:
        """The permutation of an epoch; two are kept, for the batch that lies in both."""
        if epoch not in self._orders:
            stream = generator(self.seed, f"{self.stage}-epoch", epoch)
            order = torch.randperm(len(self.stored), generator=stream).to(self.stored.theta.device)
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return self._orders[epoch]

    def __getitem__(self, step: int) -> TrainingSet:
        index = self.index(step)
        rows = replace(self.stored.rows(index), numbers=index)
        return rows if self.device == index.device else rows.to(self.device)

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True)
class HostSet:
    """Stored simulations in the memory of the host, whose batches go to the training device.

    Attributes:
        stored: on the CPU.
        device: of training.
    """

    stored: TrainingSet
    device: torch.device

    @property
    def head(self) -> TrainingSet:
        """What the network is standardised on: the first HEAD_ROWS."""
        return self.stored.rows(slice(HEAD_ROWS)).to(self.device)

    def batches(
        self, batch: int, *, seed: int, stage: str, processes: Processes = ALONE, with_x: bool = True
    ) -> Batches:
        """Batches on the training device."""
        stored = self.stored if with_x else self.stored.without_x()
        return StoredBatches(stored, batch, seed=seed, stage=stage, processes=processes, device=self.device)

    def true_theta(self) -> Tensor:
        """Theta of every simulation, (N, D)."""
        return self.stored.theta


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

    def batches(
        self, batch: int, *, seed: int, stage: str, processes: Processes = ALONE, with_x: bool = True
    ) -> Batches:
        """Batches of fresh simulations; each of several processes simulates the whole batch and keeps its own rows."""
        return _FreshBatches(self, batch, seed, stage, processes)

    def true_theta(self) -> None:
        """No simulation comes twice."""


@dataclass(frozen=True)
class _FreshBatches:
    source: FreshSimulations
    batch: int
    seed: int
    stage: str
    processes: Processes

    def __getitem__(self, step: int) -> TrainingSet:
        s = self.source
        stream = generator(self.seed, f"{self.stage}-fresh", step, device=s.device)
        theta = sample(s.proposal, self.batch, stream)
        x = simulate(s.simulator, theta, generator=stream)
        for name, values in x.items():
            if not bool(values.sum(dtype=torch.float64).isfinite()):
                raise InputError(
                    f"train.data: online: simulator {s.simulator.name!r} failed, {name!r} is NaN or infinite: use stored simulations, data: file"
                )
        own = {k: self.processes.own(v) for k, v in x.items()}
        theta = self.processes.own(theta)
        return training_set(s.simulator, theta, own, prior=s.prior, proposal=s.proposal, device=s.device)

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True)
class FreshNoise:
    """Stored simulations whose signals are observed anew at every step.

    A row has then an x that no earlier step has seen, of which its theta is an exact posterior draw: nothing is remembered
    of it. Several processes observe the whole batch, whose signals they exchange.

    Attributes:
        source: simulations with their signals.
        simulator: which observes them.
    """

    source: Source
    simulator: WithSignal

    def batches(
        self, batch: int, *, seed: int, stage: str, processes: Processes = ALONE, with_x: bool = True
    ) -> Batches:
        """Batches of the source with noise of their own."""
        inner = self.source.batches(batch, seed=seed, stage=stage, processes=processes)
        return _NoisyBatches(inner, self.simulator, seed, stage, processes)

    def true_theta(self) -> None:
        """No x comes twice."""


@dataclass(frozen=True)
class _NoisyBatches:
    inner: Batches
    simulator: WithSignal
    seed: int
    stage: str
    processes: Processes

    def __getitem__(self, step: int) -> TrainingSet:
        rows, gather = self.inner[step], self.processes.gather
        stream = generator(self.seed, f"{self.stage}-noise", step, device=rows.theta.device)
        stored = {k: gather(v) for k, v in rows.x.items()}
        x = self.simulator.observe_again(stored, gather(rows.theta), generator=stream)
        x = {k: self.processes.own(v) for k, v in x.items()}
        inputs = network_input(self.simulator, x)
        with torch.no_grad():
            needed = likelihood_data(self.simulator.simulator, x)
        return TrainingSet(rows.theta, needed, inputs, rows.log_importance)

    def close(self) -> None:
        """Close the source."""
        self.inner.close()
