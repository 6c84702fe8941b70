r"""Cosmology from type Ia supernovae: Hubble diagram with a full covariance and a free offset.

    m_i  =  5 log10 D(z_i; Om, ...)  +  M  +  r_i,      r ~ noise with covariance C

D is the luminosity distance in units of c / H_0 (`simulators.cosmology_distances`), and M the offset that holds absolute
magnitude and Hubble constant, M = M_B + 25 + 5 log10(c / H_0 / Mpc), 23.8 mag for type Ia supernovae. The data may be magnitudes
or distance moduli. By default M is marginalised analytically under a flat prior of density 1 per mag.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulators.cosmology_distances import Cosmology, RedshiftGrid
from simulators.gauss_newton import PosteriorFit, fit_posterior
from simulators.noise_laws import LOG_TWO_PI, declare_noise, quantities_of
from simulators.observing_design import check_keys, number
from simulators.orbit import Quantity, declare
from simulators.priors import PriorSpec
from simulators.protocol import Data, Observable, Parameter, PredictiveView
from simulators.supernova_design import survey_design
from simulators.supernova_files import read_supernovae
from simulators.supernova_noise import coloring, present_covariance, whitening
from simulators.supernova_summary import directions, residual_summary
from simulators.unconstrained import UnconstrainedPrior

MODELS: dict[str, tuple[str, ...]] = {
    "lcdm": ("Om",),
    "open_lcdm": ("Om", "Ode"),
    "wcdm": ("Om", "w"),
    "w0wa": ("Om", "w0", "wa"),
}
"""Cosmological parameters of each model; all but open_lcdm are flat."""
DEFAULTS: dict[str, float | PriorSpec] = {
    "Om": {"uniform": [0, 1]},
    "Ode": {"uniform": [0, 1.3]},
    "w": {"uniform": [-2, 0]},
    "w0": {"uniform": [-3, 1]},
    "wa": {"uniform": [-3, 2]},
    "offset": {"uniform": [23, 25]},
}
CURVED = {"Om": {"uniform": [0.1, 1]}}
"""Where it differs for open_lcdm."""
LABELS = {
    "Om": r"$\Omega_m$",
    "Ode": r"$\Omega_\Lambda$",
    "w": "$w$",
    "w0": "$w_0$",
    "wa": "$w_a$",
    "offset": r"$\mathcal{M}$",
}
UNITS = {"offset": "mag"}
DRAWN_OFFSET = (33.0, 10.0)
"""Mean and standard deviation (mag) of the offsets that `simulate` draws where M is marginalised: magnitudes and distance moduli."""


class SupernovaCosmology:
    r"""Magnitudes of up to `count` supernovae (or redshift bins) of one survey.

    Priors (`priors` replaces any of them; a number instead of a prior fixes the parameter):

    | parameter | prior | why |
    |---|---|---|
    | Om | uniform 0..1 | matter density of a flat universe without negative energy |
    | Om, Ode of open_lcdm | uniform 0.1..1, 0..1.3 | all have a big bang; where a wider prior has none, the likelihood is zero and simulations mean nothing |
    | w | uniform -2..0 | dark energy with w = 0 is matter; -2 lies four widths from the posterior of Pantheon's bins |
    | w0, wa | uniform -3..1, -3..2 | as DESI 2024, https://arxiv.org/abs/2404.03002, without its bound w0 + wa < 0 |
    | offset | uniform 23..25 mag | `offset: sampled`; M_B = -19.3 and H_0 = 70 km/s/Mpc give 23.86 |
    | freedom | 4 | student_t: fixed, since few residuals tell it; may be given a prior |
    | outlier_fraction | uniform 0..0.3 | mixture: an outlier is the exception |
    | outlier_width | 5 | mixture: of outliers, in units of the core; always fixed |

    Args:
        model: lcdm, open_lcdm, wcdm or w0wa.
        count: supernovae of a survey, at most; smaller ones are filled up with absent ones.
        offset: `marginalised` (flat, density 1 per mag), or `sampled`, a parameter.
        likelihood: gaussian, student_t or mixture; the last two need `offset: sampled`.
        priors: see above.
        design: which surveys are simulated; see `simulators.supernova_design`.

    Raises:
        ValueError: an option that is no such model; says what to change.

    >>> [p.name for p in SupernovaCosmology(model="wcdm", offset="sampled").parameters]
    ['Om', 'w', 'offset']
    """

    name = "supernova_cosmology"
    exchangeable = ("redshift", "heliocentric_redshift", "present", "covariance", "magnitude")

    def __init__(
        self,
        *,
        model: str = "lcdm",
        count: int = 40,
        offset: str = "marginalised",
        likelihood: str = "gaussian",
        priors: Mapping[str, float | PriorSpec] | None = None,
        design: Mapping[str, Any] | None = None,
    ) -> None:
        _one_of(model, tuple(MODELS), "model")
        _one_of(offset, ("marginalised", "sampled"), "offset")
        noise_names = quantities_of(likelihood, owner=self.name)
        if likelihood != "gaussian" and offset != "sampled":
            raise ValueError(f"{self.name}: likelihood {likelihood} has no analytic marginal: set offset: sampled")
        size = number(count, f"{self.name}: count")
        if size != int(size) or size < 2:
            raise ValueError(f"{self.name}: count: expected a whole number from 2 up, got {count!r}")
        self.model, self.count = model, int(size)
        names = MODELS[model] + (("offset",) if offset == "sampled" else ())
        check_keys(priors or {}, names + noise_names, f"{self.name}: priors")
        values = DEFAULTS | (CURVED if model == "open_lcdm" else {}) | dict(priors or {})
        declared: list[Parameter] = []
        self._quantities: dict[str, Quantity] = {
            name: declare(
                declared, values[name], name, unit=UNITS.get(name, ""), label=LABELS.get(name, name), owner=self.name
            )
            for name in names
        }
        given = {name: spec for name, spec in (priors or {}).items() if name in noise_names}
        self.noise = declare_noise(declared, likelihood, given, owner=self.name)
        if not declared:
            raise ValueError(f"{self.name}: nothing is free: give a prior, such as priors: {{Om: {{uniform: [0, 1]}}}}")
        self.parameters = tuple(declared)
        self.design = survey_design(design)
        self.observables = supernova_observables(self.count)
        self._unconstrained = UnconstrainedPrior.of(self.parameters)

    # ------------------------------------------------------------ the model

    def cosmology(self, theta: Tensor) -> Cosmology:
        """Parameters of the universe, theta (..., N, D) -> (..., N, 1) each."""
        value = {name: self._quantities[name].of(theta) for name in MODELS[self.model]}
        dark_energy = value.get("Ode", 1 - value["Om"])
        return Cosmology(value["Om"], dark_energy, value.get("w", value.get("w0", -1.0)), value.get("wa", 0.0))

    @property
    def _offset(self) -> Quantity | None:
        """M as a parameter or number; None where it is marginalised."""
        return self._quantities.get("offset")

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        r"""Magnitudes with noise, and an offset $M \sim N(33, 10)$ mag where M is marginalised: no posterior sees it.

        Args:
            theta: (N, D).
            context: redshift, heliocentric_redshift, present (N, M) and covariance (N, M, M) (mag2); None draws them from the design.
            generator: the only source of random numbers, on the device of theta.

        Returns:
            the context as it is, and magnitude (mag), (N, M), zero where absent. Finite also where no distance exists.
        """
        rows = theta.shape[0]
        x = dict(context) if context is not None else self.design.draw(rows, self.count, generator=generator)
        theta = theta.double()
        law = self.noise.law(theta)
        draws = law.draw((rows, self.count), generator=generator, dtype=torch.float64)
        covariance = present_covariance(x["covariance"].double(), x["present"])
        noise = (coloring(covariance, symmetric=not self.noise.is_gaussian) @ draws[..., None])[..., 0]
        if self._offset is None:
            unit = torch.randn((rows, 1), generator=generator, device=theta.device, dtype=torch.float64)
            offset: Tensor | float = DRAWN_OFFSET[0] + DRAWN_OFFSET[1] * unit
        else:
            offset = self._offset.of(theta)
        modulus, _ = _grid(x).modulus(self.cosmology(theta))
        return x | {"magnitude": torch.where(x["present"] > 0.5, modulus + offset + noise, 0.0)}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""log p(magnitude given theta), theta (..., N, D), x of N rows -> (..., N).

        With $r_i = m_i - 5 \log_{10} D_i$, for the n supernovae that are present: M a parameter,

        $$\log L = \sum_i \log f(\epsilon_i) - \frac{1}{2} \log |C|,   \qquad   \epsilon = C^{-1/2} (r - M)$$

        and M marginalised, $\log L = \log \int dM\, N(r - M; 0, C)$,

        $$\log L = -\frac{1}{2} \Big[ r^T C^{-1} r - \frac{(1^T C^{-1} r)^2}{1^T C^{-1} 1} + \log |C| + \log (1^T C^{-1} 1) + (n - 1) \log 2 \pi \Big]$$

        (Goliath et al. 2001, https://arxiv.org/abs/astro-ph/0104009). -inf, with gradient zero, where no distance exists.
        """
        exact = theta.double()  # float32 residuals in units of their errors would cost 1e-4 nats
        survey = _Survey(x, symmetric=not self.noise.is_gaussian)
        eps, exists = self._residuals(exact, x, survey)
        density = self.noise.law(exact).log_density(eps) * survey.present
        value = density.sum(-1) - 0.5 * survey.log_det
        if self._offset is None:
            value = value + 0.5 * (LOG_TWO_PI - survey.unit.square().sum(-1).log())
        return torch.where(exists, value, -torch.inf).to(theta.dtype)

    def _residuals(self, theta: Tensor, x: Mapping[str, Tensor], survey: _Survey) -> tuple[Tensor, Tensor]:
        """eps (..., N, M), without the best offset where M is marginalised, and whether distances exist (..., N)."""
        modulus, exists = _grid(x).modulus(self.cosmology(theta))
        offset = 0.0 if self._offset is None else self._offset.of(theta) - survey.center
        eps = survey.whiten(survey.magnitude - modulus - offset)
        if self._offset is None:
            eps = eps - survey.unit * survey.along_unit(eps)
        return eps, exists

    def canonical(self, x: Mapping[str, Tensor]) -> Data:
        """Magnitudes less their mean where M is marginalised: `log_likelihood` does not see it."""
        if self._offset is not None:
            return {}
        there = (x["present"] > 0.5).double()
        mean = (there * x["magnitude"].double()).sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
        return {"magnitude": there * (x["magnitude"].double() - mean)}

    def model_curve(self, theta: Tensor, x: Mapping[str, Tensor], grid: Tensor) -> Tensor:
        r"""Noise-free magnitude on a grid of redshifts, for one survey; M marginalised: at its mean given theta.

        Args:
            theta: (K, D).
            x: one row.
            grid: (G,).

        Returns:
            (K, G), in the dtype of theta.
        """
        draws, redshift = theta.double()[:, None, :], grid.double()[None]
        cosmology = self.cosmology(draws)
        curve = RedshiftGrid.of(redshift, redshift).modulus(cosmology)[0]
        if self._offset is not None:
            return (curve + self._offset.of(draws))[:, 0].to(theta.dtype)
        survey = _Survey(x, symmetric=False)
        residual = survey.whiten(survey.magnitude - _grid(x).modulus(cosmology)[0])
        return (curve + survey.along_unit(residual) + survey.center)[:, 0].to(theta.dtype)

    def predictive_views(self, theta: Tensor, x: Mapping[str, Tensor]) -> list[PredictiveView]:
        """The Hubble diagram, from half the first redshift to 1.2 times the last.

        Args:
            theta: draws of the posterior of one survey, (K, D).
            x: one row.
        """
        there = x["present"][0] > 0.5
        redshift, magnitude = (x[name][0].double()[there] for name in ("redshift", "magnitude"))
        error = x["covariance"][0].double().diagonal().sqrt()[there]
        first, last = 0.5 * float(redshift.min()), 1.2 * float(redshift.max())
        grid = torch.logspace(math.log10(first), math.log10(last), 300, dtype=torch.float64)
        curves = self.model_curve(theta.double(), x, grid)
        labels = ("redshift", "magnitude [mag]")
        return [PredictiveView("Hubble diagram", *labels, redshift, magnitude, error, grid, curves, "log")]

    # ------------------------------------------------------------ inputs of the network

    def pilot(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Gauss-Newton fit on the unconstrained space: location (N, D) and scale (N, D)."""
        fit, _, _ = self._fit(x)
        return fit.location, fit.scale

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        r"""What the network reads of a survey, (N, F), blind to a marginalised offset, and whatever the number of supernovae.

        Location u, logarithm of the scale and correlations of the Gauss-Newton fit; how the log joint density of the unconstrained
        theta departs from that of the fitted Gaussian with covariance $F F^T$ at P points around it,

        $$\mathrm{asinh}[\log p(u + F s_p, x) - \log p(u, x) + |s_p|^2 / 2]$$

        and a summary of the residuals at the fit, which tells a bad fit from a good one.
        """
        fit, survey, residual = self._fit(x)
        scale = fit.scale
        lower = torch.tril_indices(scale.shape[1], scale.shape[1], -1, device=scale.device)
        correlation = (fit.factor / scale[..., None])[:, lower[0], lower[1]]
        steps = directions(scale.shape[1]).to(scale)  # (P, D)
        around = fit.location + torch.einsum("nde,pe->pnd", fit.factor, steps)
        everywhere = torch.cat([fit.location[None], around])
        theta = self._unconstrained.theta(everywhere)
        density = self._unconstrained.log_prob(everywhere) + self.log_likelihood(theta, x)
        density = density.clamp_min(-1e6)  # -inf where no distance exists
        departure = (density[1:] - density[0] + 0.5 * steps.square().sum(-1, keepdim=True)).clamp(-1e3, 1e3)
        summary = residual_summary(residual(fit.location), x["redshift"].double(), survey.present)
        return torch.cat([fit.location, scale.log(), correlation, torch.asinh(departure).T, summary], dim=-1)

    def _fit(self, x: Mapping[str, Tensor]) -> tuple[PosteriorFit, _Survey, Callable[[Tensor], Tensor]]:
        """The fit, the survey, and whitened residuals as a function of u (..., N, D)."""
        survey = _Survey(x, symmetric=not self.noise.is_gaussian)
        start, spread = (v.to(x["magnitude"].device) for v in self._unconstrained.center())
        law = self.noise.law(self._unconstrained.theta(start[None]))

        def residual(u: Tensor) -> Tensor:
            return self._residuals(self._unconstrained.theta(u), x, survey)[0]

        rows = len(x["magnitude"])
        return fit_posterior(residual, law.weight, count=rows, start=start, spread=spread), survey, residual

    # ------------------------------------------------------------ observed files

    def read_observation(self, path: Path | str) -> tuple[Data, list[str]]:
        """One observed survey (see `simulators.supernova_files`) as x of one row; its identifier is the name of file or folder.

        Raises:
            ValueError: unreadable, or more supernovae than `count`.
        """
        table = read_supernovae(path)
        size = len(table)
        if size > self.count:
            raise ValueError(
                f"{path}: has {size} supernovae, the simulator {self.count}: set its option count to {size}"
            )
        absent = self.count - size
        covariance = np.eye(self.count)
        covariance[:size, :size] = table.covariance
        arrays = {
            "redshift": np.pad(table.redshift, (0, absent), constant_values=1.0),
            "heliocentric_redshift": np.pad(table.heliocentric_redshift, (0, absent), constant_values=1.0),
            "present": np.pad(np.ones(size), (0, absent)),
            "covariance": covariance,
            "magnitude": np.pad(table.magnitude, (0, absent)),
        }
        return {name: torch.from_numpy(values[None]) for name, values in arrays.items()}, [Path(path).stem]


class _Survey:
    """What the likelihood needs of N surveys whatever theta is: whitening (N, M, M), and the whitened unit vector (N, M)."""

    def __init__(self, x: Mapping[str, Tensor], *, symmetric: bool) -> None:
        self.present = (x["present"] > 0.5).double()
        covariance = present_covariance(x["covariance"].double(), x["present"])
        self._whitening, self.log_det = whitening(covariance, symmetric=symmetric)
        magnitude = x["magnitude"].double()
        self.center = (magnitude * self.present).sum(-1, keepdim=True) / self.present.sum(-1, keepdim=True)
        self.magnitude = magnitude - self.center
        self.unit = self.whiten(torch.ones_like(self.magnitude))

    def whiten(self, residual: Tensor) -> Tensor:
        """C^(-1/2) r, (..., N, M); zero where absent."""
        return torch.einsum("nij,...nj->...ni", self._whitening, residual * self.present)

    def along_unit(self, eps: Tensor) -> Tensor:
        """The offset that fits whitened residuals best, (1^T C^-1 r) / (1^T C^-1 1), (..., N, 1)."""
        return (self.unit * eps).sum(-1, keepdim=True) / self.unit.square().sum(-1, keepdim=True)


def _grid(x: Mapping[str, Tensor]) -> RedshiftGrid:
    """Redshifts, absent ones at the lowest: what stands there must not move the nodes of the integral."""
    there = x["present"] > 0.5
    lowest = torch.where(there, x["redshift"], torch.inf).amin(-1, keepdim=True)
    redshifts = (torch.where(there, x[name], lowest) for name in ("redshift", "heliocentric_redshift"))
    return RedshiftGrid.of(*redshifts)


def supernova_observables(count: int) -> tuple[Observable, ...]:
    """Observables of a survey of `count` supernovae."""
    shape = (count,)
    return (
        Observable("redshift", shape, role="context", label="redshift", scale="log"),
        Observable("heliocentric_redshift", shape, role="context", label="heliocentric redshift", default="redshift"),
        Observable("present", shape, role="context", label="present"),
        Observable("covariance", (count, count), "mag2", role="context", label="covariance"),
        Observable(
            "magnitude", shape, "mag", label="magnitude", against="redshift", error="covariance", present="present"
        ),
    )


def _one_of(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise ValueError(f"supernova_cosmology: {what}: expected one of {', '.join(known)}, got {value!r}")
