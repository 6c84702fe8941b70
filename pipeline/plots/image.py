"""An image, what the posterior predicts for it, and the residual."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.plots.style import GREY, WIDTH_IN, freeze_layout, house_style, new_figure

Array = NDArray[np.float64]
LARGEST_RESIDUAL = 5.0
"""Where the colours of the residual end, in units of the error."""


def plot_image(
    observed: Array,
    models: Array,
    *,
    error: Array,
    used: NDArray[np.bool_],
    side: float,
    side_label: str = "pixel",
    data_label: str = "data",
) -> Figure:
    r"""Image d, posterior mean m of the noise-free model, and residual $(d - m) / \sigma$.

    Image and model share one scale of colours. Masked pixels are grey in image and residual; the model is whole.

    Args:
        observed, error: (H, W); 1-sigma errors.
        models: noise-free images of K posterior draws, (K, H, W).
        used: whether a pixel is compared, (H, W).
        side: of a pixel, in the unit of `side_label`; the centre of the image is the origin.
        data_label: with unit.

    Raises:
        InputError: shapes that do not match, or no pixel that is compared.
    """
    if models.ndim != 3 or not observed.shape == error.shape == used.shape == models.shape[1:]:
        raise InputError(
            f"image plot: expected models (K, H, W) and the rest (H, W), got {models.shape}, {observed.shape}, {error.shape}, {used.shape}"
        )
    if not used.any():
        raise InputError("image plot: every pixel is masked")
    mean = models.mean(0)
    residual = np.where(used, (observed - mean) / np.where(used, error, 1.0), np.nan)
    chi2 = float(np.nansum(residual**2) / used.sum())
    height, width = (side * n / 2 for n in observed.shape)
    # the faintest pixels are noise: a scale to their extremes would hide the arcs
    scale = {"vmin": float(np.quantile(observed[used], 0.01)), "vmax": float(observed[used].max())}
    panels: list[tuple[str, Array, str, dict[str, float]]] = [
        ("image", np.where(used, observed, np.nan), "magma", scale),
        ("posterior mean model", mean, "magma", scale),
        (
            f"residual, mean square {chi2:.2f}",
            residual,
            "RdBu_r",
            {"vmin": -LARGEST_RESIDUAL, "vmax": LARGEST_RESIDUAL},
        ),
    ]
    with house_style():
        figure = new_figure(WIDTH_IN, 2.9)
        axes: Any = figure.subplots(1, 3, sharex=True, sharey=True)
        for axis, (title, values, colours, limits) in zip(axes, panels, strict=True):
            shown = axis.imshow(
                values,
                origin="lower",
                cmap=colours,
                extent=(-width, width, -height, height),
                interpolation="nearest",
                **limits,
            )
            axis.set_facecolor(GREY)
            axis.set(title=title, xlabel=f"x [{side_label}]")
            label = "residual / error" if values is residual else data_label
            figure.colorbar(shown, ax=axis, orientation="horizontal", shrink=0.9, label=label)
        axes[0].set_ylabel(f"y [{side_label}]")
        return freeze_layout(figure)
