"""Weighted least squares against NumPy."""

from __future__ import annotations

import numpy as np
import torch

from simulators.least_squares import weighted_least_squares


def test_amplitudes_errors_and_residuals_are_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 12, 4, dtype=torch.float64, generator=generator)
    values = torch.randn(3, 12, dtype=torch.float64, generator=generator)
    weight = 0.2 + torch.rand(3, 12, dtype=torch.float64, generator=generator)
    fit = weighted_least_squares(basis, values, weight)
    for n in range(3):
        root = weight[n].sqrt().numpy()
        b, y = basis[n].numpy() * root[:, None], values[n].numpy() * root
        expected = np.linalg.lstsq(b, y)[0]
        np.testing.assert_allclose(fit.amplitude[n].numpy(), expected, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(fit.residual[n].numpy(), values[n].numpy() - basis[n].numpy() @ expected, atol=1e-9)
        np.testing.assert_allclose(fit.standard_error[n].numpy(), np.sqrt(np.diag(np.linalg.inv(b.T @ b))), rtol=1e-6)


def test_more_columns_than_points_give_numbers() -> None:
    basis = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fit = weighted_least_squares(basis, torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64))
    assert bool(fit.amplitude.isfinite().all())
    assert float(fit.residual.abs().max()) < 1e-6
