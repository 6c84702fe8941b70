r"""Images of a gravitationally lensed galaxy: lens equation, surface brightness, point spread function, pixels.

Deflections and brightness are those of caustics (Stone et al. 2024, https://arxiv.org/abs/2406.15542, MIT licence).
Lengths in arcsec, angles in rad, brightness in e-/s a native pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

SOFTENING_ARCSEC = 1e-4
"""Core of the Sersic profile: a pixel's centre may fall on its cusp. 1e-3 took up to 6 % off the brightest pixel of cuspy sources."""
LENS_CORE_ARCSEC = 1e-6
"""A lens on a pixel's centre would divide zero by zero there, and the convolution carry that everywhere."""
TINY = 1e-12


@dataclass(frozen=True)
class PixelGrid:
    """A square of pixels * binning native pixels a side, centred on the lens.

    Attributes:
        pixels: P, pixels a side of the image that is compared with data.
        binning: native pixels a side in each of them.
        native_arcsec: side of a native pixel.
    """

    pixels: int
    binning: int = 1
    native_arcsec: float = 0.05

    @property
    def native(self) -> int:
        """Native pixels a side."""
        return self.pixels * self.binning

    @property
    def pixel_arcsec(self) -> float:
        """Side of a pixel."""
        return self.binning * self.native_arcsec

    def centers(self, *, native: bool, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """x to the right along rows and y upwards along columns of pixel centres, each (P, P) or (native, native)."""
        count, step = (self.native, self.native_arcsec) if native else (self.pixels, self.pixel_arcsec)
        at = (torch.arange(count, dtype=torch.float32, device=device) - (count - 1) / 2) * step
        y, x = torch.meshgrid(at, at, indexing="ij")
        return x, y

    def binned(self, image: Tensor) -> Tensor:
        """Mean of the native pixels in each pixel, (..., native, native) -> (..., P, P)."""
        return F.avg_pool2d(image.unsqueeze(-3), self.binning).squeeze(-3) if self.binning > 1 else image


def ratio_and_angle(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    r"""Axis ratio and position angle of an ellipse from two numbers on the whole plane.

    $q = (1 - e) / (1 + e),\; e = \tanh |a|,\; \phi = \frac12 \mathrm{atan2}(a_2, a_1)$: round at the origin, without
    the seam that an angle has, and a proper ellipse for any a.
    """
    length = (first.square() + second.square() + TINY).sqrt()
    return torch.exp(-2 * length), 0.5 * torch.atan2(second, first + TINY)


def source_plane(lens: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""$\beta = \theta - \alpha_{SIE}(\theta) - \alpha_{shear}(\theta)$, arcsec.

    Singular isothermal ellipsoid of intermediate-axis Einstein radius (Kormann et al. 1994), and external shear about
    its centre.

    Args:
        lens: `x`, `y`, `radius` (arcsec), `e1`, `e2`, `shear_1`, `shear_2`, each (B, 1, 1).
        x, y: image plane, (native, native).
    """
    from caustics.lenses.func import reduced_deflection_angle_external_shear, reduced_deflection_angle_sie

    q, phi = ratio_and_angle(lens["e1"], lens["e2"])
    # q = 1 exactly divides by zero; 1e-4 of an ellipticity moves nothing by more than 1e-4 of the radius
    sie_x, sie_y = reduced_deflection_angle_sie(
        lens["x"], lens["y"], q.clamp_max(1 - 1e-4), phi, lens["radius"], x, y, LENS_CORE_ARCSEC
    )
    shear_x, shear_y = reduced_deflection_angle_external_shear(
        lens["x"], lens["y"], lens["shear_1"], lens["shear_2"], x, y
    )
    return x - sie_x - shear_x, y - sie_y - shear_y


def sersic(source: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    r"""$I = I_e \exp[-k_n ((r / R_e)^{1/n} - 1)]$ on an ellipse, half of the light within $R_e$ (of the major axis).

    Args:
        source: `x`, `y`, `radius` (arcsec), `e1`, `e2`, `index`, `brightness` (at R_e), each (B, 1, 1).
        x, y: source plane, (B, native, native).
    """
    from caustics.light.func import brightness_sersic, k_sersic

    q, phi = ratio_and_angle(source["e1"], source["e2"])
    n = source["index"]
    return brightness_sersic(
        source["x"], source["y"], q, phi, n, source["radius"], source["brightness"], x, y, k_sersic(n), SOFTENING_ARCSEC
    )


def convolved(image: Tensor, psf: Tensor) -> Tensor:
    """Image (..., n, n) convolved with a point spread function (m, m), m odd; zero beyond the edges."""
    n, m = image.shape[-1], psf.shape[-1]
    # what wraps around falls on the m // 2 first pixels, which are cut; 132 takes an eighth of the time of 141 = 3 x 47
    size = next_fast_len(n + m // 2)
    spectrum = torch.fft.rfft2(image, s=(size, size)) * torch.fft.rfft2(psf.to(image), s=(size, size))
    start = m // 2
    return torch.fft.irfft2(spectrum, s=(size, size))[..., start : start + n, start : start + n]


def gaussian_psf(fwhm_arcsec: float, grid: PixelGrid, size: int = 25) -> Tensor:
    """A Gaussian point spread function on native pixels, (size, size), of sum 1."""
    sigma = fwhm_arcsec / 2.354820045 / grid.native_arcsec
    at = torch.arange(size, dtype=torch.float32) - size // 2
    line = torch.exp(-0.5 * (at / sigma).square())
    psf = line[:, None] * line
    return psf / psf.sum()
