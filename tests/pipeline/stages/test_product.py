from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Uniform

from pipeline.baselines.evidence_check import StudentMixture
from pipeline.errors import InputError
from pipeline.settings import AdaptSettings
from pipeline.stages.product import Adapted, adapt_mixture, coordinates_of, locally_widened, merged, product_moments
from simulators.benchmark.two_moons import TwoMoons
from simulators.linear_gaussian import LinearGaussian
from simulators.protocol import Observable, Parameter

SETTINGS = AdaptSettings(draws=4_000)


class Angle:
    """An angle and a bounded number, for their coordinates."""

    name = "angle"
    parameters = (
        Parameter("angle", Uniform(torch.tensor(1.0).double(), torch.tensor(4.0).double()), periodic=True),
        Parameter("share", Uniform(torch.tensor(0.0).double(), torch.tensor(1.0).double())),
    )
    observables = (Observable("x", (1,)),)

    def simulate(self, theta, context=None, *, generator):
        return {"x": theta[:, :1]}


def test_product_of_gaussian_posteriors_counts_the_prior_once() -> None:
    """Moments of three single posteriors of the linear Gaussian give those of all three rows together."""
    simulator = LinearGaussian()
    x = simulator.simulate(torch.ones(3, 3).double(), generator=torch.Generator().manual_seed(1))["x"]
    single = simulator.posterior(x)
    covariance = single.covariance_matrix.expand(3, 3, 3).numpy()
    mean, joint = product_moments(single.mean.numpy(), covariance, np.zeros(3), np.eye(3))
    a, s2 = simulator.design_matrix.numpy(), simulator.noise_scale**2
    exact = np.linalg.inv(np.eye(3) + 3 * a.T @ a / s2)
    np.testing.assert_allclose(joint, exact, rtol=1e-10)
    np.testing.assert_allclose(mean, exact @ a.T @ x.sum(0).numpy() / s2, rtol=1e-10)


def test_product_of_wide_moments_is_no_wider_than_the_prior() -> None:
    """Two modes may be wider apart than the prior: the plain product would have a negative precision."""
    covariance = np.array([[[4.0, 0.0], [0.0, 0.5]]] * 3)
    assert 3 / 4.0 - 2 < 0
    mean, joint = product_moments(np.zeros((3, 2)), covariance, np.zeros(2), np.eye(2))
    np.testing.assert_allclose(joint, np.diag([1.0, 1 / (3 / 0.5 - 2)]), rtol=1e-12)
    np.testing.assert_allclose(mean, 0.0)


def test_an_angle_at_the_end_of_its_period_is_in_one_piece() -> None:
    stream = torch.Generator().manual_seed(2)
    near_the_end = 1.0 + torch.remainder(0.1 * torch.randn(500, generator=stream, dtype=torch.float64), 3.0)
    theta = torch.stack([near_the_end, torch.rand(500, generator=stream, dtype=torch.float64)], dim=-1)
    assert theta[:, 0].std() > 1.0  # in two pieces
    coordinates = coordinates_of(Angle(), theta)
    v = coordinates.to_real(theta)
    # a tenth of a period of 3 in the middle of a logit: 4 / 3 of it
    assert float(v[:, 0].std()) == pytest.approx(0.1 * 4 / 3, rel=0.15)
    back, log_det = coordinates.to_theta(v)
    torch.testing.assert_close(back, theta, rtol=1e-9, atol=1e-9)
    step = 1e-6
    ahead, _ = coordinates.to_theta(v + step)
    change = torch.remainder(ahead - back + 1.5, 3.0) - 1.5  # across the end too
    torch.testing.assert_close(log_det, (change / step).log().sum(-1), rtol=0, atol=1e-4)


def two_modes(v: np.ndarray) -> np.ndarray:
    """log of 3 times the density of 0.7 N((3, 3), 0.1 I) + 0.3 N((-3, -3), 0.1 I)."""
    squares = [((v - m) ** 2).sum(1) / 0.02 for m in (3.0, -3.0)]
    return (
        np.log(3.0)
        + np.logaddexp(*(np.log(a) - s for a, s in zip((0.7, 0.3), squares, strict=True)))
        - np.log(0.02 * np.pi)
    )


def broad(scale: float = 3.0) -> StudentMixture:
    return StudentMixture(np.ones(1), np.zeros((1, 2)), scale * np.eye(2)[None])


def test_adaptation_keeps_both_modes_and_finds_the_evidence() -> None:
    """From a start 900 times as wide, evidence and shares by draws that the fit never saw."""
    adapted = adapt_mixture(broad(), two_modes, settings=SETTINGS, seed=3)
    v = adapted.mixture.sample(20_000, np.random.default_rng(4))
    weight = np.exp(two_modes(v) - adapted.mixture.log_prob(v))
    error = weight.std() / math.sqrt(len(v))
    assert error < 0.03
    assert weight.mean() == pytest.approx(3.0, abs=4 * error)
    share = weight[v[:, 0] > 0].sum() / weight.sum()
    assert share == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 10_000))
    assert adapted.largest_share(math.log(3.0), len(v)) < 0.01
    assert len(adapted.v) <= SETTINGS.rounds * SETTINGS.draws


def test_a_lost_mode_stands_out() -> None:
    """A mixture on one of two modes weighs well by its own draws; the points met on the way tell."""
    adapted = adapt_mixture(broad(), two_modes, settings=SETTINGS, seed=3)
    one = StudentMixture(np.ones(1), np.full((1, 2), 3.0), 0.1 * np.eye(2)[None])
    v = one.sample(20_000, np.random.default_rng(4))
    weight = np.exp(two_modes(v) - one.log_prob(v))
    assert weight.sum() ** 2 / (weight**2).sum() > 0.6 * len(v)
    assert Adapted(one, adapted.v, adapted.log_joint).largest_share(math.log(weight.mean()), len(v)) > 1.0


def test_nothing_to_follow_is_an_error() -> None:
    with pytest.raises(InputError, match="do not share one theta"):
        adapt_mixture(broad(), lambda v: np.full(len(v), -np.inf), settings=SETTINGS, seed=1)


def test_mixtures_of_mixtures_stay_densities() -> None:
    mixture = merged([broad(1.0), broad(2.0)], (0.9, 0.1))
    assert mixture.weight.sum() == pytest.approx(1.0)
    grid = np.linspace(-60, 60, 601)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    for m in (mixture, locally_widened(mixture)):
        assert np.exp(m.log_prob(points)).sum() * 0.2**2 == pytest.approx(1.0, abs=1e-3)
    assert (locally_widened(mixture).cholesky[:, 0, 0] == [1.0, 2.0]).all()  # the last component has gone


def test_no_angle_leaves_theta_as_it_is() -> None:
    theta = torch.rand(50, 2, dtype=torch.float64) - 0.5
    coordinates = coordinates_of(TwoMoons(), theta)
    back, _ = coordinates.to_theta(coordinates.to_real(theta))
    torch.testing.assert_close(back, theta)
    assert (coordinates.turn == 0).all()
