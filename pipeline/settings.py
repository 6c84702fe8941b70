"""Settings of a case: frozen models, one a stage; a YAML file holds only what differs from the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from pipeline.ingest_settings import IngestSettings
from pipeline.likelihood_settings import LikelihoodSettings
from pipeline.network_settings import EmbeddingSettings, FlowSettings, Fraction, Positive, PositiveFloat, Settings
from pipeline.resource_settings import ResourcesSettings
from pipeline.search_settings import SearchSettings


class SimulatorSettings(Settings):
    """Which physics model, and its options."""

    name: str = Field(description="a registered simulator, or the class in `path`")
    path: Path | None = Field(default=None, description="Python file with your own simulator class")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the simulator")


class SimulateSettings(Settings):
    """Stage `simulate`: pairs (theta, x) in HDF5."""

    count: Positive = Field(default=100_000, description="simulations for training")
    held_out: Positive = Field(default=2_000, description="further simulations, for checkpoints and validation only")
    shard: Positive = Field(
        default=16_384,
        description="rows a file; a killed run continues after the last complete one; part of the content",
    )
    proposal: dict[str, dict[str, Any] | list[dict[str, Any]]] = Field(
        default_factory=dict,
        description="distributions from which theta is drawn in place of the prior, by parameter; or `mixture`, a list of such with a `weight` each; q targets the prior all the same",
    )
    batch: Positive | None = Field(
        default=None,
        description="simulations asked for at once; bounds memory; part of the content; default: the simulator's own `batch`, or 16384",
    )
    signal: bool = Field(
        default=False,
        description="store the noise-free signal beside x, where the simulator knows it (`signal`, `observe`); for train.noise",
    )
    workers: Positive | None = Field(default=None, description="processes; default: one a core for long work on CPUs")
    most_failed: Fraction = Field(default=0.1, description="share of failed simulations above which they are refused")
    compression: Literal["none", "zstd", "blosc2"] = Field(
        default="none", description="of shards, lossless; zstd and blosc2 need the package hdf5plugin, for reading too"
    )
    execution_only = frozenset({"workers", "most_failed", "compression"})


Objective = Literal["elbo", "iwelbo", "forward_kl", "wake"]


RATES: dict[str, float] = {"forward_kl": 5e-3, "wake": 5e-3, "iwelbo": 1e-3, "elbo": 1e-3}
"""Learning rates where none is given: a bound is climbed more slowly than a density is fitted, or modes and tails are lost."""


def _rate_of(values: dict[str, Any]) -> float:
    """The least of those that suit the objectives of a phase."""
    objective = values.get("objective", "elbo")  # missing where it was refused
    return min(RATES[name] for name in ([objective] if isinstance(objective, str) else objective or RATES))


class PhaseSettings(Settings):
    """One phase of the training schedule: one objective, or a weighted sum, for a number of steps."""

    objective: Objective | dict[Objective, PositiveFloat] = Field(
        description="what is optimised: elbo, iwelbo, forward_kl, wake, or a weighted sum such as {elbo: 0.8, forward_kl: 0.2}"
    )
    steps: Positive = Field(description="optimiser steps")
    learning_rate: PositiveFloat = Field(
        default_factory=_rate_of,
        description="Adam, at the start of the phase; decays to a hundredth by a cosine; default: 5e-3 for forward_kl and wake, 1e-3 for elbo and iwelbo, the least of them for a weighted sum",
    )
    batch: Positive = Field(default=512, description="rows of x a step")
    draws: Positive = Field(
        default=1,
        description="draws of theta from q for each x; iwelbo and wake want 8 or more (not used by forward_kl)",
    )
    gradient: Literal["sticking_the_landing", "reparameterized"] = Field(
        default="sticking_the_landing",
        description="estimator of the ELBO's gradient (iwelbo is always doubly reparameterised)",
    )
    weighted: bool = Field(
        default=False,
        description="weight each pair of forward_kl by prior over proposal, so that the prior's posterior is learned",
    )
    prior_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="wake: share of draws taken from the prior, which bounds the weights of what q has lost",
    )
    memory: bool = Field(
        default=False,
        description="wake: the true theta of each simulation is one more of its draws, and is replaced by one of them in proportion to their weights: exact posterior draws of a stored x without end",
    )
    temper_from: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="exponent of the likelihood at the start of the phase; rises geometrically to 1 over its first half",
    )

    @model_validator(mode="after")
    def _something_to_optimise(self) -> PhaseSettings:
        if not self.weights:
            raise ValueError("train.phases: objective: a weighted sum needs at least one objective")
        if self.memory and "wake" not in self.weights:
            raise ValueError("train.phases: memory belongs to objective wake")
        if "wake" in self.weights:
            if self.draws < 2:
                raise ValueError(
                    "train.phases: wake compares draws of the same x: it needs draws of at least 2, better 8"
                )
            if self.prior_share and not 1 <= round(self.prior_share * self.draws) < self.draws:
                raise ValueError(
                    f"train.phases: prior_share {self.prior_share} of {self.draws} draws leaves none to the prior, or none to q"
                )
        return self

    @property
    def weights(self) -> dict[Objective, float]:
        """Weight of each objective in the loss."""
        return {self.objective: 1.0} if isinstance(self.objective, str) else dict(self.objective)

    @property
    def label(self) -> str:
        """The objective in words, such as `elbo` or `0.8 elbo + 0.2 forward_kl`."""
        if isinstance(self.objective, str):
            return self.objective
        return " + ".join(f"{weight:g} {name}" for name, weight in self.objective.items())

    @property
    def needs_likelihood(self) -> bool:
        """Whether any of its objectives evaluates log p(x given theta)."""
        return any(name != "forward_kl" for name in self.weights)


class GuardSettings(Settings):
    """What a phase must not lose on held-out simulations, and must gain; otherwise it is rolled back."""

    tolerance: Annotated[float, Field(ge=0)] = Field(
        default=0.05, description="nats by which the mean log q of the true theta may fall below its best so far"
    )
    criterion: Literal["auto", "forward_log_q", "elbo", "ess_fraction"] = Field(
        default="auto",
        description="what must improve; auto: forward_log_q for forward_kl, elbo for elbo, else ess_fraction",
    )
    patience: Positive = Field(
        default=4, description="checks in a row that fail the tolerance after which a phase ends early"
    )


class TrainSettings(Settings):
    """Stage `train`."""

    phases: tuple[PhaseSettings, ...] = Field(
        default=(), description="the schedule; empty: chosen from likelihood and number of simulations"
    )
    data: Literal["file", "online"] = Field(
        default="file",
        description="where training pairs come from: stored simulations, or fresh ones at every step (fast batched simulators)",
    )
    noise: Literal["stored", "fresh"] = Field(
        default="stored",
        description="fresh: every step observes the stored signals anew (simulate.signal: true); held-out simulations keep their noise",
    )
    devices: Positive | Literal["auto"] = Field(
        default=1,
        description="processes that train together on this machine, each on its own rows of every batch: one a GPU, or on CPU cores; auto: all GPUs. Under srun or torchrun their number decides",
    )
    memory_gb: PositiveFloat = Field(
        default=4.0,
        description="stored simulations that take more are read from the file while training, in as much memory (1e9 bytes)",
    )
    guard: GuardSettings = GuardSettings()
    steps: Positive | None = Field(
        default=None, description="if given: total steps, shared among the phases in their proportions"
    )
    flow: FlowSettings = FlowSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999, description="decay of the running average of the weights; 0 is off"
    )
    gradient_clip: PositiveFloat = Field(default=5.0, description="largest norm of the gradient")
    check_every: Positive = Field(default=500, description="steps between evaluations on held-out simulations")
    checkpoint_every: Positive = Field(
        default=500, description="steps between checkpoints from which a killed run continues"
    )
    execution_only = frozenset({"devices", "memory_gb"})


class AdaptSettings(Settings):
    """Before a refinement, where the amortized q is far off: the copy follows its own weighted draws."""

    below: Fraction = Field(
        default=0.3, description="ess_fraction of the amortized q below which the copy adapts first; 0: never"
    )
    rounds: Positive = Field(default=12, description="at most so many rounds of drawing, weighting and fitting")
    steps: Positive = Field(default=60, description="optimiser steps a round")
    draws: Positive = Field(default=8_000, description="draws of theta a round")
    learning_rate: PositiveFloat = Field(default=1e-3, description="Adam, decays within each round by a cosine")
    effective_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="share of the draws that tempering leaves effective"
    )
    enough: Fraction = Field(default=0.6, description="ess_fraction at which it ends")
    wide_scale: PositiveFloat = Field(default=1.5, description="factor by which a tenth of the draws is widened")


class RefineSettings(Settings):
    """Refinement of q on one observation: a copy trained on the ELBO of that x alone."""

    when: Literal["auto", "always", "never"] = Field(
        default="auto", description="auto: where the amortized q is not exact"
    )
    adapt: AdaptSettings = AdaptSettings()
    steps: Annotated[int, Field(ge=0)] = Field(default=300, description="optimiser steps on the ELBO")
    draws: Positive = Field(default=256, description="draws of theta a step")
    learning_rate: PositiveFloat = Field(default=5e-4, description="Adam, decays to a hundredth by a cosine")
    amortized_share: Fraction = Field(
        default=0.1, description="share of the amortized q in the mixture that draws and weighs"
    )
    wide_share: Fraction = Field(default=0.1, description="share of the amortized q with widened tails in that mixture")
    wide_scale: PositiveFloat = Field(default=1.5, description="factor by which those tails are widened")
    together: Positive = Field(default=16, description="observations refined at once; on a GPU more pay")

    @model_validator(mode="after")
    def _room_for_the_refined(self) -> RefineSettings:
        if self.amortized_share + self.wide_share >= 1:
            raise ValueError("infer.refine: amortized_share and wide_share must add up to less than 1")
        return self


class SampleSettings(Settings):
    """The last rung: MCMC on one observation, started from its weighted draws."""

    when: Literal["auto", "never"] = Field(default="auto", description="auto: where every other rung failed")
    walkers: Positive = Field(default=64, description="walkers of emcee's ensemble")
    steps: Positive = Field(default=4_000, description="steps kept for each walker")
    burn_in: Positive = Field(default=1_000, description="steps discarded first")


LEAST_CHECKS = 50
"""Simulations below which a learned likelihood is not compared with its simulator."""


class InferSettings(Settings):
    """Stage `infer`: posteriors and certificates."""

    draws: Positive = Field(default=2_000, description="equally weighted draws delivered for each observation")
    proposals: Positive | None = Field(
        default=None,
        description="draws of q that are weighted for each observation, at least ten times `draws`; default: ten times",
    )
    equal_proposals: Positive | None = Field(
        default=None,
        description="so many are weighted first, and no more where the weights are nearly equal; default: twice `draws`",
    )
    refine: RefineSettings = RefineSettings()
    search: SearchSettings = SearchSettings()
    sample: SampleSettings = SampleSettings()
    exact_ess_fraction: Fraction = Field(default=0.5, description="least ess_fraction of verdict exact or refined")
    exact_pareto_k: float = Field(default=0.5, description="largest pareto_k of verdict exact or refined")
    equal_ess_fraction: Fraction = Field(
        default=0.95, description="ess_fraction from which weights are so equal that equal_pareto_k suffices for exact"
    )
    equal_pareto_k: float = Field(default=0.7, description="largest pareto_k there")
    corrected_ess: PositiveFloat = Field(default=400.0, description="least effective sample size of verdict corrected")
    corrected_pareto_k: float = Field(default=0.7, description="largest pareto_k of verdict corrected")
    defensive_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="share of draws taken from `defensive` instead of q, which bounds the weights at 1 / share; 0: none",
    )
    defensive: Literal["wide", "prior"] = Field(
        default="wide", description="wide: q with its base distribution widened by refine.wide_scale; prior: the prior"
    )
    predictive_draws: Annotated[int, Field(ge=0)] = Field(
        default=1_000,
        description="replicated data for the posterior predictive check of each observation; 0: no check",
    )
    atypical_below: Fraction = Field(
        default=0.01, description="probability at which an observation unlike the simulations is flagged"
    )
    most_outside: Fraction = Field(
        default=0.05,
        description="with a learned likelihood: share of draws outside what was simulated above which the certificate says so",
    )
    surrogate_check: Annotated[int, Field(ge=0)] = Field(
        default=400,
        description="with a learned likelihood: simulations at the delivered draws of each observation, against draws of the learned likelihood, at least 50; 0: not checked, and the certificate says so",
    )
    surrogate_below: Annotated[float, Field(ge=0.001, lt=1)] = Field(
        default=0.001,
        description="p-value of that check below which an observation is failed, each by itself",
    )
    memory_gb: PositiveFloat = Field(default=0.5, description="bound of what draws and weights of a part take")
    store_proposals: Literal["auto", "always", "never"] = Field(
        default="auto", description="weighted draws in the output; auto: for up to 100 observations"
    )

    @property
    def most_proposals(self) -> int:
        """Weighted draws where weights are not nearly equal."""
        return self.proposals or 10 * self.draws

    @model_validator(mode="after")
    def _enough_proposals(self) -> InferSettings:
        if self.most_proposals < 10 * self.draws:
            raise ValueError(
                f"infer.proposals ({self.proposals}) must be at least ten times infer.draws ({self.draws})"
            )
        if self.equal_proposals is not None and self.equal_proposals < self.draws:
            raise ValueError(
                f"infer.equal_proposals ({self.equal_proposals}) must be at least infer.draws ({self.draws})"
            )
        if 0 < self.surrogate_check < LEAST_CHECKS:
            raise ValueError(
                f"infer.surrogate_check ({self.surrogate_check}) must be at least {LEAST_CHECKS} simulations, or 0: not checked"
            )
        return self


class ValidateSettings(Settings):
    """Stage `validate`: calibration on held-out simulations."""

    simulations: Positive = Field(default=500, description="held-out simulations")
    draws: Positive = Field(default=250, description="delivered draws for each")
    proposals: Positive = Field(default=2_500, description="weighted draws of q for each; five times more where needed")
    least_ess: PositiveFloat = Field(
        default=100.0, description="least effective sample size with which a simulation is tested"
    )
    most_pareto_k: float = Field(
        default=0.7,
        description="largest pareto_k of its weights: above it they are not to be trusted, however many are effective",
    )
    weighted: bool = Field(
        default=True,
        description="true: the delivered posterior, q weighted by the likelihood; false: q as the network has it, where too few draws would stay effective",
    )


class EmceeSettings(Settings):
    """emcee's affine-invariant ensemble."""

    enabled: bool = True
    walkers: Positive = Field(default=64, description="walkers, started from weighted draws of q")
    steps: Positive = Field(default=3_000, description="steps kept for each walker")
    burn_in: Positive = Field(default=500, description="steps discarded first")


class NautilusSettings(Settings):
    """nautilus: importance nested sampling with neural bounds."""

    enabled: bool = True
    live_points: Positive = 1_000
    effective_draws: Positive = Field(default=10_000, description="effective sample size at which it stops")


class CompareSettings(Settings):
    """Stage `compare`: baselines on the same likelihood and prior."""

    emcee: EmceeSettings = EmceeSettings()
    nautilus: NautilusSettings = NautilusSettings()
    draws: Positive = Field(default=5_000, description="draws of each side in C2ST")
    observations: Positive = Field(default=1, description="how many observations, from the first")


class CaseSettings(Settings):
    """A case: everything that `elboscope run` needs."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), populate_by_name=True
    )

    name: str = Field(default="", description="name of the run folder; default: the name of the YAML file")
    title: str = Field(default="", description="title of the report")
    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="every random number is a function of it")
    simulator: SimulatorSettings
    observation: Path | None = Field(
        default=None,
        description="observed data: our HDF5, or what the simulator reads; relative to this file, or fetch:NAME",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is one")
    threads: Annotated[int, Field(ge=0)] = Field(
        default=0, description="CPU threads of torch; 0: one a core. Part of bit-for-bit reproduction"
    )
    ingest: IngestSettings = IngestSettings()
    rounds: Positive = Field(
        default=1,
        description="with a learned likelihood and one observation: `run` simulates more where q puts its mass, and learns again, so many times in all",
    )
    simulate: SimulateSettings = SimulateSettings()
    likelihood: LikelihoodSettings = LikelihoodSettings()
    train: TrainSettings = TrainSettings()
    infer: InferSettings = InferSettings()
    validation: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    compare: CompareSettings = CompareSettings()
    resources: ResourcesSettings = Field(
        default=ResourcesSettings(), description="cores, memory, GPUs and time of each stage on a cluster"
    )

    @model_validator(mode="after")
    def _joint_from_the_prior(self) -> CaseSettings:
        if self.likelihood.joint.enabled and (self.rounds > 1 or self.simulate.proposal):
            raise ValueError(
                "likelihood.joint: its bound holds for theta from the prior; set rounds: 1 and leave simulate.proposal out"
            )
        return self

    def dump(self, *include: str) -> dict[str, Any]:
        """Plain JSON values, by the names used in YAML; `include` keeps only those blocks.

        Without `include` all but `resources`, which say where a file was made and not what is in it.
        """
        values = self.model_dump(mode="json", by_alias=True)
        return {k: values[k] for k in include or (n for n in values if n != "resources")}

    def content(self, *include: str) -> dict[str, Any]:
        """`dump` without settings that are execution-only."""
        values = self.dump(*include)
        for name, block in ((f.alias or n, getattr(self, n)) for n, f in type(self).model_fields.items()):
            if isinstance(block, Settings) and name in values:
                values[name] = {k: v for k, v in values[name].items() if k not in block.execution_only}
        return values
