"""Noise laws: normalisation, weights and draws; roots of a covariance."""

from __future__ import annotations

import pytest
import torch

from simulators.noise_laws import GaussianNoise, MixtureNoise, NoiseLaw, StudentNoise
from simulators.supernova_noise import (
    coloring,
    present_covariance,
    whitening,
)

LAWS: dict[str, NoiseLaw] = {
    "gaussian": GaussianNoise(),
    "student_t": StudentNoise(torch.tensor([[4.0]]).double()),
    "mixture": MixtureNoise(torch.tensor([[0.1]]).double(), 5.0),
}


@pytest.fixture(params=LAWS)
def law(request: pytest.FixtureRequest) -> NoiseLaw:
    return LAWS[request.param]


def test_densities_have_integral_one(law: NoiseLaw) -> None:
    eps = torch.linspace(-2_000, 2_000, 400_001, dtype=torch.float64)[None]
    assert abs(float(torch.trapezoid(law.log_density(eps).exp()[0], eps[0])) - 1) < 1e-6


def test_weights_are_slopes_of_the_density(law: NoiseLaw) -> None:
    eps = torch.tensor([[-7.0, -0.3, 1.0, 4.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(law.log_density(eps).sum(), eps)
    torch.testing.assert_close(law.weight(eps), -slope / eps)


def test_draws_have_the_density(law: NoiseLaw) -> None:
    """Shares within 1 and 3 of 100,000 draws, within four binomial errors."""
    draws = law.draw((1_000, 100), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for limit in (1.0, 3.0):
        axis = torch.linspace(-limit, limit, 20_001, dtype=torch.float64)[None]
        expected = float(torch.trapezoid(law.log_density(axis).exp()[0], axis[0]))
        share = float((draws.abs() < limit).double().mean())
        assert abs(share - expected) < 4 * (expected * (1 - expected) / draws.numel()) ** 0.5


@pytest.mark.parametrize("symmetric", [True, False])
def test_roots_of_a_covariance(symmetric: bool) -> None:
    factor = torch.randn(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    covariance = factor @ factor.mT + 0.1 * torch.eye(5)
    root = coloring(covariance, symmetric=symmetric)
    torch.testing.assert_close(root @ root.mT, covariance)
    inverse, log_det = whitening(covariance, symmetric=symmetric)
    torch.testing.assert_close(inverse @ root, torch.eye(5).double().expand(2, 5, 5), atol=1e-9, rtol=0)
    torch.testing.assert_close(log_det, torch.logdet(covariance))
    assert torch.allclose(root, root.mT) == symmetric


def test_absent_supernovae_have_a_unit_variance_of_their_own() -> None:
    covariance = torch.full((1, 3, 3), 0.5).double() + torch.eye(3)
    present = torch.tensor([[1.0, 0.0, 1.0]])
    expected = torch.tensor([[[1.5, 0, 0.5], [0, 1, 0], [0.5, 0, 1.5]]]).double()
    torch.testing.assert_close(present_covariance(covariance, present), expected)
