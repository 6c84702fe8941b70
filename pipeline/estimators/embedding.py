"""From x to the context of the flow: fixed features, standardised, then a learned network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from sbi.neural_nets.embedding_nets import ResNetEmbedding1D
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.estimators.embedding_networks import BesideX, SetNetwork, TransformerNetwork, convolutions
from pipeline.estimators.standardize import Standardize, StandardizeChannels, StandardizeItems
from pipeline.settings import EmbeddingSettings

AXES = {
    "cnn1d": ("channels", "length"),
    "cnn2d": ("channels", "height", "width"),
    "set": ("items", "numbers"),
    "transformer": ("items", "numbers"),
}


def structured_shape(settings: EmbeddingSettings, shape: Sequence[int], features: int) -> tuple[int, ...]:
    """The shape in which the embedding reads F features: of the settings, or of the simulator.

    Raises:
        InputError: none is declared, or it does not fit.
    """
    declared = settings.shape or tuple(shape)
    axes = AXES[settings.kind]
    wanted = f"({', '.join(axes)})"
    if len(declared) != len(axes) or math.prod(declared) != features:
        got = f"got {declared}" if declared else "none is declared"
        raise InputError(
            f"train.embedding.kind: {settings.kind} needs the shape {wanted} of its {features} features, {got}; set feature_shape of the simulator, or train.embedding.shape"
        )
    if axes == ("items", "numbers") and declared[1] < 2:
        raise InputError(f"train.embedding.kind: {settings.kind} needs at least one number an item beside its mask")
    return declared


class Embedding(nn.Module):
    """Features (N, F) -> context (N, C).

    Args:
        features: F.
        settings: kind and sizes of the network.
        shape: of the features of one observation; `settings.shape` goes before it. Kinds with structure need it.
        readout: C where a linear layer is to follow: most networks end in a ReLU, whose output piles up at zero, which has no density.

    Raises:
        InputError: a kind with structure without a shape, or with one that does not fit.
    """

    def __init__(
        self, features: int, settings: EmbeddingSettings, *, shape: Sequence[int] = (), readout: int | None = None
    ) -> None:
        super().__init__()
        self.features, self.output = features, settings.output
        self.mixed = settings.precision == "bfloat16"
        self.standardize: Standardize
        self.network: nn.Module
        hidden, layers, output = settings.hidden, settings.layers, settings.output
        if settings.kind in ("cnn1d", "cnn2d"):
            declared = structured_shape(settings, shape, features)
            self.standardize = StandardizeChannels(declared)
            self.network = convolutions(declared, settings)
        elif settings.kind in ("set", "transformer"):
            declared = structured_shape(settings, shape, features)
            self.standardize = StandardizeItems(declared)
            build = SetNetwork if settings.kind == "set" else TransformerNetwork
            self.network = build(declared[1] - 1, settings)
        else:
            self.standardize = Standardize(features)
            if settings.kind == "none":
                self.network = nn.Identity()
                self.output = features
            elif settings.kind == "residual":
                self.network = ResNetEmbedding1D(
                    features,
                    output,
                    n_blocks=layers,
                    c_internal=hidden,
                    c_hidden_final=hidden,
                    construct_mapping_kwargs={"c_hidden": hidden},
                )
            else:
                self.network = BesideX(features, settings)
                self.output = self.network.output
        if readout is not None:
            self.network = nn.Sequential(self.network, nn.Linear(self.output, readout))
            self.output = readout

    def forward(self, features: Tensor, *, standardized: bool = False) -> Tensor:
        """Context (N, C) of features (N, F), or of what `standardize` made of them."""
        read = features if standardized else self.standardize(features)
        if not self.mixed:
            return self.network(read)
        with torch.autocast(features.device.type, dtype=torch.bfloat16):
            return self.network(read).to(read.dtype)
