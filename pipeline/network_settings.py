"""Settings of networks: what every block is built on, the flow, and the embedding."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of every block of settings: frozen, unknown keys refused.

    `execution_only` names what changes how a stage runs and not what it makes: no part of a content key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
    execution_only: ClassVar[frozenset[str]] = frozenset()


class FlowSettings(Settings):
    """The normalizing flow q(theta given x)."""

    kind: Literal["coupling", "autoregressive", "zuko_nsf", "zuko_maf", "zuko_nice", "zuko_bpf"] = Field(
        default="coupling",
        description="transforms between base and affine map. coupling: rational-quadratic splines, fast both ways; autoregressive: the same splines, fast to sample, D passes for a density; zuko_*: families of zuko, nsf (splines), maf (affine) and bpf (Bernstein polynomials) fast for densities, D passes to sample; nice: affine couplings",
    )
    transforms: Positive = Field(default=5, description="layers")
    hidden: Positive = Field(default=96, description="width of the network in each layer")
    blocks: Positive = Field(default=2, description="residual blocks in each layer; hidden layers for zuko_*")
    bins: Annotated[int, Field(ge=2, le=64)] = Field(
        default=10, description="bins of each rational-quadratic spline; degree of zuko_bpf"
    )
    tail_bound: PositiveFloat = Field(
        default=5.0, description="half width of the splines, in standard deviations; linear beyond"
    )
    base: Literal["normal", "student"] = Field(
        default="normal", description="distribution of the noise; student: multivariate Student-t, heavier tails"
    )
    base_freedom: Annotated[int, Field(ge=1)] = Field(default=8, description="degrees of freedom of base student")


class EmbeddingSettings(Settings):
    """The network that turns x into the context of the flow."""

    kind: Literal["mlp", "none", "residual", "cnn1d", "cnn2d", "set", "transformer"] = Field(
        default="mlp",
        description="mlp: features as they are (up to `output` of them, linear combinations of more), and beside them what sbi's FCEmbedding makes of them; none: features go to the flow as they are; residual: sbi's ResNetEmbedding1D; cnn1d, cnn2d: sbi's CNNEmbedding, shape [channels, length] or [channels, height, width]; set: items pooled in no order; transformer: items that attend to each other; both of shape [items, numbers], the last number a mask, 1 present, 0 absent",
    )
    hidden: Positive = Field(default=128, description="width of the hidden layers")
    layers: Positive = Field(
        default=2, description="layers of the MLP (of both, for set); blocks of residual and transformer"
    )
    output: Positive = Field(default=64, description="numbers that the network hands to the flow")
    shape: tuple[Positive, ...] = Field(
        default=(), description="shape of the features of one observation; default: the simulator's feature_shape"
    )
    channels: tuple[Positive, ...] = Field(
        default=(16, 32), description="channels of each convolution of cnn1d and cnn2d", min_length=1
    )
    kernel: Positive = Field(default=5, description="width of each convolution; pooled by two after each")
    heads: Positive = Field(default=4, description="attention heads of the transformer; must divide hidden")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of the embedding's matrix products; bfloat16 for large embeddings on a GPU; weights, features and the flow stay as they are",
    )
