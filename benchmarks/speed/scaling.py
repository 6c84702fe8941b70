"""How our own cost grows with D, width, batch, draws and observations; the ratio is to the first size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.batches import simulations
from benchmarks.speed.clock import BATCH, SETTINGS, Call, Row, digits, ratio, take_turns
from benchmarks.speed.flows import optimise, our_side, training_step
from pipeline.estimators.network import PosteriorNetwork, draw_in_blocks
from pipeline.objectives.elbo import elbo
from pipeline.rng import generator
from pipeline.settings import EmbeddingSettings
from pipeline.training.data import TrainingSet
from simulators.priors import prior_of
from simulators.protocol import Simulator, log_likelihood
from simulators.registry import create


def scaling_rows(calls: Sequence[Call], sizes: Sequence[dict[str, Any]], what: str, repeat: int) -> list[Row]:
    """One row a size; ratio to the first."""
    times = take_turns(calls, repeat)
    return [
        Row(
            part="scaling",
            what=what,
            **size,
            ours=digits(1e3 * statistics.median(own)),
            ratio=ratio(own, times[0]),
            unit="ms",
            repeat=repeat,
        )
        for own, size in zip(times, sizes, strict=True)
    ]


def training_sizes(repeat: int) -> list[Row]:
    """A training step of the flow against D, width and batch, the other two as they are by default."""
    start = {"dimension": 5, "hidden": SETTINGS.hidden, "observations": BATCH}
    ranges = {"dimension": (2, 5, 10, 20, 50), "hidden": (32, 64, 128, 256), "observations": (64, 128, 256, 512, 1024)}
    result = []
    for name, values in ranges.items():
        sizes = [start | {name: value} for value in values]
        calls = [
            training_step(our_side(s["dimension"], hidden=s["hidden"]), s["dimension"], s["observations"])
            for s in sizes
        ]
        result += scaling_rows(calls, sizes, f"training step by {name}", repeat)
    return result


def posterior_network(simulator: Simulator, stored: TrainingSet) -> PosteriorNetwork:
    """With the default embedding, untrained."""
    features = stored.inputs.features.shape[1]
    network = PosteriorNetwork(prior_of(simulator), features, flow=SETTINGS, embedding=EmbeddingSettings())
    network.standardize(stored.theta, stored.inputs)
    return network


def elbo_step(simulator: Simulator, rows: TrainingSet, draws: int) -> Call:
    """Sticking the landing, as `Phase` has it."""
    network, prior, stream = posterior_network(simulator, rows), prior_of(simulator), generator(1, "speed")
    adam = torch.optim.Adam(network.parameters(), lr=1e-5, fused=True)

    def loss() -> Tensor:
        condition = network.condition(rows.inputs)
        theta, log_q = network.draw(condition, draws, generator=stream, path_gradient=True, dtype=torch.float64)
        density = partial(log_likelihood, simulator, x=rows.x)
        return -elbo(theta, log_q, log_likelihood=density, log_prior=prior.log_prob).value.float()

    return lambda: optimise(adam, network, loss)


def sampling(network: PosteriorNetwork, rows: TrainingSet, draws: int) -> Call:
    """theta (K, N, D) and log_q (K, N)."""
    stream = generator(1, "speed")
    return torch.no_grad()(lambda: draw_in_blocks(network, network.condition(rows.inputs), draws, generator=stream))


def scaling(repeat: int) -> list[Row]:
    """Our cost against sizes: a training step, an ELBO step, draws."""
    simulator = create("gaussian_linear")
    size = {"dimension": len(simulator.parameters), "hidden": SETTINGS.hidden}
    few, many = simulations(simulator, 64), simulations(simulator, 1000)
    counts = (1, 4, 16, 64)
    steps = [elbo_step(simulator, few, k) for k in counts]
    numbers = (1, 10, 100, 1000)
    network = posterior_network(simulator, many)
    draws = [sampling(network, many.rows(slice(n)), 1000) for n in numbers]
    return [
        *training_sizes(repeat),
        *scaling_rows(steps, [size | {"observations": 64, "draws": k} for k in counts], "ELBO step by draws", repeat),
        *scaling_rows(draws, [size | {"observations": n, "draws": 1000} for n in numbers], "draws by x", repeat),
    ]
