"""Settings of the search for posterior modes that q lacks (`infer.search`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.network_settings import Positive, PositiveFloat, Settings


class SearchSettings(Settings):
    """A search of the whole prior for posterior mass that the delivered draws lack."""

    when: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="auto: `sample` observations of a catalogue, evenly spaced; always: every observation",
    )
    sample: Positive = Field(
        default=20, description="auto: observations that are searched; five times as many under simulate.proposal"
    )
    starts: Positive = Field(default=256, description="points from which the search climbs, drawn from the prior")
    steps: Positive = Field(default=250, description="steps of each climb; needs a differentiable likelihood")
    particles: Annotated[int, Field(ge=0)] = Field(
        default=1_000, description="particles that are annealed from prior to posterior; 0: none"
    )
    matters: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.005, description="share of the posterior that the delivered draws may lack"
    )
    widening: PositiveFloat = Field(
        default=1.2, description="factor by which the fit to each optimum is widened before it is weighed"
    )
