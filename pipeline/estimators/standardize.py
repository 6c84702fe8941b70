r"""Features of order one: each column by itself, or shared over the positions of a grid or the items of a set.

    z = (x - mean) / width,     held between mid - B half and mid + B half of the training set's own z,     B = 2

All in float64; only the result is cast to what the network computes in. Nothing is constant because it is small:
a column is constant where its greatest value is its least. No width is below DIGITS roundings of the numbers
themselves, so that what differs in its last digit alone is no unit of length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import InputError

BOUND = 2.0
"""B: half-ranges of the training set from its middle at which a number is held. What was fitted to lies within 1."""
DIGITS = 8
"""Roundings of the largest number of a column below which no width goes."""
SAME = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative difference up to which two numbers count as one, computed on two machines in this dtype."""


def location_and_scale(values: Tensor, *, least_width: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Mean and 1 / standard deviation of each column, (N, C) -> (C,), (C,) float64; 0 for the scale of a constant.

    $m = c + r \langle y \rangle$, $w = r\, \mathrm{sd}(y)$ with $y = (x - c) / r$ in [-1, 1], c and r middle and
    half-width of the range: neither an offset nor a unit costs digits, or leaves the range of float64.

    Args:
        values: of any floating dtype, whose rounding bounds w from below; whole numbers count as float64.
        least_width: bound of w, (C,), in place of DIGITS roundings of the largest |x|.
    """
    eps = torch.finfo(_floating(values)).eps
    values = values.double()
    low, high = values.amin(0), values.amax(0)
    constant = low == high
    middle, reach = low / 2 + high / 2, torch.where(constant, 1.0, high / 2 - low / 2)
    y = (values - middle) / reach
    if least_width is None:
        least_width = DIGITS * eps * torch.maximum(low.abs(), high.abs())
    width = torch.maximum(reach * y.std(0, correction=min(1, len(y) - 1)), least_width)
    largest = torch.finfo(torch.float64).max
    scale = torch.where(constant, 0.0, (1 / width).clamp_max(largest))
    return torch.where(constant, low, middle + reach * y.mean(0)), scale


def same_to(values: Tensor) -> float:
    """Relative difference up to which numbers of this dtype count as one."""
    return SAME[_floating(values)]


def need_bounds(tensors: Mapping[str, Tensor], name: str, source: str) -> None:
    """Whether a model file holds the bounds of the standardisation `name`.

    Raises:
        InputError: it does not: it was written when features were cast to float32 before they were standardised.
    """
    if f"{name}.low" not in tensors:
        raise InputError(f"{source}: trained by an earlier version, which cast what it read to float32; train it again")


def _floating(values: Tensor) -> torch.dtype:
    """float32, or float64 for all else."""
    return torch.float32 if values.dtype == torch.float32 else torch.float64


class Standardize(nn.Module):
    """Numbers of order one; constants become zero, and what lies far outside the training set is held at its bound.

    Buffers are float64. The result has the dtype in which the module computes, float32 unless `.double()` was called.

    Args:
        size: C, columns with statistics of their own.
    """

    mean: Tensor
    inverse_scale: Tensor
    low: Tensor
    high: Tensor
    computes_in: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        start = {"mean": 0.0, "inverse_scale": 1.0, "low": -torch.inf, "high": torch.inf}
        for name, value in start.items():
            self.register_buffer(name, torch.full((size,), value, dtype=torch.float64))
        self.register_buffer("computes_in", torch.empty(0), persistent=False)

    # ------------------------------------------------------------ layout

    def numbers(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (N, F) as (N, P, C), and which of the P are present, (N, P); None: all."""
        return features[:, None], None

    def arranged(self, numbers: Tensor, present: Tensor | None) -> Tensor:
        """(N, P, C) as the network reads it; what is absent is zero."""
        return numbers[:, 0]

    # ------------------------------------------------------------ numbers

    def fit(self, features: Tensor) -> None:
        """Fit to features (N, F)."""
        numbers, present = self.numbers(features)
        values = numbers.flatten(0, 1) if present is None else numbers[present]
        mean, scale = location_and_scale(values)
        self.mean.copy_(mean)
        self.inverse_scale.copy_(scale)
        least, most = ((v.double() - mean) * scale for v in (values.amin(0), values.amax(0)))
        middle, half = (most + least) / 2, (most - least) / 2
        self.low.copy_(middle - BOUND * half)
        self.high.copy_(middle + BOUND * half)

    def _standardized(self, numbers: Tensor) -> Tensor:
        """(x - mean) / width; of a constant, which has no width, x - mean."""
        scale = torch.where(self.inverse_scale == 0, 1.0, self.inverse_scale)
        return (numbers.to(self.mean.dtype) - self.mean) * scale

    def standardized(self, features: Tensor) -> Tensor:
        """As the network reads it, but in float64 and not held; a constant shows as its distance from what it was."""
        numbers, present = self.numbers(features)
        return self.arranged(self._standardized(numbers), present)

    def rounding(self, features: Tensor) -> Tensor:
        """How far `standardized` may differ between machines, of the same shape."""
        return (self.standardized(features * (1 + same_to(features))) - self.standardized(features)).abs()

    def bounded(self, z: Tensor) -> Tensor:
        """Standardised numbers (..., C) as the network computes with them: held at the bound."""
        return z.clamp(self.low, self.high).to(self.computes_in.dtype)

    def forward(self, features: Tensor) -> Tensor:
        numbers, present = self.numbers(features)
        return self.arranged(self.bounded(self._standardized(numbers)), present)

    def held(self, features: Tensor) -> Tensor:
        """How many of the numbers of each row lie beyond the bound, or are not the constant that they were, (N,)."""
        numbers, present = self.numbers(features)
        z = self._standardized(numbers)
        scale = torch.where(self.inverse_scale == 0, 1.0, self.inverse_scale)
        rounding = same_to(features) * self.mean.abs() * scale
        beyond = (z - z.clamp(self.low, self.high)).abs() > rounding
        return (beyond if present is None else beyond & present[..., None]).sum((1, 2))


class StandardizeChannels(Standardize):
    """The same for each channel, over the training set and all positions.

    Args:
        shape: (channels, ...) of one observation.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape[0])
        self.shape = tuple(shape)

    def numbers(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        return features.view(len(features), self.shape[0], -1).transpose(1, 2), None

    def arranged(self, numbers: Tensor, present: Tensor | None) -> Tensor:
        """(N, channels, ...)."""
        return numbers.transpose(1, 2).reshape(len(numbers), *self.shape)


class StandardizeItems(Standardize):
    """The same for each number of an item, over present items; absent ones become zero.

    Args:
        shape: (items, numbers) of one observation, the last number a mask.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape[1] - 1)
        self.shape = tuple(shape)

    def numbers(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        items = features.view(len(features), *self.shape)
        return items[..., :-1], items[..., -1] > 0.5

    def arranged(self, numbers: Tensor, present: Tensor | None) -> Tensor:
        """(N, items, numbers), the last number 1 for present items and 0 for others."""
        assert present is not None
        numbers = torch.where(present[..., None], numbers, 0.0)
        return torch.cat([numbers, present[..., None].to(numbers.dtype)], dim=-1)

    def fit(self, features: Tensor) -> None:
        """Fit to features (N, F).

        Raises:
            InputError: too few items.
        """
        present = self.numbers(features)[1]
        if present is None or int(present.sum()) < 2:
            raise InputError("train.embedding: fewer than two items are present in the whole training set")
        super().fit(features)
