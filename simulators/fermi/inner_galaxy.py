"""The inner Galaxy with two populations of point sources: 18 parameters, no tractable likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from simulators.fermi.parameters import parameters_of
from simulators.fermi.point_sources import SourceTemplate, source_photons, source_template
from simulators.fermi.sky import PARAMETERS, SMOOTH, read_counts, read_sky
from simulators.fermi.source_counts import source_counts
from simulators.fermi.summary import Summary
from simulators.protocol import Data, Observable

POPULATIONS = (("gce", 6), ("dsk", 12))
"""Template of each population, and where its six parameters begin: S_ps, n1, n2, n3, Sb1, Sb2."""


class FermiInnerGalaxy:
    r"""Photon counts of the inner Galaxy: six templates and two populations of point sources.

        n_p = Poisson(lambda_p) + photons of sources that follow the excess + photons of sources that follow the disk

    lambda_p as in `FermiPoisson`. The number of sources in a pixel is Poisson and follows template over exposure, their
    fluxes a doubly broken power law (`source_counts`), their photons are Poisson and are displaced one by one by the PSF
    (`point_sources`). The strength S_ps of a population is the mean number of photons a pixel of `mask_normalisation` before
    the PSF. D = 18, M pixels of `mask_analysis`.
    Reference: Mishra-Sharma and Cranmer 2022, Phys. Rev. D 105, 063017, https://arxiv.org/abs/2110.06931.

    Args:
        data: HDF5 file with templates, exposure, masks, PSF and priors, see docs/fermi.md.
        disk: `thin` or `thick`, the template that the sources of the disk follow.
        flux_range: photons of the faintest and brightest source at the mean exposure. Where n3 is near 2 most photons come
            from the faintest sources, and S_ps means something else for another limit.
    """

    name = "fermi_inner_galaxy"

    def __init__(self, *, data: str | Path, disk: str = "thin", flux_range: tuple[float, float] = (0.1, 100.0)) -> None:
        self.sky = read_sky(data, disk=disk)
        self.parameters = parameters_of(self.sky, PARAMETERS)
        self.observables = (Observable("counts", (self.sky.size,), "ph", dtype="float32"),)
        self.templates = self.sky.analysed(*SMOOTH)
        self.flux_range = _check_fluxes(flux_range, self.sky.low, self.sky.high)

    @cached_property
    def populations(self) -> tuple[SourceTemplate, ...]:
        """Where the sources of each population are."""
        sky = self.sky
        return tuple(
            source_template(sky.templates[name], sky.exposure, sky.corner, sky.normalisation, sky.nside)
            for name, _ in POPULATIONS
        )

    @cached_property
    def summary(self) -> Summary:
        """What the network reads of a map."""
        return Summary.of(self.sky)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """Photons of every analysed pixel, (N, 18) -> (N, M)."""
        counts = torch.poisson((theta[:, :6] @ self.templates.to(theta)).float(), generator=generator)
        table = self.sky.table.to(theta.device)
        for template, (_, first) in zip(self.populations, POPULATIONS, strict=True):
            counts += source_photons(
                theta[:, first],
                source_counts(theta[:, first + 1 : first + 6], self.flux_range),
                template.to(theta.device),
                psf=self.sky.psf,
                pixels=table,
                size=self.sky.size,
                generator=generator,
            )
        return {"counts": counts}

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        """Template fit, and histograms of what it leaves over, (N, F)."""
        return self.summary.features(x["counts"])

    def pilot(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The template fit for the normalisations that it can tell; nothing for the others, (N, 18) each."""
        return self.summary.pilot(x["counts"])

    def read_observation(self, path: Path) -> tuple[Data, list[str]]:
        """Counts of a file of the same kind as `data`."""
        counts, name = read_counts(self.sky, path)
        return {"counts": counts}, [name]

    # ------------------------------------------------------------ derived quantities

    def point_source_share(self, theta: Tensor) -> Tensor:
        r"""Share of the excess that comes from point sources, $S_{ps} / (S_{ps} + S_{poiss})$, (..., 18) -> (...)."""
        return theta[..., 6] / (theta[..., 6] + theta[..., 0])

    def expected_counts(self, theta: Tensor) -> Tensor:
        r"""Expected photons in all analysed pixels, PSF left out, (..., 18) -> (...).

        $\sum_p \lambda_p + S_{gce} \hat T_{gce,p} + S_{dsk} \hat T_{dsk,p}$ with templates of mean 1 in `mask_normalisation`.
        """
        names = [name for name, _ in POPULATIONS]
        total = torch.cat([self.templates.sum(1), self.sky.analysed(*names).sum(1)]).to(theta)
        return theta[..., [*range(6), *(first for _, first in POPULATIONS)]] @ total


def _check_fluxes(
    flux_range: tuple[float, float], low: Mapping[str, float], high: Mapping[str, float]
) -> tuple[float, float]:
    """The range of fluxes, which must hold all breaks that the priors allow."""
    if len(flux_range) != 2:
        raise ValueError(f"fermi: flux_range: expected two numbers of photons, got {flux_range!r}")
    faint, bright = (float(v) for v in flux_range)
    for name, _ in POPULATIONS:
        bounds = faint, low[f"Sb2_{name}"], high[f"Sb2_{name}"], low[f"Sb1_{name}"], high[f"Sb1_{name}"], bright
        ordered = 0 < bounds[0] <= bounds[1] and bounds[2] <= bounds[3] and bounds[4] <= bounds[5]
        if not ordered:
            raise ValueError(
                f"fermi: flux_range {faint:g} to {bright:g} must hold the priors of Sb2_{name}, {bounds[1]:g} to {bounds[2]:g}, and "
                f"Sb1_{name}, {bounds[3]:g} to {bounds[4]:g}, the first below the second"
            )
    return faint, bright
