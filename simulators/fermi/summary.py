r"""What a map of counts says about templates and about point sources, in a few hundred numbers.

1. A fit of seven templates, the six of smooth emission and the disk: normalisations.
2. What it leaves over, region by region: histograms of each pixel's significance and of the photons in a PSF around it.
   Point sources make both skew; how far their tails reach tells their fluxes, and in which regions, their template.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.fermi.belt import direction, lattice
from simulators.fermi.king_psf import displace
from simulators.fermi.sky import PARAMETERS, SMOOTH, Sky
from simulators.fermi.template_fit import TemplateFit, fit_templates, logit_guess

FITTED = (*SMOOTH, "dsk")
GUESSED = ("A_iso", "A_bub", "A_psc", "A_pibrem", "A_ics", "S_ps_dsk")
"""Parameters for which the fit is a guess of the posterior: of the excess it gives the sum of sources and smooth emission."""
WIDER = 1.5
"""Errors of the guess are wider than those of the fit, which knows Poisson noise alone."""
RINGS_DEG = (6.0, 10.0, 15.0, 20.0)
PLANE_DEG = 6.0
SIGNIFICANCE = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
"""Edges of a pixel's significance, in standard deviations."""
PHOTONS = (-8.0, -4.0, 0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 13.0, 17.0, 22.0, 28.0, 36.0, 46.0)
"""Edges of the photons of a source at a pixel's centre that would best explain it and its neighbours."""
PSF_DRAWS = 200_000
TOGETHER = 16
"""Maps at once: what they need stays in the cache of a core."""


@dataclass(frozen=True)
class Summary:
    """Fixed numbers behind the features.

    Attributes:
        templates: of the fit, (7, M).
        mean, spread: of the priors of their normalisations, (7,) each.
        low, high: of the priors of all parameters, (18,) each.
        place: of each analysed pixel in the table's lattice, (M,).
        shape: of the lattice.
        kernel: share of the photons of a source somewhere in a pixel that fall into it and its neighbours, (3, 3).
        region: indicator of each pixel's region, (M, R).
    """

    templates: Tensor
    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor
    place: Tensor
    shape: tuple[int, int]
    kernel: Tensor
    region: Tensor

    @classmethod
    def of(cls, sky: Sky) -> Summary:
        """Of a sky."""
        low, high = (torch.tensor([end[p] for p in PARAMETERS], dtype=torch.float64) for end in (sky.low, sky.high))
        fitted = [*range(6), PARAMETERS.index("S_ps_dsk")]
        number = sky.table.number.flatten()
        place = torch.empty(sky.size, dtype=torch.long)
        inside = (number < sky.size).nonzero()[:, 0]
        place[number[inside]] = inside
        middle = (low + high)[fitted] / 2
        return cls(
            templates=sky.analysed(*FITTED),
            mean=middle + middle * (torch.arange(7) == 0),  # the excess, smooth and in sources, is one template
            spread=(high - low)[fitted] / 12**0.5,
            low=low,
            high=high,
            place=place,
            shape=(sky.table.number.shape[0], sky.table.number.shape[1]),
            kernel=psf_kernel(sky),
            region=regions(sky),
        )

    def fit(self, counts: Tensor) -> TemplateFit:
        """The seven templates, of N maps (N, M)."""
        moved = (t.to(counts.device) for t in (self.templates, self.mean, self.spread))
        return fit_templates(counts, *moved)

    def features(self, counts: Tensor) -> Tensor:
        """(N, M) -> (N, F), float64."""
        return torch.cat([self._block(some) for some in counts.split(TOGETHER)])

    def _block(self, counts: Tensor) -> Tensor:
        fit = self.fit(counts)
        residual = counts - fit.rate
        significance = residual / fit.rate.sqrt()
        photons, error = self.source_photons(residual, fit.rate)
        region = self.region.to(counts.device)
        size = region.sum(0)
        parts = [fit.norm, fit.error.log()]
        for values, edges in ((significance, SIGNIFICANCE), (photons, PHOTONS), (photons / error, SIGNIFICANCE)):
            parts.append(_histograms(values, edges, region))
        for values in (significance, photons / error):
            for power in (2, 3):
                moment = values.clamp(-12, 12).pow(power) @ region / size
                parts.append(moment.sign() * moment.abs().sqrt() if power == 3 else moment.log())
        parts.append(residual @ region / (fit.rate @ region).sqrt())
        return torch.cat(parts, -1)

    def source_photons(self, residual: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        r"""Photons of a source in each pixel that best explain it and its eight neighbours, and their errors, (N, M) each.

        $A = \sum_j k_j r_j / \lambda_j \big/ \sum_j k_j^2 / \lambda_j$ over analysed j, $\sigma = (\sum_j k_j^2 / \lambda_j)^{-1/2}$.
        """
        image = torch.zeros(2, len(rate), self.shape[0] * self.shape[1], device=rate.device, dtype=rate.dtype)
        place = self.place.to(rate.device)
        image[0][:, place] = residual / rate
        image[1][:, place] = 1 / rate
        kernel = self.kernel.to(image)
        along, square = torch.zeros_like(image)
        for (i, j), shift in self._neighbours():
            along += kernel[i, j] * image[0].roll(shift, -1)
            square += kernel[i, j].square() * image[1].roll(shift, -1)
        along, square = along[:, place], square[:, place]
        return along / square, square.rsqrt()

    def _neighbours(self) -> list[tuple[tuple[int, int], int]]:
        """Places in the kernel, and the shift of the flattened lattice that brings each neighbour to a pixel; its border is empty."""
        return [((i, j), (1 - i) * self.shape[1] + 1 - j) for i in range(3) for j in range(3)]

    def pilot(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale on the unconstrained space, (N, 18) each: the fit for what it can say, else 0 and 1."""
        fit = self.fit(counts)
        location = torch.zeros(len(counts), len(PARAMETERS), dtype=torch.float64, device=counts.device)
        scale = torch.ones_like(location)
        index = [PARAMETERS.index(name) for name in GUESSED]
        low, high = (end[index].to(counts.device) for end in (self.low, self.high))
        location[:, index], scale[:, index] = logit_guess(fit.norm[:, 1:], WIDER * fit.error[:, 1:], low, high)
        return location, scale


def _histograms(values: Tensor, edges: tuple[float, ...], region: Tensor) -> Tensor:
    """Square roots of the numbers of pixels between edges in each region, whose noise is nearly one half, (N, (E + 1) R)."""
    bins = torch.bucketize(values, torch.tensor(edges, dtype=values.dtype, device=values.device))
    number = region.argmax(1)  # every pixel is in one region
    cells = (len(edges) + 1) * region.shape[1]
    row = torch.arange(len(values), device=values.device)[:, None] * cells
    place = row + bins * region.shape[1] + number
    count = torch.bincount(place.flatten(), minlength=len(values) * cells)
    return count.view(len(values), cells).double().sqrt()


def regions(sky: Sky) -> Tensor:
    """Rings about the centre, near to the plane and far from it, (M, R), float64; those without pixels are left out."""
    phi, z = sky.phi[sky.analysis], sky.z[sky.analysis]
    radius = torch.rad2deg(((1 - z.square()).sqrt() * phi.cos()).acos())
    ring = torch.bucketize(radius, torch.tensor(RINGS_DEG, dtype=radius.dtype))
    near = z.abs() < math.sin(math.radians(PLANE_DEG))
    code = 2 * ring + near
    return torch.stack([code == k for k in code.unique()], 1).double()


def psf_kernel(sky: Sky) -> Tensor:
    """Share of the photons of a source, uniform in a pixel, that fall into it and its neighbours in (p, m), (3, 3)."""
    stream = torch.Generator().manual_seed(0)
    corner = sky.corner[sky.analysis].double()
    corner = corner[torch.randint(len(corner), (PSF_DRAWS,), generator=stream)]
    u = torch.rand(3, PSF_DRAWS, generator=stream, dtype=torch.float64)
    phi, z = direction(corner[:, 0] + u[0], corner[:, 1] + u[1], sky.nside)
    phi, z = displace(phi, z, sky.psf.sample(PSF_DRAWS, stream).double(), 2 * math.pi * u[2])
    p, m = lattice(phi, z, sky.nside)
    step = torch.stack([p.floor() - corner[:, 0], m.floor() - corner[:, 1]], -1).long() + 1
    near = ((step >= 0) & (step <= 2)).all(-1)
    count = torch.bincount(3 * step[near, 0] + step[near, 1], minlength=9)
    return count.view(3, 3).double() / PSF_DRAWS
