"""Settings of stage `likelihood`: what is learned of p(x given theta), and how far it is trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.network_settings import EmbeddingSettings, FlowSettings, Positive, PositiveFloat, Settings


class SummarySettings(Settings):
    """s(x), the numbers whose density is learned in place of that of x."""

    kind: Literal["auto", "none", "features", "pca", "learned"] = Field(
        default="auto",
        description="none: all data as they are; features: the simulator's own; pca: principal components of the data; learned: an embedding trained by forward KL, which maximises a bound of the mutual information of s and theta; auto: none for up to 16 data numbers, else learned",
    )
    size: Positive | None = Field(
        default=None, description="numbers of pca and learned; default: twice the parameters, at most 24"
    )
    file: Path | None = Field(
        default=None,
        description="a likelihood.safetensors whose summary is used as it is, so that evidences can be compared; relative to this file",
    )
    embedding: EmbeddingSettings = EmbeddingSettings()


class LikelihoodGuardSettings(Settings):
    """Where the learned likelihood is not trusted, it is lowered."""

    enabled: bool = Field(default=True, description="false: the learned density as it is, wherever q goes")
    spread_level: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.99, description="share of held-out simulations whose ensemble spread is not penalised"
    )
    spread_penalty: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="nats subtracted where the spread is twice that level; grows by the square"
    )
    density_level: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.99, description="share of held-out simulations that count as inside the training set"
    )
    density_penalty: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="nats subtracted for each nat that log density lies below that level"
    )


class JointSettings(Settings):
    """Likelihood and posterior trained together (`training/joint_likelihood.py`); stage `train` goes on from that posterior."""

    enabled: bool = Field(
        default=False, description="true: one optimiser for all members and q, then stage train; false: in turn"
    )
    posterior_weight: PositiveFloat = Field(default=1.0, description="of <log q(theta given x)> of the true theta")
    elbo_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="of the ELBO of q under the members, which teaches both"
    )
    draws: Positive = Field(default=1, description="of q for each simulation of a step, for the ELBO")


class LikelihoodSettings(Settings):
    """Stage `likelihood`: an ensemble of conditional flows p(s given theta, context), by maximum likelihood."""

    when: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="auto: where the simulator has no log_likelihood; always: its own, if any, is not used; never: nothing is learned, and certificates need the simulator's own",
    )
    estimator: Literal["flow", "sbi_nle"] = Field(
        default="flow",
        description="flow: our spline couplings; sbi_nle: the network of sbi's NLE (maf), as sbi trains it",
    )
    members: Positive = Field(default=3, description="networks of the ensemble; one alone has no spread")
    flow: FlowSettings = FlowSettings(transforms=4, hidden=64, bins=8)
    context: Positive = Field(default=32, description="numbers to which observing conditions are embedded")
    summary: SummarySettings = SummarySettings()
    guard: LikelihoodGuardSettings = LikelihoodGuardSettings()
    joint: JointSettings = JointSettings()
    dequantize: Positive = Field(
        default=8,
        description="whole numbers get uniform noise in training; their likelihood is the mean density at so many points of the unit cell",
    )
    round_simulations: Positive | None = Field(
        default=None, description="simulations that each further round adds; default: as many as simulate.count"
    )
    steps: Positive = Field(default=6_000, description="optimiser steps of each network, at most")
    batch: Positive = Field(default=256, description="simulations a step")
    learning_rate: PositiveFloat = Field(default=3e-3, description="Adam, decays to a hundredth by a cosine")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=1e-4, description="of AdamW")
    check_every: Positive = Field(default=200, description="steps between evaluations on held-out simulations")
    patience: Positive = Field(default=8, description="evaluations without improvement after which a network is done")

    @model_validator(mode="after")
    def _joint_of_own_flows(self) -> LikelihoodSettings:
        if self.joint.enabled and self.estimator != "flow":
            raise ValueError(f"likelihood.joint: {self.estimator} trains its network by itself; set estimator: flow")
        return self
