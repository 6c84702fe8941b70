"""Eager, compiled and captured steps, and the share of the time in which a kernel runs."""

from __future__ import annotations

import statistics
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.clock import SETTINGS, Call, Row, device_clock, digits, ratio, take_turns
from benchmarks.speed.flows import optimise, our_side
from pipeline.objectives.forward_kl import forward_kl

GPU_BATCH, GPU_DIMENSION = 4096, 10


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
