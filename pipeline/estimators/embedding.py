"""From x to the context of the flow: fixed features, standardised, then a learned network."""

from __future__ import annotations

import torch
from sbi.neural_nets.embedding_nets import FCEmbedding
from torch import Tensor, nn

from pipeline.config import EmbeddingSettings


class Standardize(nn.Module):
    """(features - mean) / standard deviation of the training set; constant features become zero."""

    mean: Tensor
    inverse_scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("inverse_scale", torch.ones(size))

    def fit(self, features: Tensor) -> None:
        """Fit to features (N, F)."""
        features = features.double()
        mean, spread = features.mean(0), features.std(0)
        varies = spread > 1e-6 * mean.abs().clamp_min(1e-12)
        self.mean.copy_(mean)
        self.inverse_scale.copy_(torch.where(varies, 1 / spread.clamp_min(1e-300), 0.0))

    def forward(self, features: Tensor) -> Tensor:
        return (features.to(self.mean.dtype) - self.mean) * self.inverse_scale


class Embedding(nn.Module):
    """Features (N, F) -> context (N, C).

    Args:
        features: F.
        settings: kind and sizes of the network.
    """

    def __init__(self, features: int, settings: EmbeddingSettings) -> None:
        super().__init__()
        self.standardize = Standardize(features)
        if settings.kind == "none":
            self.network: nn.Module = nn.Identity()
            self.output = features
        else:
            self.network = FCEmbedding(
                features, output_dim=settings.output, num_layers=settings.layers, num_hiddens=settings.hidden
            )
            self.output = settings.output

    def forward(self, features: Tensor) -> Tensor:
        return self.network(self.standardize(features))
