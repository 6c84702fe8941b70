"""Residual summary: what it sees, and what it does not."""

from __future__ import annotations

import torch

from simulators.supernova_summary import directions, residual_summary


def test_points_are_distinct_and_around_the_origin() -> None:
    points = directions(3)
    assert len(points.unique(dim=0)) == len(points)
    torch.testing.assert_close(points.sum(0), torch.zeros(3).double(), atol=1e-12, rtol=0)


def test_white_noise_is_of_order_one_and_a_trend_is_not() -> None:
    eps = torch.randn(2_000, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    redshift = torch.logspace(-2, 0, 40).double().expand(2_000, 40)
    present = torch.ones(2_000, 40).double()
    summary = residual_summary(eps, redshift, present)
    assert summary.shape == (2_000, 6)
    assert float((torch.sinh(summary[:, 2:]).std(0) - 1).abs().max()) < 0.1
    trend = torch.linspace(1, -1, 40).double()[None]
    assert float(residual_summary(eps[:1] + trend, redshift[:1], present[:1])[0, 2]) > 1


def test_absent_supernovae_do_not_matter() -> None:
    eps = torch.tensor([[1.0, -1.0, 0.0]]).double()
    present = torch.tensor([[1.0, 1.0, 0.0]]).double()
    one, other = (residual_summary(eps, torch.tensor([[0.1, 1.0, z]]).double(), present) for z in (0.5, 7.0))
    torch.testing.assert_close(one, other)
    assert float(one[0, 0]) == 0.0  # rms of two residuals of one
