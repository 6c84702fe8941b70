"""What a run has cost, from the provenance of its files: inference beside other samplers, and what came before it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cost import Cost, total_cost
from pipeline.plots import numbers
from pipeline.schema import PROVENANCE
from pipeline.stages.run import OUTPUTS, Run
from pipeline.store import open_hdf5, read_cost, read_key

SHARED = ("simulate", "likelihood", "train")
"""Stages that one network needs once, however many observations it serves."""
STARTS = {"emcee": "started from our draws, whose cost is not in its own."}
"""What a baseline was given."""


@dataclass(frozen=True)
class SamplerCost:
    """What one side of a comparison spends on one observation; NaN where it was not measured."""

    wall_time_s: float
    cpu_time_s: float
    likelihood_calls: float


def inference_cost(inference: Path) -> tuple[SamplerCost, int]:
    """Cost of the whole stage `infer` over the number of its observations, and that number."""
    with open_hdf5(inference) as file:
        calls: Any = file["certificate/likelihood_calls"]
        count, mean_calls = len(calls), float(np.mean(calls[...]))
    cost = read_cost(inference)
    if cost is None:
        return SamplerCost(math.nan, math.nan, mean_calls), count
    return SamplerCost(cost.wall_time_s / count, cost.cpu_time_s / count, mean_calls), count


def baseline_costs(comparison: Path) -> dict[str, SamplerCost]:
    """Mean cost of every baseline over the observations that it was run on."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    with open_hdf5(comparison) as file:
        for group in file.values():
            for name, side in group.items():
                record = json.loads(str(side.attrs[PROVENANCE]))
                seconds = (record["wall_time_s"], record.get("cpu_time_s", math.nan))
                found.setdefault(name, []).append((*seconds, float(side.attrs["likelihood_calls"])))
    return {name: SamplerCost(*np.mean(rows, axis=0).tolist()) for name, rows in found.items()}


def shared_costs(run: Run) -> dict[str, Cost]:
    """Cost of what `infer` needs and every observation of the network shares, by stage; what was not measured is left out.

    Of a case that learns its likelihood in rounds, of all rounds: the files of the run itself are copies of the last.
    """
    rounds = run.folder / "rounds"
    folders = sorted(rounds.iterdir()) if run.case.rounds > 1 and rounds.is_dir() else []
    costs = {}
    for stage in SHARED:
        own = [] if folders and stage != "simulate" else [run.output(stage)]
        paths = own + [folder / OUTPUTS[stage] for folder in folders]
        known = [cost for path in paths if (cost := read_cost(path)) is not None]
        if known:
            costs[stage] = total_cost(known)
    own = read_key(run.output("infer"))
    earlier = [path for folder in folders if read_key(path := folder / OUTPUTS["infer"]) not in (None, own)]
    if earlier:
        costs["infer of earlier rounds"] = total_cost(read_cost(path) for path in earlier)
    return costs


def cost_in_words(run: Run, inference: Path) -> str:
    """What the figures of our side include and what they do not, in one or two sentences."""
    cost = read_cost(inference)
    if cost is None:
        return "The cost of inference was not measured: the file is of an earlier version."
    _, count = inference_cost(inference)
    own = f"infer took {_seconds(cost)}" + (
        f" for {count:,} observations; shown is the mean of one." if count > 1 else "."
    )
    shared = shared_costs(run)
    if not shared:
        return own
    before = sum(c.wall_time_s for c in shared.values())
    parts = " and ".join(f"{stage} {_seconds(c)}" for stage, c in shared.items())
    share = numbers.percent(before / max(before + cost.wall_time_s, 1e-9))
    each = f", {numbers.duration(before / count)} for each of these" if count > 1 else ""
    return f"{own} Before it, shared by all observations of this network: {parts}; {share} of the wall time of both together{each}."


def _seconds(cost: Cost) -> str:
    return f"{numbers.duration(cost.wall_time_s)} ({numbers.duration(cost.cpu_time_s)} of CPU)"
