"""The inner Galaxy without point sources: six templates, Poisson counts, exact likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from simulators.fermi.parameters import parameters_of
from simulators.fermi.sky import PARAMETERS, SMOOTH, read_counts, read_sky
from simulators.fermi.template_fit import fit_templates, logit_guess
from simulators.protocol import Data, Observable

NUMBERS = 1 << 20
"""Expected counts that are in memory at once, if one draw for each observation leaves the choice."""


class FermiPoisson:
    r"""Photon counts of the inner Galaxy from six templates.

        n_p ~ Poisson(lambda_p),    lambda_p = S_gce T_gce,p / <T_gce> + sum_k A_k T_k,p

    with the mean <> over `mask_normalisation` and k = iso, bub, psc, pibrem, ics. D = 6, M pixels of `mask_analysis`.

    Args:
        data: HDF5 file with templates, exposure, masks and priors, see docs/fermi.md.
    """

    name = "fermi_poisson"

    def __init__(self, *, data: str | Path) -> None:
        self.sky = read_sky(data)
        self.parameters = parameters_of(self.sky, PARAMETERS[:6])
        self.observables = (Observable("counts", (self.sky.size,), "ph", dtype="float32"),)
        self.templates = self.sky.analysed(*SMOOTH)
        self.low, self.high = (
            torch.tensor([end[p.name] for p in self.parameters], dtype=torch.float64)
            for end in (self.sky.low, self.sky.high)
        )

    def rate(self, theta: Tensor) -> Tensor:
        """Expected photons of each pixel, (..., 6) -> (..., M)."""
        return theta @ self.templates.to(theta)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """Poisson counts, (N, 6) -> (N, M)."""
        return {"counts": torch.poisson(self.rate(theta).float(), generator=generator)}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""$\sum_p n_p \log \lambda_p - \lambda_p - \log n_p!$, theta (..., N, 6) -> (..., N)."""
        counts, exact = x["counts"].double(), theta.double()
        rows = exact.reshape(-1, *theta.shape[-2:]).split(max(1, NUMBERS // counts.numel()))
        fit = torch.cat([(counts * self.rate(some).log()).sum(-1) for some in rows]).view(theta.shape[:-1])
        return (fit - self.expected_counts(exact) - (counts + 1).lgamma().sum(-1)).to(theta.dtype)

    def expected_counts(self, theta: Tensor) -> Tensor:
        """Expected photons in all analysed pixels, (..., 6) -> (...)."""
        return theta @ self.templates.sum(1).to(theta)

    def _fit(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Location and scale of the normalisations on the unconstrained space, (N, 6) each."""
        low, high = self.low.to(x["counts"].device), self.high.to(x["counts"].device)
        mean, spread = (low + high) / 2, (high - low) / 12**0.5
        fit = fit_templates(x["counts"], self.templates.to(low), mean, spread)
        return logit_guess(fit.norm, fit.error, low, high)

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        """Normalisations and the logarithms of their errors on the unconstrained space, (N, 12)."""
        location, scale = self._fit(x)
        return torch.cat([location, scale.log()], -1)

    def pilot(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The template fit and its errors on the unconstrained space, (N, 6) each."""
        return self._fit(x)

    def read_observation(self, path: Path) -> tuple[Data, list[str]]:
        """Counts of a file of the same kind as `data`."""
        counts, name = read_counts(self.sky, path)
        return {"counts": counts}, [name]
