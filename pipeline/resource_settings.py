"""Settings of what each stage asks a cluster for."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from pipeline.network_settings import Positive, PositiveFloat, Settings


class StageResources(Settings):
    """What one job of a stage asks a cluster for. Never part of a content key: the output does not depend on it."""

    cores: Positive = Field(default=1, description="CPU cores of a job; of each process where there are several")
    memory_gb: PositiveFloat = Field(default=4.0, description="memory of a node, GB")
    gpus: Annotated[int, Field(ge=0)] = Field(default=0, description="GPUs of a node")
    nodes: Positive = Field(default=1, description="nodes; one, as every stage is one process")
    minutes: Positive = Field(default=60, description="time limit; doubled at each retry")
    parts: Positive = Field(default=1, description="jobs that share the work of a stage which can be divided")


class ResourcesSettings(Settings):
    """What each stage asks for on a cluster (`elboscope run --profile`)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), populate_by_name=True
    )

    simulate: StageResources = StageResources(parts=16)
    likelihood: StageResources = StageResources(cores=4, memory_gb=8, minutes=240)
    train: StageResources = StageResources(cores=4, memory_gb=8, minutes=240)
    infer: StageResources = StageResources(cores=4, memory_gb=8, minutes=120)
    validation: StageResources = Field(default=StageResources(cores=4, memory_gb=8), alias="validate")
    compare: StageResources = StageResources(cores=4, minutes=120)
    report: StageResources = StageResources(minutes=30)
