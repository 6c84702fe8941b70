"""Noise and its density: normal, Student-t against SciPy, both widened."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from pipeline.estimators.base import NormalBase, StudentBase, base_distribution
from pipeline.settings import FlowSettings


def draws(base: NormalBase | StudentBase, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return base.noise(count, generator=generator, device=torch.device("cpu"), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_densities_are_scipys(scale: float) -> None:
    z = 3 * draws(NormalBase(3), 50)
    expected = torch.from_numpy(stats.norm(scale=scale).logpdf(z.numpy())).sum(-1)
    torch.testing.assert_close(NormalBase(3).log_prob(z, scale), expected)
    student = stats.multivariate_t(shape=scale**2 * torch.eye(3).numpy(), df=8)
    torch.testing.assert_close(StudentBase(3, 8).log_prob(z, scale), torch.from_numpy(student.logpdf(z.numpy())))


def test_normal_noise_is_the_generators() -> None:
    expected = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(draws(NormalBase(3), 7), expected)


def test_student_noise_follows_its_density() -> None:
    """Each marginal is a Student-t, and the squared radius over D follows an F distribution."""
    z = draws(StudentBase(3, 4), 20_000)
    assert stats.kstest(z[:, 1].numpy(), stats.t(4).cdf).pvalue > 1e-3
    assert stats.kstest((z.square().sum(1) / 3).numpy(), stats.f(3, 4).cdf).pvalue > 1e-3
    assert torch.equal(z, draws(StudentBase(3, 4), 20_000))
    assert stats.kstest((StudentBase(3, 4).widen(z, 2.0)[:, 1] / 2).numpy(), stats.t(4).cdf).pvalue > 1e-3


def test_student_of_no_components_is_a_point() -> None:
    """Beside angles alone there are no real components."""
    base = StudentBase(0, 8)
    torch.testing.assert_close(base.log_prob(draws(base, 5), 1.5), torch.zeros(5, dtype=torch.float64))


def test_settings_name_the_base() -> None:
    assert base_distribution(3, FlowSettings()) == NormalBase(3)
    assert base_distribution(3, FlowSettings(base="student", base_freedom=5)) == StudentBase(3, 5)
