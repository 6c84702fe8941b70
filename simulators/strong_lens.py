"""A galaxy lensed by a galaxy: image of arcs around a singular isothermal ellipsoid with shear."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simulators.lens_image import PixelGrid, convolved, gaussian_psf, sersic, source_plane
from simulators.priors import PriorSpec, distribution_from_spec
from simulators.protocol import Data, ImageView, Observable, Parameter
from simulators.reading.hdf5 import open_hdf5

BLOCK = 64
"""Images computed at once: 4 MB an array at 117 native pixels a side, some 50 arrays where gradients are wanted."""
MODELS = 2048
"""Models compared with data at once: 12 MB an array at 39 pixels a side."""
PSF_SIZE = 25
PRIORS: dict[str, tuple[PriorSpec, str, str]] = {
    # the lens lies under its light, which was subtracted about the centre of the image
    "lens_x": ({"normal": [0, 0.1]}, "arcsec", "$x_{lens}$"),
    "lens_y": ({"normal": [0, 0.1]}, "arcsec", "$y_{lens}$"),
    # what the annulus of pixels can show
    "einstein_radius": ({"uniform": [0.8, 2.4]}, "arcsec", r"$\theta_E$"),
    # axis ratio exp(-2 |a|): 0.6 to 1 at 1 sigma, as early-type lenses have it (Koopmans et al. 2006)
    "lens_e1": ({"normal": [0, 0.2]}, "", "$a_1$"),
    "lens_e2": ({"normal": [0, 0.2]}, "", "$a_2$"),
    # environments of galaxy lenses (Wong et al. 2011)
    "shear_1": ({"normal": [0, 0.06]}, "", r"$\gamma_1$"),
    "shear_2": ({"normal": [0, 0.06]}, "", r"$\gamma_2$"),
    # anywhere that gives arcs inside the annulus
    "source_x": ({"normal": [0, 0.4]}, "arcsec", "$x_{src}$"),
    "source_y": ({"normal": [0, 0.4]}, "arcsec", "$y_{src}$"),
    "source_e1": ({"normal": [0, 0.25]}, "", "$s_1$"),
    "source_e2": ({"normal": [0, 0.25]}, "", "$s_2$"),
    # faint blue galaxies: 0.05 to 0.5 arcsec
    "source_radius": ({"log_normal": [-1.6, 0.6]}, "arcsec", "$R_e$"),
    "source_index": ({"log_normal": [0.2, 0.4]}, "", "$n$"),
    "source_brightness": ({"log_normal": [-2.0, 0.8]}, "electron / s", "$I_e$"),
}


@dataclass(frozen=True)
class Instrument:
    """What is known of an image before it is taken.

    Attributes:
        psf: on native pixels, (M, M), sum 1.
        noise: 1-sigma error of each pixel, (P, P), e-/s a native pixel.
        mask: 1 where a pixel is compared, else 0, (P, P).
    """

    psf: Tensor
    noise: Tensor
    mask: Tensor


class StrongLens:
    r"""Image d = B P s(beta(theta)) + n: source seen through the lens equation, PSF P, binning B, Gaussian noise n.

    Fourteen parameters: singular isothermal ellipsoid (5), external shear (2), elliptical Sersic source (7).
    Pixels outside an annulus and inside given circles are masked: image and noise are 0 there, and 1 in likelihoods.

    Args:
        pixels, binning, native_arcsec: see `PixelGrid`.
        annulus: inner and outer radius, arcsec.
        masked_circles: x, y and radius of what is not to be modelled, such as a companion, arcsec.
        data: HDF5 file with image, noise_map, psf, pixel_scale_arcsec, whose noise and PSF every simulation has;
            without one a Gaussian PSF of 0.1 arcsec FWHM and noise of 0.01 e-/s a native pixel.
        noise_factor: multiplies the noise of binned pixels: drizzled pixels are correlated, and averages fluctuate
            more than independent ones would.
        noise_scatter: standard deviation of the logarithm of a factor that each simulation's noise has, so that q is
            amortized over depth.
        priors: in place of those in `PRIORS`, by parameter.
    """

    name = "strong_lens"

    def __init__(
        self,
        *,
        pixels: int = 39,
        binning: int = 3,
        native_arcsec: float = 0.05,
        annulus: Sequence[float] = (0.5, 2.9),
        masked_circles: Sequence[Sequence[float]] = (),
        data: str | None = None,
        noise_factor: float = 1.0,
        noise_scatter: float = 0.1,
        priors: Mapping[str, PriorSpec] | None = None,
    ) -> None:
        self.grid = PixelGrid(pixels, binning, native_arcsec)
        self.noise_factor, self.noise_scatter = noise_factor, noise_scatter
        x, y = self.grid.centers(native=False)
        radius = (x.square() + y.square()).sqrt()
        mask = (radius > annulus[0]) & (radius < annulus[1])
        for cx, cy, r in masked_circles:
            mask &= (x - cx).square() + (y - cy).square() > r**2
        self._mask = mask.float()
        unknown = set(priors or {}) - set(PRIORS)
        if unknown:
            raise ValueError(f"strong_lens: priors: unknown {', '.join(sorted(unknown))}; known: {', '.join(PRIORS)}")
        self.parameters = tuple(
            Parameter(name, distribution_from_spec((priors or {}).get(name, spec), f"prior of {name}"), unit, label)
            for name, (spec, unit, label) in PRIORS.items()
        )
        shape = (pixels, pixels)
        self.observables = (
            Observable(
                "image",
                shape,
                "electron / s",
                dtype="float32",
                label="surface brightness",
                error="noise",
                present="mask",
            ),
            Observable("noise", shape, "electron / s", role="context", dtype="float32"),
            Observable("mask", shape, role="context", dtype="float32"),
        )
        self.feature_shape = (1, pixels, pixels)
        self.instrument = self._instrument(Path(data)) if data else self._stand_in()

    def _stand_in(self) -> Instrument:
        noise = torch.full_like(self._mask, 0.01 / self.grid.binning)
        return Instrument(gaussian_psf(0.1, self.grid, PSF_SIZE), noise * self.noise_factor * self._mask, self._mask)

    def _instrument(self, path: Path) -> Instrument:
        x, psf = self._read(path)
        return Instrument(psf, x["noise"][0], x["mask"][0])

    # ------------------------------------------------------------ physics

    def model_image(self, theta: Tensor, *, perturbation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Noise-free image in e-/s a native pixel, theta (B, 14) -> (B, P, P), float32.

        Args:
            perturbation: deflections by what else there is (arcsec), (native, native) or (B, native, native) each.
        """
        column = {p.name: theta[:, d, None, None].float() for d, p in enumerate(self.parameters)}
        lens = {k: column[f"lens_{k}"] for k in ("x", "y", "e1", "e2")}
        lens |= {"radius": column["einstein_radius"], "shear_1": column["shear_1"], "shear_2": column["shear_2"]}
        source = {k: column[f"source_{k}"] for k in ("x", "y", "e1", "e2", "radius", "index", "brightness")}
        x, y = self.grid.centers(native=True, device=theta.device)
        beta_x, beta_y = source_plane(lens, x, y)
        if perturbation is not None:
            beta_x, beta_y = beta_x - perturbation[0], beta_y - perturbation[1]
        image = sersic(source, beta_x, beta_y)
        return self.grid.binned(convolved(image, self.instrument.psf.to(theta.device)))

    def _in_blocks(self, theta: Tensor) -> Tensor:
        """`model_image` of many draws: memory is that of one block, also where gradients are wanted."""
        again = theta.requires_grad and len(theta) > BLOCK
        parts = [
            checkpoint(self.model_image, part, use_reentrant=False) if again else self.model_image(part)
            for part in theta.split(BLOCK)
        ]
        return torch.cat([p for p in parts if isinstance(p, Tensor)])

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """Images with noise (e-/s a native pixel), theta (N, 14)."""
        return self.observe_models(self._in_blocks(theta.detach()), context, generator=generator)

    def observe_models(
        self, model: Tensor, context: Mapping[str, Tensor] | None, *, generator: torch.Generator
    ) -> Data:
        """Noise-free images (N, P, P) with noise, and the conditions that they were taken in."""
        count, device = len(model), model.device
        if context is None:
            noise, mask = (t.to(device).expand(count, -1, -1) for t in (self.instrument.noise, self._mask))
            scatter = torch.randn(count, 1, 1, generator=generator, device=device)
            noise = noise * torch.exp(self.noise_scatter * scatter)
        else:
            noise, mask = context["noise"].float(), context["mask"].float()
        normal = torch.randn(model.shape, generator=generator, device=device)
        return {"image": (model + noise * normal) * mask, "noise": noise.contiguous(), "mask": mask.contiguous()}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""$\log L = -\frac12 \sum_i [ (d_i - m_i(\theta))^2 / \sigma_i^2 + \log 2\pi\sigma_i^2 ]$ over unmasked pixels.

        Args:
            theta: (..., N, 14).
            x: N images. Draws go through in parts, so that their models do not fill the memory, unless gradients are wanted.
        """
        part = max(1, MODELS // len(x["image"]))
        if theta.dim() > 2 and len(theta) > part and not torch.is_grad_enabled():
            return torch.cat([self.log_likelihood(some, x) for some in theta.split(part)])
        flat = theta.reshape(-1, theta.shape[-1])
        model = self._in_blocks(flat).view(*theta.shape[:-1], *x["image"].shape[1:])
        used = x["mask"] > 0
        noise = torch.where(used, x["noise"], 1.0).float()
        z = torch.where(used, (x["image"].float() - model) / noise, 0.0)
        constant = torch.where(used, (2 * math.pi * noise.double().square()).log(), 0.0).sum((-2, -1))
        return (-0.5 * (z.square().sum((-2, -1)).double() + constant)).to(theta.dtype)

    # ------------------------------------------------------------ inputs of the network, observed files

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        """asinh of the signal-to-noise ratio of each pixel, 0 where masked, (N, P * P)."""
        used = x["mask"] > 0
        return torch.where(used, torch.asinh(x["image"] / torch.where(used, x["noise"], 1.0)), 0.0).flatten(1)

    def predictive_views(self, theta: Tensor, x: Mapping[str, Tensor]) -> list[ImageView]:
        """Image and models of one observation, theta (K, 14)."""
        return [
            ImageView(
                name="image, model and residual",
                data_label="brightness [electron / s]",
                observed=x["image"][0],
                error=x["noise"][0],
                models=self._in_blocks(theta.detach()),
                used=x["mask"][0] > 0,
                side=self.grid.pixel_arcsec,
                side_unit="arcsec",
            )
        ]

    def read_observation(self, path: Path | str) -> tuple[Data, list[str]]:
        """One image, cut about its centre and binned; its identifier is the file's stem.

        Raises:
            ValueError: a dataset is missing, too small, or of other pixels.
        """
        x, _ = self._read(Path(path))
        return x, [Path(path).stem]

    def _read(self, path: Path) -> tuple[Data, Tensor]:
        """Observables of one row, and the PSF."""
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        with open_hdf5(path) as file:
            missing = [n for n in ("image", "noise_map", "psf") if n not in file]
            if missing or "pixel_scale_arcsec" not in file.attrs:
                raise ValueError(
                    f"{path}: expected datasets image, noise_map, psf and the attribute pixel_scale_arcsec; "
                    f"missing: {', '.join(missing) or 'pixel_scale_arcsec'}"
                )
            scale = float(np.asarray(file.attrs["pixel_scale_arcsec"]))
            image, noise, psf = (
                torch.from_numpy(np.asarray(file[n], dtype=np.float32)) for n in ("image", "noise_map", "psf")
            )
        if not math.isclose(scale, self.grid.native_arcsec, rel_tol=1e-6):
            raise ValueError(
                f"{path}: pixels of {scale} arcsec, the simulator's native_arcsec is {self.grid.native_arcsec}"
            )
        image, noise = (self._cut(t, path) for t in (image, noise))
        noise = (self.grid.binned(noise.square()) / self.grid.binning**2).sqrt() * self.noise_factor
        start = (psf.shape[0] - PSF_SIZE) // 2
        psf = psf[start : start + PSF_SIZE, start : start + PSF_SIZE] if start > 0 else psf
        x = {"image": self.grid.binned(image) * self._mask, "noise": noise * self._mask, "mask": self._mask}
        return {name: values[None] for name, values in x.items()}, psf / psf.sum()

    def _cut(self, image: Tensor, path: Path) -> Tensor:
        """The central native pixels; both sides odd or both even, so that centres agree."""
        size, native = image.shape[0], self.grid.native
        if image.ndim != 2 or image.shape[1] != size or size < native or (size - native) % 2:
            raise ValueError(
                f"{path}: image of {tuple(image.shape)} pixels; expected a square of at least {native}, odd where that is odd"
            )
        start = (size - native) // 2
        return image[start : start + native, start : start + native]
