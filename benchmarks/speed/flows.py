"""Our flow against stock nflows and zuko, with equal transforms, bins, hidden and blocks."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import zuko
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform
from nflows.utils import create_alternating_binary_mask
from torch import Tensor, nn

from benchmarks.speed.clock import BATCH, CPU, SETTINGS, Call, Row, digits, ratio, take_turns
from pipeline.estimators.flow import ConditionalFlow
from pipeline.objectives.forward_kl import forward_kl
from pipeline.settings import TrainSettings

GRADIENT_CLIP = TrainSettings().gradient_clip
DRAWS = 4096


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
