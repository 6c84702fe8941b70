r"""Which surveys of supernovae are simulated: redshifts and covariances.

Redshifts, evenly spread places with one draw U_i in each of M bins:

    ln z_i  =  ln first + s_i (ln last - ln first),      s_i = ((i + U_i) / M)^bend,      U ~ uniform(0, 1)

Errors and systematics, with smooth random functions g and h_k:

    ln sigma_i  =  ln error + error_trend g(s_i) + error_scatter n_i
    C           =  diag(sigma_i^2) + sum_k v_k v_k^T,    v_ki = systematic sigma_i h_k(s_i) / sqrt(modes)

    g(s) = sum_{j=1..4} n_j cos(j pi s) / j,     h_k(s) = sum_{j=0..4} n_kj cos(j pi s) / (1 + j),     n ~ N(0, 1)

A number that is a pair [low, high] is drawn anew for each survey: uniform for `bend`, log-uniform for the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from simulators.observing_design import check_keys, number
from simulators.protocol import Data

HARMONICS = 4
Range = tuple[float, float]


@dataclass(frozen=True)
class SurveyDesign:
    """Distribution of redshifts and covariance; a fixed number is a range of length zero.

    The defaults hold binned compilations such as Pantheon: a first bin at z = 0.005 to 0.05, a last at 0.8 to 2.4.

    Attributes:
        first, last: redshifts of both ends.
        bend: below 1, more supernovae at high redshift than evenly in ln z.
        error: typical error of a magnitude (mag).
        error_trend: amplitude of its smooth change with redshift, of its logarithm.
        error_scatter: its scatter from one supernova to the next, of its logarithm.
        systematic: amplitude of the systematic errors in units of sigma.
        modes: number of independent systematic errors.
        missing: probability of each supernova to be absent; first and last are always there.
    """

    first: Range = (0.005, 0.05)
    last: Range = (0.8, 2.4)
    bend: Range = (0.5, 1.3)
    error: Range = (0.012, 0.06)
    error_trend: Range = (0.4, 0.4)
    error_scatter: Range = (0.15, 0.15)
    systematic: Range = (0.2, 1.2)
    modes: int = 6
    missing: float = 0.0

    def draw(self, count: int, size: int, *, generator: torch.Generator) -> Data:
        """redshift, heliocentric_redshift, present (count, size) and covariance (count, size, size) (mag2), float64."""
        jitter, bend = _uniform((count, size), generator), _uniform((count, 1), generator)
        bins = torch.arange(size, dtype=torch.float64, device=generator.device)
        spread = ((bins + jitter) / size) ** (self.bend[0] + (self.bend[1] - self.bend[0]) * bend)  # s
        first, last = self._level(self.first, count, generator), self._level(self.last, count, generator)
        redshift = first * (last / first) ** spread
        level = self._level(self.error, count, generator).log()
        trend = self._level(self.error_trend, count, generator) * _smooth(spread, 1, generator)[..., 0]
        scatter = self._level(self.error_scatter, count, generator) * _normal(spread.shape, generator)
        sigma = (level + trend + scatter).exp()
        systematic = self._level(self.systematic, count, generator)[..., None] / math.sqrt(self.modes)
        vectors = systematic * sigma[..., None] * _smooth(spread, self.modes, generator, constant=True)
        present = (_uniform(spread.shape, generator) >= self.missing).double()
        present[:, [0, -1]] = 1.0
        return {
            "redshift": redshift,
            "heliocentric_redshift": redshift.clone(),
            "present": present,
            "covariance": torch.diag_embed(sigma.square()) + vectors @ vectors.mT,
        }

    def _level(self, limits: Range, count: int, generator: torch.Generator) -> Tensor:
        """Log-uniform in its range, (count, 1)."""
        low, high = limits
        if low == high:
            return torch.full((count, 1), low, dtype=torch.float64, device=generator.device)
        return low * (high / low) ** _uniform((count, 1), generator)


def survey_design(spec: Mapping[str, Any] | None) -> SurveyDesign:
    """The design of a config's mapping (see the top of this file).

    Raises:
        ValueError: an unknown key, or a number outside its domain.
    """
    what = "supernova_cosmology: design"
    if spec is not None and not isinstance(spec, Mapping):
        raise ValueError(f"{what}: expected a mapping such as {{first: 0.01, last: [0.8, 1.7]}}, got {spec!r}")
    spec = dict(spec or {})
    check_keys(spec, tuple(f.name for f in fields(SurveyDesign)), what)
    values: dict[str, Any] = {k: _limits(v, f"{what}.{k}") for k, v in spec.items() if k not in ("modes", "missing")}
    if "modes" in spec:
        values["modes"] = int(number(spec["modes"], f"{what}.modes", positive=True))
    if "missing" in spec:
        values["missing"] = number(spec["missing"], f"{what}.missing")
    design = SurveyDesign(**values)
    if not 0 <= design.missing < 1:
        raise ValueError(f"{what}.missing: expected a probability below 1, got {design.missing:g}")
    if design.first[1] >= design.last[0]:
        raise ValueError(f"{what}: first must lie below last, got {list(design.first)} and {list(design.last)}")
    return design


def _limits(value: object, what: str) -> Range:
    """A positive number, or two in order."""
    pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(pair) != 2:
        raise ValueError(f"{what}: expected a number, or [low, high], got {value!r}")
    zero_is_none = pair[0] == pair[1] and pair[0] == 0  # no trend, scatter or systematic error at all
    low, high = (number(v, what, positive=not zero_is_none) for v in pair)
    if low > high:
        raise ValueError(f"{what}: expected [low, high] in order, got {value!r}")
    return low, high


def _smooth(s: Tensor, functions: int, generator: torch.Generator, *, constant: bool = False) -> Tensor:
    """Random smooth functions of s (N, M): (N, M, functions)."""
    order = torch.arange(0 if constant else 1, HARMONICS + 1, dtype=s.dtype, device=s.device)
    basis = torch.cos(math.pi * s[..., None] * order) / (order + constant)  # (N, M, J)
    return basis @ _normal((len(s), len(order), functions), generator)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=torch.float64)


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, device=generator.device, dtype=torch.float64)
