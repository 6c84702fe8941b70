"""Features of order one: each column by itself, or shared over the positions of a grid or the items of a set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import InputError


def inverse_scale(mean: Tensor, spread: Tensor) -> Tensor:
    """1 / spread, and zero for what is constant."""
    varies = spread > 1e-6 * mean.abs().clamp_min(1e-12)
    return torch.where(varies, 1 / spread.clamp_min(1e-300), 0.0)


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
        self.mean.copy_(mean)
        self.inverse_scale.copy_(inverse_scale(mean, spread))

    def forward(self, features: Tensor) -> Tensor:
        return (features.to(self.mean.dtype) - self.mean) * self.inverse_scale


class StandardizeChannels(nn.Module):
    """(x - mean) / standard deviation of each channel, over the training set and all positions.

    Args:
        shape: (channels, ...) of one observation.
    """

    mean: Tensor
    inverse_scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("mean", torch.zeros(shape[0]))
        self.register_buffer("inverse_scale", torch.ones(shape[0]))

    def fit(self, features: Tensor) -> None:
        """Fit to features (N, F)."""
        values = features.double().view(len(features), self.shape[0], -1)
        mean, spread = values.mean((0, 2)), values.transpose(0, 1).flatten(1).std(1)
        self.mean.copy_(mean)
        self.inverse_scale.copy_(inverse_scale(mean, spread))

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, channels, ...)."""
        values = features.to(self.mean.dtype).view(len(features), self.shape[0], -1)
        values = (values - self.mean[:, None]) * self.inverse_scale[:, None]
        return values.view(len(features), *self.shape)


class StandardizeItems(nn.Module):
    """(x - mean) / standard deviation of each number of an item, over present items; absent ones become zero.

    Args:
        shape: (items, numbers) of one observation, the last number a mask.
    """

    mean: Tensor
    inverse_scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("mean", torch.zeros(shape[1] - 1))
        self.register_buffer("inverse_scale", torch.ones(shape[1] - 1))

    def _items(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers (N, items, numbers - 1), and whether each item is present (N, items)."""
        items = features.view(len(features), *self.shape)
        return items[..., :-1], items[..., -1] > 0.5

    def fit(self, features: Tensor) -> None:
        """Fit to features (N, F)."""
        numbers, present = self._items(features.double())
        values = numbers[present]
        if len(values) < 2:
            raise InputError("train.embedding: fewer than two items are present in the whole training set")
        mean = values.mean(0)
        self.mean.copy_(mean)
        self.inverse_scale.copy_(inverse_scale(mean, values.std(0)))

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, items, numbers), the last number 1 for present items and 0 for others."""
        numbers, present = self._items(features.to(self.mean.dtype))
        numbers = torch.where(present[..., None], (numbers - self.mean) * self.inverse_scale, 0.0)
        return torch.cat([numbers, present[..., None].to(numbers.dtype)], dim=-1)
