"""A light curve simulator that has everything an observation may need: points, a mask, numbers of one observation, a matrix."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from simulators.protocol import Data, Observable, Parameter

POINTS = 4


class LightCurve:
    """Flux (mJy) at times (d), with errors; up to four points, a parallax (mas)."""

    name = "light_curve"
    parameters = (Parameter("a", Normal(0.0, 1.0)),)
    observables = (
        Observable("time", (POINTS,), "d", role="context"),
        Observable("flux_error", (POINTS,), "mJy", role="context"),
        Observable("point_mask", (POINTS,), role="context"),
        Observable("flux", (POINTS,), "mJy", against="time", error="flux_error"),
        Observable("parallax", (), "mas"),
    )

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        raise NotImplementedError


class Spectrum(LightCurve):
    """Three numbers and their covariance, no mask."""

    name = "spectrum"
    observables = (
        Observable("flux", (3,), "Jy"),
        Observable("covariance", (3, 3), "Jy2", role="context"),
    )


@pytest.fixture
def light_curve() -> LightCurve:
    return LightCurve()


@pytest.fixture
def spectrum() -> Spectrum:
    return Spectrum()
