"""Photons of populations of point sources: how many sources, where, how bright, and where each photon falls."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simulators.fermi.belt import PixelTable, direction
from simulators.fermi.king_psf import KingPsf, displace
from simulators.fermi.source_counts import SourceCounts

TOGETHER = 16
"""Simulations whose photons are in memory at once; part of the content."""


@dataclass(frozen=True)
class SourceTemplate:
    r"""Where sources of a population are, and how many photons they send.

    Attributes:
        corner: (p, m) of the P pixels that hold sources, see `belt`, (P, 2).
        share: share of all sources up to and with each pixel, (P,); the last is 1.
        exposure: of each pixel over the mean exposure, (P,).
        photons: that the whole population sends where S = 1 $= \sum_p T_p / \langle T \rangle_{norm}$.
        mean_exposure: averaged over the sources.
        nside: of HEALPix.
    """

    corner: Tensor
    share: Tensor
    exposure: Tensor
    photons: float
    mean_exposure: float
    nside: int

    def to(self, device: torch.device) -> SourceTemplate:
        """A copy on `device`."""
        corner, share, exposure = (t.to(device) for t in (self.corner, self.share, self.exposure))
        return replace(self, corner=corner, share=share, exposure=exposure)


def source_template(
    counts: Tensor, exposure: Tensor, corner: Tensor, normalisation: Tensor, nside: int
) -> SourceTemplate:
    """Sources whose photons follow a template of counts: the density of sources is counts over exposure.

    Args:
        counts: expected photons of each pixel, up to a factor, (P,).
        exposure: over the mean exposure, (P,).
        corner: (p, m) of the pixels, (P, 2).
        normalisation: the pixels in which S is the mean number of photons, (P,), bool.
        nside: of HEALPix.
    """
    density = (counts / exposure).double()
    share = (density.cumsum(0) / density.sum()).float()
    share[-1] = 1.0
    photons = float(counts.sum() / counts[normalisation].mean())
    return SourceTemplate(corner, share, exposure.float(), photons, float(counts.sum() / density.sum()), nside)


def mean_sources(strength: Tensor, counts: SourceCounts, template: SourceTemplate) -> Tensor:
    r"""Expected number of sources, $S\, photons / (\langle F \rangle \langle e \rangle)$, strength S (N,) -> (N,)."""
    return strength.double() * template.photons / (counts.moment(1) * template.mean_exposure)


def source_photons(
    strength: Tensor,
    counts: SourceCounts,
    template: SourceTemplate,
    *,
    psf: KingPsf,
    pixels: PixelTable,
    size: int,
    generator: torch.Generator,
) -> Tensor:
    """Photons of N populations in the `size` pixels of a set, (N, size), float32.

    The number of sources is Poisson; each lies uniformly in a pixel drawn from the template, has a flux from its
    distribution, sends a Poisson number of photons through the exposure there, and each of them is displaced by the PSF.

    Args:
        strength: S, mean photons a pixel in the mask that normalises the template, (N,).
        counts: of the N populations.
        template: where the sources are.
        psf: point-spread function.
        pixels: which of the set a photon falls into; those outside it are lost.
        size: pixels in the set.
        generator: the only source of random numbers, on the device of strength.
    """
    numbers = torch.poisson(mean_sources(strength, counts, template), generator=generator).long()
    parts: list[Tensor] = []
    for start in range(0, len(strength), TOGETHER):
        some = numbers[start : start + TOGETHER]
        row = torch.repeat_interleave(torch.arange(len(some), device=some.device), some)
        flux = counts.sample(row + start, generator)
        photons, phi, z = _emit(flux, template, generator)
        row = torch.repeat_interleave(row, photons)
        azimuth = 2 * math.pi * torch.rand(len(phi), generator=generator, device=phi.device)
        phi, z = displace(phi, z, psf.sample(len(phi), generator), azimuth)
        place = row * (size + 1) + pixels.find(phi, z)
        parts.append(torch.bincount(place, minlength=len(some) * (size + 1)).view(len(some), size + 1)[:, :size])
    return torch.cat(parts).float()


def _emit(flux: Tensor, template: SourceTemplate, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Photons of each source (K,), and the longitude (rad) and z of the source of every photon, (sum of photons,)."""
    u = torch.rand(3, len(flux), generator=generator, device=flux.device)
    pixel = torch.searchsorted(template.share, u[0])
    photons = torch.poisson(flux * template.exposure[pixel], generator=generator).long()
    corner = template.corner[pixel]
    phi, z = direction(corner[:, 0] + u[1], corner[:, 1] + u[2], template.nside)
    return photons, torch.repeat_interleave(phi, photons), torch.repeat_interleave(z, photons)
