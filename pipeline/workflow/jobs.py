"""Jobs of a run, as plain data: which stages, in which order, by what name, with what command and resources."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AFTER: Mapping[str, tuple[str, ...]] = {
    "simulate": (),
    "likelihood": ("simulate",),
    "train": ("simulate", "likelihood"),
    "infer": ("train",),
    "validate": ("train",),
    "compare": ("infer",),
    "report": ("train", "infer", "validate", "compare"),
}
"""What each stage reads."""
DIVISIBLE = ("simulate", "infer", "validate", "compare")
"""Stages that several jobs can share."""
LONGEST_NAME = 30


@dataclass(frozen=True)
class Stage:
    """One stage as a job asks for it.

    Attributes:
        parts: jobs that share it; 1 for a stage that is not divided.
        cores: of each process.
        memory_mb: of a node.
        gpus: of a node.
        minutes: time limit of the first attempt.
    """

    parts: int
    cores: int
    memory_mb: int
    gpus: int
    nodes: int
    minutes: int


@dataclass(frozen=True)
class Jobs:
    """The jobs of one run on one cluster. The workflow's rules read everything from here.

    Attributes:
        run: the run folder, absolute.
        case: YAML of the resolved case, absolute.
        folder: where the commands run.
        stages: what is to be done, in order.
        command: the program `elboscope` on a node.
        launch: put before a command that runs in several processes; {nodes}, {tasks}, {cores} are filled in.
        gpu_options: of the submit command, where a stage asks for GPUs; {gpus} is filled in.
        most_minutes: no job asks for more.
    """

    run: str
    case: str
    folder: str
    stages: Mapping[str, Stage]
    command: Sequence[str]
    launch: str = ""
    gpu_options: str = ""
    most_minutes: int = 0

    @property
    def label(self) -> str:
        """Name of the run in a queue: the folder's name, and what tells it from another of that name."""
        path = Path(self.run)
        name = re.sub(r"[^A-Za-z0-9_-]", "_", path.name)[:LONGEST_NAME]
        return f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"

    def name(self, stage: str, part: int | None = None) -> str:
        """Name of a job: the same for the same work, so that a scheduler can keep a second one waiting."""
        return f"{self.label}.{self.step(stage, part)}"

    def step(self, stage: str, part: int | None = None) -> str:
        """Name of a job within its run, such as `train`, or `simulate-3-of-16`."""
        return stage if part is None else f"{stage}-{part}-of-{self.stages[stage].parts}"

    def log(self, stage: str, part: int | None = None) -> str:
        """Where a job's output goes, every attempt after the one before."""
        return str(Path(self.run) / "logs" / f"{self.step(stage, part)}.log")

    def is_divided(self, stage: str) -> bool:
        """Whether several jobs share a stage, and a last one puts their files together."""
        return stage in DIVISIBLE and self.stages[stage].parts > 1

    def processes(self, stage: str) -> int:
        """Processes of a job: one a GPU where there are several GPUs or nodes, else one."""
        asked = self.stages[stage]
        return asked.nodes * max(1, asked.gpus) if stage == "train" else 1

    def argv(self, stage: str, part: int | None = None) -> list[str]:
        """Command line of a job."""
        argv = [*self.command, stage, self.case, "--run-dir", self.run]
        if part is not None:
            argv += ["--shard" if stage == "simulate" else "--part", f"{part}/{self.stages[stage].parts}"]
        elif stage == "simulate" and self.is_divided(stage):
            return [*argv, "--merge"]
        if stage == "simulate":  # a job may see more cores of the node than it asked for
            argv += ["--workers", str(self.stages[stage].cores)]
        if self.processes(stage) > 1:
            asked = self.stages[stage]
            tasks = max(1, asked.gpus)
            launch = self.launch.format(nodes=asked.nodes, tasks=tasks, cores=asked.cores)
            argv = [*shlex.split(launch), *argv]  # `train` finds out from the launcher which process it is
        return argv

    def params(self, stage: str, part: int | None = None) -> dict[str, Any]:
        """What the submit command of a profile and the script of a job read, by name."""
        asked = self.stages[stage]
        argv = self.argv(stage, part)
        return {
            "argv": argv,
            "command": shlex.join(argv),
            "folder": self.folder,
            "name": self.name(stage, part),
            "stage": stage,
            "log": self.log(stage, part),
            "cores": asked.cores,
            "memory_mb": asked.memory_mb,
            "nodes": asked.nodes,
            "tasks": max(1, asked.gpus) if self.processes(stage) > 1 else 1,
            "gpus": asked.gpus,
            "gpu_options": self.gpu_options.format(gpus=asked.gpus) if asked.gpus else "",
        }

    def resources(self, stage: str) -> dict[str, Callable[..., int | str]]:
        """What grows with the attempt: the time limit, doubled at each."""
        asked = self.stages[stage]

        def minutes(wildcards: Any, attempt: int) -> int:
            wanted = asked.minutes * 2 ** (attempt - 1)
            return min(wanted, self.most_minutes) if self.most_minutes else wanted

        return {
            "minutes": minutes,
            "walltime": lambda wildcards, attempt: walltime(minutes(wildcards, attempt)),
        }

    def marks_before(self, stage: str) -> list[str]:
        """Marks that a stage waits for: of the stages it reads that are to be done, and of its own parts."""
        parts = [f"{stage}-{i}" for i in range(self.stages[stage].parts)] if self.is_divided(stage) else []
        return [*parts, *self.marks_of_inputs(stage)]

    def marks_of_inputs(self, stage: str) -> list[str]:
        """Marks of the stages it reads that are to be done."""
        return [s for s in AFTER[stage] if s in self.stages]


def walltime(minutes: int) -> str:
    """Minutes as HH:MM:SS, which PBS wants.

    Examples:
        >>> walltime(90)
        '01:30:00'
    """
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"
