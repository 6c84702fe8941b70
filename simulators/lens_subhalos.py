r"""Subhalos in a gravitational lens: how much of its mass they hold, and how that is shared out among them.

    beta  =  theta - alpha_lens(theta) - sum_j alpha_j(theta) + alpha_sheet(theta),        d  =  B P s(beta) + n

Everything but the two parameters is latent and drawn anew for every simulation: lens, shear and source (14 numbers from the priors of
`strong_lens`), and the subhalos' number, masses and places. The likelihood is an integral over all of them, so that there is none
to call: the case for a learned one. After Brehmer et al. 2019 (ApJ 886, 49, https://arxiv.org/abs/1909.02005).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from astropy import constants, units
from astropy.cosmology import Planck18
from torch import Tensor

from simulators.lens_residuals import SmoothFit
from simulators.observing_design import check_keys, number
from simulators.priors import PriorSpec, distribution_from_spec, prior_of, sample
from simulators.protocol import Data, Parameter
from simulators.strong_lens import StrongLens

COSMOLOGY: Any = Planck18
PRIORS: dict[str, tuple[PriorSpec, str]] = {
    # cold dark matter gives 0.002 to 0.02 near Einstein radii (Vegetti et al. 2014), tidal stripping and tilted spectra more or less
    "log10_fraction": ({"uniform": [-3, -0.7]}, r"$\log_{10} f_{sub}$"),
    # -1.9 in simulations of cold dark matter (Springel et al. 2008)
    "slope": ({"uniform": [-2.5, -1.4]}, r"$\beta$"),
}


@dataclass(frozen=True)
class MassFunction:
    r"""$dN/dm \propto m^\beta$ between two masses.

    Attributes:
        least, largest: solar masses.
    """

    least: float
    largest: float

    def mean(self, slope: Tensor) -> Tensor:
        """Mean mass of a subhalo (solar masses), slope beta of any shape."""
        return self._integral(slope + 1) / self._integral(slope)

    def draw(self, share: Tensor, slope: Tensor) -> Tensor:
        """Masses that have the share (0 to 1) of all subhalos below them."""
        power = slope + 1
        power = torch.where(power.abs() < 1e-4, 1e-4, power)
        return self.least * (1 + share * torch.expm1(power * self._decades)).pow(1 / power)

    @property
    def _decades(self) -> float:
        return math.log(self.largest / self.least)

    def _integral(self, power: Tensor) -> Tensor:
        """Integral of m^power."""
        z = (power + 1) * self._decades
        z = torch.where(z.abs() < 1e-6, 1e-6, z)
        return self.least ** (power + 1) * self._decades * torch.expm1(z) / z


class LensSubhalos:
    r"""Image of a lensed galaxy whose lens holds subhalos.

    A subhalo of mass m is a pseudo-Jaffe sphere, $\kappa = \frac{b}{2} (1/r - 1/\sqrt{r^2 + r_t^2})$, truncated at
    $r_t = \sqrt{b\, \theta_E}$ by the tides of the lens (Metcalf and Madau 2001), so that $m = \pi \Sigma_{cr} b\, r_t$. Subhalos lie evenly
    over a disk of radius R; their number is Poisson's with the mean at which they hold the fraction f of the lens's mass within R,
    $f \pi \Sigma_{cr} \theta_E R$. An even sheet of negative mass in the disk takes out their mean: f does not move the Einstein radius.

    | parameter | prior | why |
    |---|---|---|
    | log10_fraction | uniform -3..-0.7 | 0.002 to 0.02 is expected of cold dark matter |
    | slope | uniform -2.5..-1.4 | beta; -1.9 in simulations of cold dark matter |

    Args:
        least_mass, largest_mass: of a subhalo, solar masses.
        region_arcsec: R.
        lens_redshift, source_redshift: for the critical surface density Sigma_cr.
        priors: in place of those above.
        lens: options of `strong_lens`: pixels, PSF, noise, and `priors` of what is latent. Give those that a fit of the same image by
            `strong_lens` left: the features hold near their medians.
    """

    name = "lens_subhalos"

    def __init__(
        self,
        *,
        least_mass: float = 1e8,
        largest_mass: float = 1e10,
        region_arcsec: float = 3.0,
        lens_redshift: float = 0.155,
        source_redshift: float = 0.517,
        priors: Mapping[str, PriorSpec] | None = None,
        lens: Mapping[str, Any] | None = None,
    ) -> None:
        least, largest = (
            number(least_mass, "lens_subhalos: least_mass"),
            number(largest_mass, "lens_subhalos: largest_mass"),
        )
        if not 0 < least < largest:
            raise ValueError(f"lens_subhalos: expected 0 < least_mass < largest_mass, got {least:g} and {largest:g}")
        if not 0 < lens_redshift < source_redshift:
            raise ValueError(
                f"lens_subhalos: expected 0 < lens_redshift < source_redshift, got {lens_redshift} and {source_redshift}"
            )
        self.region = number(region_arcsec, "lens_subhalos: region_arcsec")
        if self.region <= 0:
            raise ValueError(f"lens_subhalos: region_arcsec must be positive, got {self.region:g}")
        check_keys(priors or {}, tuple(PRIORS), "lens_subhalos: priors")
        self.lens = StrongLens(**dict(lens or {}))
        self.masses = MassFunction(least, largest)
        self.critical = critical_density(lens_redshift, source_redshift)
        self.parameters = tuple(
            Parameter(name, distribution_from_spec((priors or {}).get(name, spec), f"prior of {name}"), "", label)
            for name, (spec, label) in PRIORS.items()
        )
        self.observables = self.lens.observables
        self.fit = SmoothFit(self.lens)
        self._latent = prior_of(self.lens)
        self._radius = [p.name for p in self.lens.parameters].index("einstein_radius")

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """Images with noise (e-/s a native pixel), theta (N, 2)."""
        macro = sample(self._latent, len(theta), generator).to(theta.device)
        einstein = macro[:, self._radius]
        subhalos = self.draw_subhalos(theta, einstein, generator=generator)
        models = [
            self.lens.model_image(macro[n, None], perturbation=self.deflection(theta[n], einstein[n], subhalos[n]))
            for n in range(len(theta))
        ]
        return self.lens.observe_models(torch.cat(models), context, generator=generator)

    def draw_subhalos(self, theta: Tensor, einstein: Tensor, *, generator: torch.Generator) -> list[Tensor]:
        """Mass (solar masses), x and y (arcsec) of the subhalos of each lens, (S_n, 3), for Einstein radii (N,) (arcsec)."""
        fraction, slope = 10 ** theta[:, 0].double(), theta[:, 1].double()
        mass = fraction * math.pi * self.critical * einstein.double() * self.region
        counts = torch.poisson(mass / self.masses.mean(slope), generator=generator).long()
        unit = torch.rand((3, int(counts.sum())), generator=generator, device=theta.device, dtype=torch.float64)
        m = self.masses.draw(unit[0], slope.repeat_interleave(counts))
        radius, angle = self.region * unit[1].sqrt(), 2 * math.pi * unit[2]
        return list(torch.stack([m, radius * angle.cos(), radius * angle.sin()], -1).split(counts.tolist()))

    def deflection(self, theta: Tensor, einstein: Tensor, subhalos: Tensor) -> tuple[Tensor, Tensor]:
        r"""Of all subhalos of one lens and the sheet (arcsec), (native, native) each.

        $\alpha(r) = b\, (r + r_t - \sqrt{r^2 + r_t^2}) / r$; of the sheet $-f \theta_E r / R$ inside R, and $-f \theta_E R / r$ outside.
        """
        x, y = self.lens.grid.centers(native=True, device=theta.device)
        square = x.square() + y.square()
        sheet = -(10 ** theta[0]) * einstein * self.region / square.clamp_min(self.region**2)
        total_x, total_y = sheet * x, sheet * y
        for mass, at_x, at_y in subhalos.float():
            b = (mass / (math.pi * self.critical * einstein.sqrt())).pow(2 / 3)
            dx, dy = x - at_x, y - at_y
            r2 = (dx.square() + dy.square()).clamp_min(1e-12)
            truncation = (b * einstein).sqrt()
            over_r2 = b * (r2.sqrt() + truncation - (r2 + truncation.square()).sqrt()) / r2
            total_x, total_y = total_x + over_r2 * dx, total_y + over_r2 * dy
        return total_x.float(), total_y.float()

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        """Power of what a smooth lens leaves of the image, by spatial frequency, (N, 6): see `simulators.lens_residuals`."""
        return self.fit.power(x)

    def read_observation(self, path: Path | str) -> tuple[Data, list[str]]:
        """An image as `strong_lens` reads it."""
        return self.lens.read_observation(path)


def critical_density(lens_redshift: float, source_redshift: float) -> float:
    r"""$\Sigma_{cr} = \frac{c^2}{4 \pi G} \frac{D_s}{D_l D_{ls}}$ in solar masses per square arcsec at the lens."""
    to_lens = COSMOLOGY.angular_diameter_distance(lens_redshift)
    to_source = COSMOLOGY.angular_diameter_distance(source_redshift)
    comoving = COSMOLOGY.comoving_distance([lens_redshift, source_redshift])
    between = (comoving[1] - comoving[0]) / (1 + source_redshift)  # of a flat universe
    nature: Any = constants  # its names are made on import
    density = nature.c**2 / (4 * math.pi * nature.G) * to_source / (to_lens * between)
    return float((density * (to_lens * units.arcsec.to(units.rad)) ** 2).to_value(units.Msun))
