"""Training batches against the loader of sbi, a whole epoch."""

from __future__ import annotations

import itertools
import statistics

import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from benchmarks.speed.clock import BATCH, CPU, Call, Row, digits, ratio, take_turns
from pipeline.rng import generator
from pipeline.training.data import FreshSimulations, Source, TrainingSet, training_set
from simulators.priors import prior_of, sample
from simulators.protocol import Simulator
from simulators.registry import create

STORED = 20_000


def simulations(simulator: Simulator, count: int) -> TrainingSet:
    """Stored pairs."""
    prior, stream = prior_of(simulator), generator(1, "speed")
    theta = sample(prior, count, stream)
    x = simulator.simulate(theta, None, generator=stream)
    return training_set(simulator, theta, x, prior=prior, proposal=prior, device=CPU)


def our_epoch(source: Source) -> Call:
    """All batches of an epoch; the next call goes on with the next epoch."""
    batches, steps = source.batches(BATCH, seed=1, stage="speed", with_x=False), itertools.count()

    def epoch() -> None:
        for _ in range(STORED // BATCH):
            batches[next(steps)]

    return epoch


def sbi_epoch(stored: TrainingSet) -> Call:
    """The loader of sbi's `get_dataloaders`, all rows being training rows."""
    prior_masks = torch.ones(len(stored), 1, dtype=torch.bool)
    dataset = TensorDataset(stored.theta.float(), stored.x["x"].float(), prior_masks)
    sampler = SubsetRandomSampler(torch.randperm(len(stored)).tolist())
    loader = DataLoader(dataset, batch_size=BATCH, drop_last=True, sampler=sampler)

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def batches(repeat: int) -> list[Row]:
    """Stored and fresh simulations against sbi's loader on stored ones of the same simulator."""
    wide, narrow = create("linear_gaussian", {"dimension": 10, "size": 100}), create("gaussian_linear")
    prior = prior_of(narrow)
    result = []
    for what, simulator, fresh in (
        ("stored simulations", wide, None),
        ("fresh simulations", narrow, FreshSimulations(narrow, prior, prior, CPU)),
    ):
        stored = simulations(simulator, STORED)
        own, other = take_turns([our_epoch(fresh or stored), sbi_epoch(stored)], repeat)
        rows = BATCH * (STORED // BATCH)
        result.append(
            Row(
                part="batches",
                what=what,
                against="sbi's DataLoader",
                dimension=stored.theta.shape[1],
                observations=BATCH,
                x_numbers=stored.x["x"].shape[1],
                ours=digits(1e6 * statistics.median(own) / rows),
                theirs=digits(1e6 * statistics.median(other) / rows),
                ratio=ratio(other, own),
                unit="us a row",
                repeat=repeat,
            )
        )
    return result
