r"""Speed of the parts: flows, training batches, how the cost grows, and what a GPU waits for.

    python -m benchmarks.speed
    python -m benchmarks.speed --part flows --repeat 15

flows      Our flow against stock nflows and zuko, with equal transforms, bins, hidden and blocks, context of size D:
           a training step, 4096 draws with log q, and a draw with the gradient through the inverse. Ours has two further
           layers, tails and affine map, which the others lack. Equal settings are not equal networks: nflows' block is
           two linear layers and a gate by the context, ours is one layer, so nflows with 1 block, of our depth, is there
           too; zuko's network is one layer less deep than ours. The table has the numbers of parameters. Draws of one x
           show what it saves to read x once for all of them; with as many x as draws nothing is saved that way.
batches    Training batches of 256 from 20,000 simulations, a whole epoch, against sbi's DataLoader. Ours hold theta and
           x in float64 as well as features, pilot and importance weights; sbi's hold theta and x in float32, and a mask.
scaling    How our own cost grows; the ratio is to the first size.
gpu        Eager, compiled and captured steps, and the share of the time in which a kernel runs.

One thread, CPU time (wall time on the GPU). The sides take turns in one run, and the ratio is the median over rounds of
(theirs / ours) within a round: the machine's speed drifts by a factor of two, so that no other ratio is worth anything.
Rows go to benchmarks/results/speed.csv, in place of those of the same part and machine.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zuko
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform
from nflows.utils import create_alternating_binary_mask
from torch import Tensor, nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from pipeline.config import EmbeddingSettings, FlowSettings, TrainSettings
from pipeline.estimators.flow import ConditionalFlow
from pipeline.estimators.network import PosteriorNetwork
from pipeline.objectives.elbo import elbo
from pipeline.objectives.forward_kl import forward_kl
from pipeline.rng import generator
from pipeline.training.data import FreshSimulations, Source, TrainingSet, training_set
from simulators.priors import prior_of, sample
from simulators.protocol import Simulator, log_likelihood
from simulators.registry import create

RESULTS = Path(__file__).resolve().parent / "results" / "speed.csv"
SETTINGS = FlowSettings(kind="coupling", transforms=4, hidden=64, blocks=2, bins=8)
GRADIENT_CLIP = TrainSettings().gradient_clip
BATCH = 256
DRAWS = 4096
STORED = 20_000
BLOCK = 65_536
"""Points drawn at once, as `pipeline.estimators.proposal.weigh` has it."""
GPU_BATCH, GPU_DIMENSION = 4096, 10
LEAST_SECONDS = 0.1
"""Of one timing: calls are repeated until they fill it."""
CPU = torch.device("cpu")

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; sizes that play no part are None, and so is `theirs` where there is nothing to compare with."""

    part: str
    what: str
    against: str = ""
    dimension: int
    observations: int
    draws: int | None = None
    hidden: int | None = None
    x_numbers: int | None = None
    our_parameters: int | None = None
    their_parameters: int | None = None
    ours: float
    theirs: float | None = None
    ratio: float | None = None
    unit: str
    repeat: int
    machine: str = f"{os.cpu_count()} cores {platform.machine()}"
    torch: str = torch.__version__
    date: str = time.strftime("%Y-%m-%d")


# ---------------------------------------------------------------- the clock


def device_clock() -> float:
    """Wall seconds once the GPU has done what it was asked for."""
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Call, count: int, clock: Callable[[], float]) -> float:
    """Mean of `count` calls."""
    started = clock()
    for _ in range(count):
        call()
    return (clock() - started) / count


def take_turns(
    calls: Sequence[Call], repeat: int, clock: Callable[[], float] = time.process_time
) -> list[tuple[float, ...]]:
    """Seconds of each call, (calls, repeat): within a round one after the other, so that all meet the same machine."""
    for call in calls:
        call()  # the first one allocates
    counts = [max(1, round(LEAST_SECONDS / max(seconds(call, 1, clock), 1e-6))) for call in calls]
    rounds = [[seconds(call, n, clock) for call, n in zip(calls, counts, strict=True)] for _ in range(repeat)]
    return list(zip(*rounds, strict=True))


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds."""
    return digits(statistics.median(a / b for a, b in zip(above, below, strict=True)))


def digits(value: float) -> float:
    """Four significant ones."""
    return float(f"{value:.4g}")


# ---------------------------------------------------------------- flows


@dataclass(frozen=True)
class Side:
    """A flow as all of them are timed: u (N, D) given context (N, C).

    Attributes:
        module: its parameters.
        log_prob: (u, context) -> (N,).
        draw: (K, context) -> u and log q of K draws for each of N rows, differentiable.
    """

    module: nn.Module
    log_prob: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[int, Tensor], tuple[Tensor, Tensor]]

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.module.parameters())


def our_side(dimension: int, *, hidden: int = SETTINGS.hidden, device: torch.device = CPU) -> Side:
    """`ConditionalFlow`."""
    settings = SETTINGS.model_copy(update={"hidden": hidden})
    flow = ConditionalFlow(dimension, dimension, settings).to(device)
    stream = torch.Generator(device).manual_seed(1)

    def draw(count: int, context: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(context)
        noise = flow.noise(count * rows, generator=stream, device=device, dtype=context.dtype)
        return flow.sample_and_log_prob(noise.view(count, rows, dimension), context)

    return Side(flow, flow.log_prob, draw)


def nflows_side(dimension: int, *, blocks: int = SETTINGS.blocks) -> Side:
    """Stock nflows, masks as sbi alternates them."""
    network = partial(ResidualNet, hidden_features=SETTINGS.hidden, context_features=dimension, num_blocks=blocks)
    layers = [
        PiecewiseRationalQuadraticCouplingTransform(
            create_alternating_binary_mask(dimension, even=i % 2 == 0),
            network,
            num_bins=SETTINGS.bins,
            tails="linear",
            tail_bound=SETTINGS.tail_bound,
        )
        for i in range(SETTINGS.transforms)
    ]
    flow = Flow(CompositeTransform(layers), StandardNormal([dimension]))
    return Side(flow, flow.log_prob, flow.sample_and_log_prob)


def zuko_side(dimension: int) -> Side:
    """zuko's coupling NSF; its splines end at 5 as ours do."""
    flow = zuko.flows.NSF(
        dimension,
        dimension,
        bins=SETTINGS.bins,
        transforms=SETTINGS.transforms,
        hidden_features=(SETTINGS.hidden,) * SETTINGS.blocks,
        passes=2,
    )
    return Side(
        flow,
        lambda u, context: flow(context).log_prob(u),
        lambda count, context: flow(context).rsample_and_log_prob(torch.Size((count,))),
    )


def optimise(adam: torch.optim.Optimizer, module: nn.Module, loss: Callable[[], Tensor]) -> None:
    """One step as `Phase` takes it."""
    adam.zero_grad(set_to_none=True)
    loss().backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_CLIP)
    adam.step()


def training_step(side: Side, dimension: int, batch: int = BATCH) -> Call:
    """forward_kl on one batch, again and again; the learning rate keeps the network near its start."""
    u, context = torch.randn(2, batch, dimension)
    adam = torch.optim.Adam(side.module.parameters(), lr=1e-5, fused=True)
    return lambda: optimise(adam, side.module, lambda: forward_kl(side.log_prob(u, context)))


def drawing(side: Side, dimension: int, *, draws: int, rows: int) -> Call:
    """`draws` for each of `rows` contexts."""
    context = torch.randn(rows, dimension)
    return torch.no_grad()(lambda: side.draw(draws, context))


def path_step(side: Side, dimension: int) -> Call:
    """One draw for each x, and the gradient of KL( q || N(0, I) ) through it."""
    context = torch.randn(BATCH, dimension)

    def step() -> None:
        side.module.zero_grad(set_to_none=True)
        u, log_q = side.draw(1, context)
        (log_q + 0.5 * u.square().sum(-1)).mean().backward()

    return step


def flows(repeat: int) -> list[Row]:
    """Ours against nflows and zuko."""
    result = []
    for dimension in (2, 5, 10):
        ours = our_side(dimension)
        peers = {
            "nflows": nflows_side(dimension),
            "nflows, 1 block": nflows_side(dimension, blocks=1),
            "zuko": zuko_side(dimension),
        }
        tasks: dict[str, tuple[Callable[[Side, int], Call], int, int | None]] = {
            "training step": (training_step, BATCH, None),
            "draws of one x": (partial(drawing, draws=DRAWS, rows=1), 1, DRAWS),
            "draws of as many x": (partial(drawing, draws=1, rows=DRAWS), DRAWS, 1),
            "draw and gradient": (path_step, BATCH, 1),
        }
        for what, (prepare, rows, draws) in tasks.items():
            own, *others = take_turns([prepare(side, dimension) for side in (ours, *peers.values())], repeat)
            result += [
                Row(
                    part="flows",
                    what=what,
                    against=peer,
                    dimension=dimension,
                    observations=rows,
                    draws=draws,
                    hidden=SETTINGS.hidden,
                    our_parameters=ours.parameters,
                    their_parameters=side.parameters,
                    ours=digits(1e3 * statistics.median(own)),
                    theirs=digits(1e3 * statistics.median(other)),
                    ratio=ratio(other, own),
                    unit="ms",
                    repeat=repeat,
                )
                for (peer, side), other in zip(peers.items(), others, strict=True)
            ]
    return result


# ---------------------------------------------------------------- batches


def simulations(simulator: Simulator, count: int) -> TrainingSet:
    """Stored pairs."""
    prior, stream = prior_of(simulator), generator(1, "speed")
    theta = sample(prior, count, stream)
    x = simulator.simulate(theta, None, generator=stream)
    return training_set(simulator, theta, x, prior=prior, proposal=prior, device=CPU)


def our_epoch(source: Source) -> Call:
    """All batches of an epoch; the next call goes on with the next epoch."""
    batches, steps = source.batches(BATCH, seed=1, stage="speed"), itertools.count()

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


# ---------------------------------------------------------------- scaling


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
    """theta (K, N, D) and log_q (K, N), at most BLOCK points at once."""
    stream = generator(1, "speed")
    at_once = max(1, BLOCK // len(rows))

    @torch.no_grad()
    def call() -> list[Tensor]:
        condition = network.condition(rows.inputs)
        parts = [
            network.draw(condition, min(at_once, draws - start), generator=stream, dtype=torch.float64)
            for start in range(0, draws, at_once)
        ]
        return [torch.cat(p) for p in zip(*parts, strict=True)]

    return call


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


# ---------------------------------------------------------------- gpu


def captured(step: Call) -> torch.cuda.CUDAGraph:
    """The kernels of a step as one graph; its optimiser has to be capturable.

    As https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture: the warm-up runs on a side stream, and
    gradients are None when the capture begins, so that they lie in the memory of the graph.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(11):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def gpu_step(u: Tensor, context: Tensor, *, compiled: bool = False, capturable: bool = False) -> Call:
    """A forward_kl step of a flow of its own, on the device of u."""
    side = our_side(u.shape[1], device=u.device)
    log_prob = torch.compile(side.log_prob, mode="default") if compiled else side.log_prob
    adam = torch.optim.Adam(side.module.parameters(), lr=1e-5, fused=True, capturable=capturable)
    return lambda: optimise(adam, side.module, lambda: forward_kl(log_prob(u, context)))


def replayed(u: Tensor, context: Tensor) -> Call:
    """The same step captured: a batch is copied to where the graph reads it."""
    inputs = u.clone(), context.clone()
    step = gpu_step(*inputs, capturable=True)
    graph = captured(step)

    def replay(_owner: Call = step) -> None:  # the graph writes to parameters and moments that the step owns
        inputs[0].copy_(u)
        inputs[1].copy_(context)
        graph.replay()

    return replay


def kernel_seconds(step: Call, count: int = 50) -> float:
    """Seconds a step in which the GPU computes or copies, by the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
    kernels = [
        event for event in profiler.key_averages() if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    return sum(event.self_device_time_total for event in kernels) * 1e-6 / count


def gpu(repeat: int) -> list[Row]:
    """Steps a second of forward_kl, and how much of the time is work; the profiled steps are others than the timed."""
    if not torch.cuda.is_available():
        sys.stdout.write("gpu: skipped, no CUDA device here\n")
        return []
    u, context = torch.randn(2, GPU_BATCH, GPU_DIMENSION, device="cuda")
    steps = {
        "eager": gpu_step(u, context),
        "compiled": gpu_step(u, context, compiled=True),
        "CUDA graph": replayed(u, context),
    }
    times = take_turns(list(steps.values()), repeat, device_clock)
    about: dict[str, Any] = {
        "part": "gpu", "dimension": GPU_DIMENSION, "observations": GPU_BATCH, "hidden": SETTINGS.hidden, "repeat": repeat,
        "machine": torch.cuda.get_device_name(),
    }  # fmt: skip
    result = []
    for (name, step), own in zip(steps.items(), times, strict=True):
        typical = statistics.median(own)
        other = {} if name == "eager" else {
            "against": "eager", "theirs": digits(1 / statistics.median(times[0])), "ratio": ratio(times[0], own)
        }  # fmt: skip
        result.append(Row(what=f"training step, {name}", ours=digits(1 / typical), unit="steps/s", **other, **about))
        share = digits(kernel_seconds(step) / typical)
        result.append(Row(what=f"time in kernels, {name}", ours=share, unit="fraction", **about))
    return result


# ---------------------------------------------------------------- the table

PARTS: dict[str, Callable[[int], list[Row]]] = {"flows": flows, "batches": batches, "scaling": scaling, "gpu": gpu}


def write(rows: list[Row]) -> None:
    """Put rows into the table, in place of those of the same part and machine."""
    new = {(row.part, row.machine) for row in rows}
    kept: list[dict[str, Any]] = []
    if RESULTS.is_file():
        with RESULTS.open(encoding="utf-8", newline="") as file:
            kept = [row for row in csv.DictReader(file) if (row["part"], row["machine"]) not in new]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *(asdict(row) for row in rows)])


def markdown(rows: list[Row]) -> str:
    """The measurements as a Markdown table."""
    lines = [
        "| part | what | against | D | N | K | hidden | numbers in x | parameters | ours | theirs | ratio | unit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parameters = f"{row.our_parameters} / {row.their_parameters}" if row.our_parameters else ""
        sizes = (row.dimension, row.observations, row.draws, row.hidden, row.x_numbers)
        cells = (row.part, row.what, row.against, *sizes, parameters, row.ours, row.theirs, row.ratio, row.unit)
        lines.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="default: all")
    parser.add_argument("--repeat", type=int, default=7, help="rounds in which the sides take turns")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    rows = [row for name in ([given.part] if given.part else PARTS) for row in PARTS[name](given.repeat)]
    if rows:
        write(rows)
        sys.stdout.write(markdown(rows))


if __name__ == "__main__":
    main()
