"""Figures in which data and posterior of one observation are customarily shown: what `predictive_views` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class PredictiveView:
    """Data against K posterior draws of the noise-free model, as a field draws it: folded at a period, say.

    Attributes:
        name: short, of the figure.
        abscissa_label, data_label: with unit in brackets.
        abscissa, observed, error: (M,) each.
        grid: increasing, (G,).
        curves: (K, G).
        scale: of the abscissa.
        bins: weighted means of the data in so many bins of the abscissa are drawn too; 0: none.
    """

    name: str
    abscissa_label: str
    data_label: str
    abscissa: Tensor
    observed: Tensor
    error: Tensor
    grid: Tensor
    curves: Tensor
    scale: Literal["linear", "log"] = "linear"
    bins: int = 0


@dataclass(frozen=True)
class ImageView:
    """One observed image beside the noise-free images of K posterior draws.

    Attributes:
        name: short, of the figure.
        data_label: with unit in brackets.
        observed, error: of H x W pixels, (H, W); 1-sigma errors.
        models: (K, H, W).
        used: whether a pixel is compared, (H, W).
        side: of a pixel, in `side_unit`.
    """

    name: str
    data_label: str
    observed: Tensor
    error: Tensor
    models: Tensor
    used: Tensor
    side: float
    side_unit: str
