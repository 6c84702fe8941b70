"""The linear fit to velocities: amplitudes, errors, scatter and jitter against closed forms and their own scatter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simulators.velocity_summary import LEAST_RMS, VelocitySummary, summarize_velocities

AMPLITUDE = torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64)
TYPICAL_JITTER = 1.5


def basis(rows: int, points: int) -> Tensor:
    """Offset, slope and a sine, (N, M, 3)."""
    t = torch.linspace(-1, 1, points, dtype=torch.float64)
    return torch.stack([torch.ones_like(t), t, (5 * t).sin()], -1).expand(rows, -1, -1)


def noisy(rows: int, points: int, *, jitter: float = TYPICAL_JITTER, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Velocities and error bars, (N, M) each; error bars from 1 to 3, the same for every row."""
    error = torch.linspace(1, 3, points, dtype=torch.float64).expand(rows, -1)
    noise = torch.randn(rows, points, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return basis(rows, points) @ AMPLITUDE + (error.square() + jitter**2).sqrt() * noise, error


def summary(rows: int, points: int, **options: float) -> VelocitySummary:
    velocity, error = noisy(rows, points, **options)  # pyright: ignore[reportArgumentType]
    return summarize_velocities(basis(rows, points), velocity, error, TYPICAL_JITTER)


def test_pulls_of_the_amplitudes_follow_students_t() -> None:
    fit = summary(4000, 15)
    assert fit.freedom == 12
    pull = (fit.amplitude - AMPLITUDE) / fit.error
    variance = 12 / 10
    assert float(pull.mean(0).abs().max()) < 5 * (variance / 4000) ** 0.5
    kurtosis = 3 + 6 / (12 - 4)
    assert float((pull.square().mean(0) / variance - 1).abs().max()) < 5 * ((kurtosis - 1) / 4000) ** 0.5
    torch.testing.assert_close(fit.significance([1, 2]), fit.amplitude[:, 1:] / fit.error[:, 1:])


def test_rms_is_one_at_the_expected_scatter_and_two_at_twice_it() -> None:
    velocity, error = noisy(3000, 15)
    once = summarize_velocities(basis(3000, 15), velocity, error, TYPICAL_JITTER)
    assert abs(float(once.rms.square().mean()) - 1) < 5 * (2 / (12 * 3000)) ** 0.5
    model = basis(3000, 15) @ AMPLITUDE
    twice = summarize_velocities(basis(3000, 15), model + 2 * (velocity - model), error, TYPICAL_JITTER)
    torch.testing.assert_close(twice.rms, 2 * once.rms)
    torch.testing.assert_close(twice.error, 2 * once.error)
    torch.testing.assert_close(twice.residual, once.residual)  # whitened: in units of rms


def test_residuals_are_whitened() -> None:
    """Sum of squares = degrees of freedom, exactly, and at right angles to the basis."""
    fit = summary(6, 20)
    _, error = noisy(6, 20)
    torch.testing.assert_close(fit.residual.square().sum(-1), torch.full((6,), 17.0, dtype=torch.float64))
    weight = 1 / (error.square() + TYPICAL_JITTER**2).sqrt()
    assert float((basis(6, 20).mT @ (weight * fit.residual)[..., None]).abs().max()) < 1e-7


def test_a_fit_without_residuals_is_taken_as_one_of_the_least_rms() -> None:
    _, error = noisy(1, 20)
    exact = summarize_velocities(basis(1, 20), basis(1, 20) @ AMPLITUDE, error, TYPICAL_JITTER)
    torch.testing.assert_close(exact.amplitude[0], AMPLITUDE)
    weighted = basis(1, 20)[0] / (error[0].square() + TYPICAL_JITTER**2).sqrt()[:, None]
    expected = torch.linalg.inv(weighted.T @ weighted).diagonal().sqrt() * LEAST_RMS
    torch.testing.assert_close(exact.error[0], expected, rtol=1e-6, atol=0)
    assert bool(exact.residual.isfinite().all())
    assert float(exact.rms) == pytest.approx(1e-6)


def test_more_columns_than_points_give_numbers() -> None:
    velocity, error = noisy(3, 2)
    fit = summarize_velocities(basis(3, 2), velocity, error, TYPICAL_JITTER)
    assert fit.freedom == 1
    for values in (fit.amplitude, fit.error, fit.residual, fit.rms, *fit.jitter()):
        assert bool(values.isfinite().all())
    assert bool((fit.error > 0).all())


def test_jitter_by_moments_is_the_jitter_within_its_error() -> None:
    """Equal error bars: rms^2 <err^2 + j0^2> - <err^2> is unbiased for jitter^2, whatever j0."""
    rows, points, jitter = 1000, 200, 4.0
    noise = torch.randn(rows, points, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    error = torch.full((rows, points), 2.0, dtype=torch.float64)
    fit = summarize_velocities(basis(rows, points), (4 + jitter**2) ** 0.5 * noise, error, 0.7)
    estimate, spread = fit.jitter()
    assert estimate.shape == spread.shape == (rows,)
    square_error = (4 + jitter**2) * (2 / 197 / rows) ** 0.5
    assert abs(float(estimate.square().mean()) - jitter**2) < 5 * square_error
    pull = (estimate - jitter) / spread
    assert abs(float(pull.std()) - 1) < 5 / (2 * rows) ** 0.5 + 0.02  # 0.02: of the square root


def test_jitter_is_floored_at_its_error() -> None:
    """Where the error bars explain everything, jitter^2 is half its error, and the guess is as uncertain as it is large."""
    velocity, error = noisy(5, 30, jitter=0.0)
    model = basis(5, 30) @ AMPLITUDE
    fit = summarize_velocities(basis(5, 30), model + 0.5 * (velocity - model), error, TYPICAL_JITTER)
    estimate, spread = fit.jitter()
    total = (fit.rms.square() * (error.square() + TYPICAL_JITTER**2).mean(-1, keepdim=True))[:, 0]
    assert bool((total < error.square().mean(-1)).all())
    torch.testing.assert_close(estimate.square(), 0.5 * total * (2 / 27) ** 0.5)
    torch.testing.assert_close(spread, estimate)
