"""Whitening: Mahalanobis where the covariance is known, sklearn's shrinkage, and columns that are too many or too few."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from torch import Tensor

from pipeline.estimators import whitening
from pipeline.estimators.whitening import Whitening


def fit_whitening(points: Tensor) -> Whitening:
    return whitening.fit_whitening(points, least_width=1e-3)


def cloud(rows: int, columns: int, *, rank: int | None = None, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Correlated Gaussian points on a plane of `rank` dimensions, and noise off it."""
    stream = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank or columns, columns, generator=stream, dtype=torch.float64)
    points = torch.randn(rows, rank or columns, generator=stream, dtype=torch.float64) @ mixing
    return 3 + 10 * points + noise * torch.randn(rows, columns, generator=stream, dtype=torch.float64)


@pytest.mark.parametrize(("rows", "columns", "shrunk"), [(400, 6, False), (60, 20, True), (40, 100, True)])
def test_squared_length_is_the_mahalanobis_distance_of_sklearn(rows: int, columns: int, shrunk: bool) -> None:
    points, others = cloud(rows, columns), cloud(30, columns, seed=1)
    center, scale = points.mean(0), points.std(0)
    kind = LedoitWolf if shrunk else EmpiricalCovariance
    fitted = kind(assume_centered=True).fit(((points - center) / scale).numpy())
    expected = fitted.mahalanobis(((others - center) / scale).numpy())
    got = fit_whitening(points).whiten(others).square().sum(1)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)  # directions are kept in float32


def test_points_like_those_of_the_fit_have_unit_width() -> None:
    z = fit_whitening(cloud(20_000, 5)).whiten(cloud(20_000, 5)[10_000:])
    assert z.shape == (10_000, 6)
    torch.testing.assert_close(z[:, :5].T.cov(), torch.eye(5, dtype=torch.float64), rtol=0, atol=0.06)
    assert bool((z[:, 5] == 0).all())  # five columns in five directions: nothing is left over


def test_more_columns_than_directions_share_one_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "MAX_DIRECTIONS", 20)
    points = cloud(6_000, 300, rank=20, noise=1.0)
    w = fit_whitening(points[:4_000])
    assert w.directions.shape == (300, 20)
    across = w.whiten(points[4_000:])[:, -1].square() / 280
    assert float(across.mean()) == pytest.approx(1, abs=0.05)
    off = points[4_000:] + 3 * torch.randn(2_000, 300, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert float((w.whiten(off)[:, -1].square() / 280).mean()) > 5


def test_directions_without_extent_are_narrow_but_finite() -> None:
    points = cloud(2_000, 10, rank=4)
    w = fit_whitening(points)
    off = torch.linalg.svd(points - points.mean(0), full_matrices=True).Vh[-1]  # where no point lies
    inside, outside = w.whiten(points[:5]).norm(dim=1), w.whiten(points[:5] + 30 * off).norm(dim=1)
    assert bool(outside.isfinite().all())
    assert float((outside / inside).min()) > 5


def test_constant_columns_are_left_out() -> None:
    points = cloud(500, 3)
    padded = torch.cat([points, torch.full((500, 2), 7.0, dtype=torch.float64)], 1)
    changed = padded[:9].clone()
    changed[:, 3:] += 100
    torch.testing.assert_close(fit_whitening(padded).whiten(changed), fit_whitening(points).whiten(points[:9]))
    nothing = fit_whitening(torch.ones(50, 4)).whiten(torch.ones(2, 4))
    assert bool((nothing == 0).all())


def test_narrow_directions_stay_narrow_beside_wide_ones() -> None:
    """Noise of 1 beside an offset of 1,000: a step of 5 is far, a shift of 500 near."""
    stream = torch.Generator().manual_seed(3)
    noise = torch.randn(2_000, 10, generator=stream, dtype=torch.float64)
    points = noise + 1_000 * torch.randn(2_000, 1, generator=stream, dtype=torch.float64)
    w = whitening.fit_whitening(points[:1_000], least_width=1e-5)
    step = torch.tensor([0.0] * 5 + [5.0] * 5)
    assert float(w.whiten(points[1_000:]).square().sum(1).mean()) == pytest.approx(10, abs=0.6)
    assert float(w.whiten(points[1_000:] + 500).square().sum(1).mean()) == pytest.approx(10, abs=0.9)
    assert float(w.whiten(points[1_000:] + step).square().sum(1).mean()) > 50
