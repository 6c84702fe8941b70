"""What a run has yet to do, and why."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.stages.run import Outdated, Run, asking
from pipeline.stages.validate import BLOCK
from pipeline.workflow.jobs import AFTER, DIVISIBLE, Stage


@dataclass(frozen=True)
class Need:
    """A stage that is to be done, and the reason in words."""

    stage: str
    why: str


def needs(run: Run, stages: Sequence[str]) -> list[Need]:
    """Stages that are not up to date, in order.

    Each is asked itself, by its content key. One that reads the output of such a stage is among them; its job ends at
    once if that output turns out as it was.

    Raises:
        InputError: what a stage says that cannot run.
    """
    found: dict[str, Need] = {}
    for stage in stages:
        first = next((s for s in AFTER[stage] if s in found), None)
        if first is not None:
            found[stage] = Need(stage, f"reads what `{first}` will make")
            continue
        try:
            with asking():
                getattr(importlib.import_module(f"pipeline.stages.{stage}"), stage)(run)
        except Outdated as reason:
            found[stage] = Need(stage, str(reason))
    return list(found.values())


def stage_of(run: Run, stage: str) -> Stage:
    """What a stage's jobs ask for; never more parts than there are pieces."""
    resources = run.case.resources
    asked = {
        "simulate": resources.simulate,
        "likelihood": resources.likelihood,
        "train": resources.train,
        "infer": resources.infer,
        "validate": resources.validation,
        "compare": resources.compare,
        "report": resources.report,
    }[stage]
    simulate = run.case.simulate
    pieces = {
        "simulate": -(-(simulate.count + simulate.held_out) // simulate.shard),
        "validate": -(-run.case.validation.simulations // BLOCK),
        "compare": run.case.compare.observations,
    }
    return Stage(
        parts=min(asked.parts, pieces.get(stage, asked.parts)) if stage in DIVISIBLE else 1,
        cores=asked.cores,
        memory_mb=round(asked.memory_gb * 1000),
        gpus=asked.gpus,
        nodes=asked.nodes,
        minutes=asked.minutes,
    )
