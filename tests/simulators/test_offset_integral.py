"""Marginal over offsets against scipy's quadrature, the Gaussian's closed form, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from simulators.noise_laws import GaussianNoise, MixtureNoise, NoiseLaw, StudentNoise
from simulators.offset_integral import log_marginal, robust_mean

LAWS: dict[str, NoiseLaw] = {
    "gaussian": GaussianNoise(),
    "student_t": StudentNoise(torch.tensor([[3.0]]).double()),
    "mixture": MixtureNoise(torch.tensor([[0.2]]).double(), 6.0),
}


def points(sizes: tuple[int, ...], seed: int = 0, far: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals, scales and membership of one star, offsets of tens of m/s; the first point is `far` errors off."""
    stream = torch.Generator().manual_seed(seed)
    scale = 0.5 + 2 * torch.rand((1, sum(sizes)), generator=stream, dtype=torch.float64)
    eps = torch.randn((1, sum(sizes)), generator=stream, dtype=torch.float64)
    eps[0, 0] += far
    which = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    membership = torch.nn.functional.one_hot(which, len(sizes)).double()[None]
    return scale * eps + 30.0 * which - 20.0, scale, membership


def by_quadrature(law: NoiseLaw, residual: Tensor, scale: Tensor, membership: Tensor) -> float:
    """scipy's adaptive quadrature, instrument after instrument."""
    total = 0.0
    for i in range(membership.shape[-1]):
        of = membership[0, :, i] > 0.5
        r, s = residual[:, of], scale[:, of]

        def log_density(gamma: float, r: Tensor = r, s: Tensor = s) -> float:
            return float((law.log_density((r - gamma) / s) - s.log()).sum())

        grid = np.linspace(float(r.min()) - 5, float(r.max()) + 5, 4001)
        peak = max(grid, key=log_density)
        top = log_density(float(peak))

        def density(gamma: float, log_density: Callable[[float], float] = log_density, top: float = top) -> float:
            return math.exp(log_density(gamma) - top)

        ends = peak + np.array([-3e4, -300, -30, -3, 0, 3, 30, 300, 3e4])
        total += top + math.log(sum(quad(density, a, b, limit=500)[0] for a, b in pairwise(ends)))
    return total


@pytest.mark.parametrize("far", [0.0, 40.0])
@pytest.mark.parametrize("sizes", [(60,), (7, 15), (1, 4, 3)])
@pytest.mark.parametrize("law", LAWS)
def test_it_is_the_integral(law: str, sizes: tuple[int, ...], far: float) -> None:
    given = points(sizes, far=far)
    got = float(log_marginal(LAWS[law], *given))
    assert got == pytest.approx(by_quadrature(LAWS[law], *given), abs=2e-5)


def test_of_a_gaussian_it_is_the_closed_form() -> None:
    residual, scale, membership = points((40,))
    weight = 1 / scale.square()
    mean = (weight * residual).sum() / weight.sum()
    chi2 = (weight * (residual - mean).square()).sum()
    expected = -0.5 * (chi2 + scale.square().log().sum() + weight.sum().log() + 39 * math.log(2 * math.pi))
    torch.testing.assert_close(
        log_marginal(GaussianNoise(), residual, scale, membership)[0], expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("law", LAWS)
def test_an_instrument_without_points_counts_nothing(law: str) -> None:
    residual, scale, membership = points((9,))
    more = torch.cat([membership, torch.zeros_like(membership)], -1)
    expected = log_marginal(LAWS[law], residual, scale, membership)
    torch.testing.assert_close(log_marginal(LAWS[law], residual, scale, more), expected)


@pytest.mark.parametrize("law", LAWS)
def test_the_gaussian_approximation_is_near(law: str) -> None:
    data = points((40, 25))
    exact, near = (float(log_marginal(LAWS[law], *data, laplace=laplace)) for laplace in (False, True))
    assert near == pytest.approx(exact, abs=1e-4 if law == "gaussian" else 0.5)


def test_gradients_are_those_of_the_integral() -> None:
    residual, scale, membership = points((12, 5), far=15.0)
    freedom = torch.tensor([[4.0]], dtype=torch.float64, requires_grad=True)
    residual.requires_grad_()
    scale.requires_grad_()

    def value(residual: Tensor, scale: Tensor, freedom: Tensor) -> Tensor:
        return log_marginal(StudentNoise(freedom), residual, scale, membership)

    assert torch.autograd.gradcheck(value, (residual, scale, freedom), eps=1e-5, atol=1e-5)


@pytest.mark.parametrize(("law", "far"), [("student_t", 1e4), ("mixture", 40.0)])
def test_a_robust_mean_does_not_follow_an_outlier(law: str, far: float) -> None:
    """`far` is in m/s: a mixture's outliers are bounded, 6 errors wide here."""
    residual, scale, membership = points((30,))
    shifted = residual.clone()
    shifted[0, 3] += far
    mean, error = robust_mean(LAWS[law], residual, scale, membership)
    moved, _ = robust_mean(LAWS[law], shifted, scale, membership)
    assert float((moved - mean).abs()) < 0.5 * float(error)
    plain, _ = robust_mean(GaussianNoise(), shifted, scale, membership)
    assert float((plain - mean).abs()) > 3 * float((moved - mean).abs())
