r"""What a smooth lens leaves of an image: residuals after its best fit, and their power by spatial frequency.

    z <- z + (J^T W J + 1)^-1 (J^T W [d - m(z)] - z),      P_b = mean over frequencies k in band b of |F[(d - m(z)) / sigma](k)|^2

z are lens and source in units of their priors' widths, about their medians; J is m's derivative there, once for all images, so that a step
costs one image. Good within some widths: give priors about the lens that was fitted. Subhalos show as power that noise (P = 1) does
not have (Bayer, Chatterjee and Koopmans 2018, https://arxiv.org/abs/1803.05952).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from simulators.strong_lens import StrongLens
from simulators.unconstrained import UnconstrainedPrior

STEPS = 8
FARTHEST = 4.0
"""|z| at most: beyond it the derivative at the medians says nothing."""
DIFFERENCE = 0.05
"""In z, of the central differences."""
BANDS = 6
BLOCK = 64
"""Images fitted at once."""


class SmoothFit:
    """Fit of `strong_lens` to images by least squares.

    Args:
        lens: whose priors say where to look.
    """

    def __init__(self, lens: StrongLens) -> None:
        self.lens = lens
        self.prior = UnconstrainedPrior.of(lens.parameters)
        self.median, self.width = self.prior.center()

    def model(self, z: Tensor) -> Tensor:
        """Images at z (N, 14), flat, (N, P * P), float64."""
        theta = self.prior.theta(self.median + self.width * z.double())
        return self.lens.model_image(theta).flatten(1).double()

    @cached_property
    def derivative(self) -> Tensor:
        """J at the medians, (P * P, 14)."""
        step = DIFFERENCE * torch.eye(len(self.median), dtype=torch.float64)
        return (self.model(step) - self.model(-step)).T / (2 * DIFFERENCE)

    @torch.no_grad()
    def residuals(self, x: Mapping[str, Tensor]) -> Tensor:
        """(d - m(z)) / sigma after the fit, 0 where masked, (N, P, P)."""
        image, noise = x["image"].flatten(1).double(), x["noise"].flatten(1).double()
        used = x["mask"].flatten(1) > 0
        weight = torch.where(used, 1 / torch.where(used, noise, 1.0).square(), 0.0)
        j = self.derivative
        normal = (j.T[None] * weight[:, None]) @ j + torch.eye(j.shape[1], dtype=torch.float64)
        factor = torch.linalg.cholesky(normal)
        z = torch.zeros(len(image), j.shape[1], dtype=torch.float64)
        for _ in range(STEPS):
            slope = (weight * (image - self.model(z))) @ j - z
            z = (z + torch.cholesky_solve(slope[..., None], factor)[..., 0]).clamp(-FARTHEST, FARTHEST)
        left = (image - self.model(z)) * weight.sqrt()
        return left.view(x["image"].shape)

    def power(self, x: Mapping[str, Tensor]) -> Tensor:
        """log P of each band, low frequencies first, (N, `BANDS`): the same count of frequencies in each."""
        rows = []
        for start in range(0, len(x["image"]), BLOCK):
            block = {name: values[start : start + BLOCK] for name, values in x.items()}
            spectrum = torch.fft.fft2(self.residuals(block)).abs().square()
            spectrum = spectrum / block["mask"].double().sum((-2, -1), keepdim=True).clamp_min(1)
            size = spectrum.shape[-1]
            frequency = torch.fft.fftfreq(size, dtype=torch.float64)
            radius = (frequency.square() + frequency[:, None].square()).flatten()
            bands = radius.argsort(stable=True).tensor_split(BANDS)
            rows.append(torch.stack([spectrum.flatten(1)[:, band].mean(-1).log() for band in bands], -1))
        return torch.cat(rows)
