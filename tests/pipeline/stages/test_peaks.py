"""Climbs of a posterior: masses where they are known, and every peak once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.estimators.support import SupportTransform
from pipeline.stages.peaks import LogJoint, climb, has_gradient, posterior_peaks, reach
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import distribution_from_spec, prior_of
from simulators.protocol import Data, Observable, Parameter

DEPTH, WIDTH = 3.0, 1e-4


class Wells:
    """p(y given theta): two normal peaks in (log) position, e^3 apart in height, a part in 10^4 of the prior wide; y is not read."""

    name = "wells"
    parameters = (
        Parameter("place", distribution_from_spec({"uniform": [2458000, 2458010]})),
        Parameter("level", distribution_from_spec({"log_normal": [0, 1]})),
    )
    observables = (Observable("y", ()),)
    centers = (2458002.5, 2458007.5)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        return {"y": torch.zeros(len(theta))}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        place, level = theta.unbind(-1)
        first, second = (-0.5 * ((place - c) / (10 * WIDTH)).square() for c in self.centers)
        return torch.logaddexp(first, second - DEPTH) - 0.5 * ((level.log() - 1) / 0.1).square() + 0 * x["y"]

    def candidates(self, x: Mapping[str, Tensor]) -> Tensor:
        return torch.tensor([[2458002.502, 2.0], [2458007.4985, 3.5], [2458007.501, 3.0], [2458005.0, 1.0]]).double()

    def evidence(self) -> tuple[float, float]:
        """ln of each peak's: the integrals over the uniform prior of 10 d, and of N(1, 0.1) under N(0, 1) in the log of the level."""
        place = math.log(10 * WIDTH * math.sqrt(2 * math.pi) / 10)
        level = math.log(0.1 / math.sqrt(1.01)) - 0.5 / 1.01
        return place + level, place + level - DEPTH


def peaks_of(simulator: Any, x: Data, starts: Tensor) -> Any:
    prior = prior_of(simulator)
    support = SupportTransform(prior)
    return climb(LogJoint(simulator, support, prior, x), support.to_unconstrained(starts)), support


def test_a_gaussian_posterior_is_one_peak_with_its_mean_covariance_and_evidence() -> None:
    simulator = LinearGaussian(dimension=3)
    x = simulator.simulate(torch.zeros(1, 3).double(), generator=torch.Generator().manual_seed(1))
    (y,) = (v.double() for v in x.values())
    exact = simulator.posterior(y)
    starts = 3 * torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found, _ = peaks_of(simulator, {k: v.double() for k, v in x.items()}, starts)
    assert len(found.log_mass) == 1
    torch.testing.assert_close(found.location, exact.mean.reshape(1, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.covariance[0], exact.covariance_matrix.reshape(3, 3), atol=1e-6, rtol=1e-5)
    assert float(found.log_mass[0]) == pytest.approx(float(simulator.log_evidence(y)), abs=1e-5)
    assert float(found.share[0]) == 1.0


def test_narrow_peaks_far_from_zero_are_found_once_each_with_their_masses() -> None:
    simulator = Wells()
    x = {"y": torch.zeros(1, dtype=torch.float64)}
    found = posterior_peaks(simulator, prior_of(simulator), x)  # pyright: ignore[reportArgumentType]
    assert found is not None
    theta = SupportTransform(prior_of(simulator)).to_theta(found.location)[0]  # pyright: ignore[reportArgumentType]
    assert [float(t) for t in theta[:2, 0]] == pytest.approx(list(simulator.centers), abs=1e-6)
    # the Jacobian of the uniform prior bends over a range of 10 d, the peaks are 1e-3 d wide: 1e-8
    assert [float(m) for m in found.log_mass[:2]] == pytest.approx(list(simulator.evidence()), abs=1e-3)
    assert float(found.share[1]) == pytest.approx(1 / (1 + math.exp(DEPTH)), rel=1e-3)
    for other in theta[2:, 0].tolist():
        assert min(abs(other - c) for c in simulator.centers) > 1e-3


def test_without_start_or_gradient_there_is_nothing_to_climb() -> None:
    linear = LinearGaussian()
    x = linear.simulate(torch.zeros(1, 3), generator=torch.Generator().manual_seed(0))
    assert posterior_peaks(linear, prior_of(linear), x) is None

    class Detached(Wells):
        def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
            return super().log_likelihood(theta, x).detach()

    theta = torch.tensor([[2458002.0, 1.0]], dtype=torch.float64)
    wells: Any = Detached()
    assert not has_gradient(wells, theta, {"y": torch.zeros(1)})
    assert posterior_peaks(wells, prior_of(wells), {"y": torch.zeros(1)}) is None
    assert has_gradient(Wells(), theta, {"y": torch.zeros(1)})  # pyright: ignore[reportArgumentType]


class Amplitude(Wells):
    """y = e^theta + n, theta N(1.6, 10): where y is two errors from zero, half of the posterior lies anywhere below."""

    name = "amplitude"
    parameters = (Parameter("theta", distribution_from_spec({"normal": [1.6, 10]})),)

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        return -0.5 * (x["y"] - theta[..., 0].exp()).square()

    def candidates(self, x: Mapping[str, Tensor]) -> Tensor:
        return x["y"].log()[:, None]


@pytest.mark.parametrize(("y", "least"), [(2.5, 0.999), (30.0, 0.999)])
def test_a_range_goes_as_far_as_the_posterior_does(y: float, least: float) -> None:
    simulator: Any = Amplitude()
    x = {"y": torch.tensor([y], dtype=torch.float64)}
    prior = prior_of(simulator)
    log_joint = LogJoint(simulator, SupportTransform(prior), prior, x)
    peaks = climb(log_joint, simulator.candidates(x))
    low, high = (float(end) for end in reach(log_joint, peaks, 5.0))
    grid = torch.linspace(-120, 20, 140_001, dtype=torch.float64)
    mass = torch.softmax(log_joint(grid[:, None]), 0)
    inside = (grid > low) & (grid < high)
    assert float(mass[inside].sum()) > least
    if y > 10:  # a normal peak: five widths and no more
        assert high - low == pytest.approx(10 * float(peaks.scale), rel=1e-6)
    else:
        near = (grid - peaks.location[0]).abs() < 5 * float(peaks.scale)
        assert float(mass[near].sum()) < 0.8  # what five widths would have held
