"""The fit against closed forms."""

from __future__ import annotations

import torch

from simulators.gauss_newton import fit_posterior


def test_a_linear_model_gives_the_exact_posterior() -> None:
    stream = torch.Generator().manual_seed(1)
    design = torch.randn(3, 10, 2, generator=stream, dtype=torch.float64)
    data = torch.randn(3, 10, generator=stream, dtype=torch.float64)
    start = torch.tensor([0.5, -1.0], dtype=torch.float64)
    spread = torch.tensor([2.0, 0.3], dtype=torch.float64)
    fit = fit_posterior(
        lambda u: data - torch.einsum("nmd,...nd->...nm", design, u),
        torch.ones_like,
        count=3,
        start=start,
        spread=spread,
    )
    precision = torch.diag(spread**-2)
    covariance = torch.linalg.inv(design.mT @ design + precision)
    mean = covariance @ (design.mT @ data[..., None] + precision @ start[:, None])
    torch.testing.assert_close(fit.location, mean[..., 0], atol=1e-7, rtol=0)
    torch.testing.assert_close(fit.factor @ fit.factor.mT, covariance, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(fit.scale, covariance.diagonal(dim1=1, dim2=2).sqrt(), atol=1e-7, rtol=1e-6)


def test_an_outlier_of_small_weight_hardly_moves_the_fit() -> None:
    data = torch.tensor([[0.1, -0.2, 0.0, 0.1, 30.0]], dtype=torch.float64)
    options = {"count": 1, "start": torch.zeros(1).double(), "spread": 10 * torch.ones(1).double()}
    plain = fit_posterior(lambda u: data - u, torch.ones_like, **options)
    robust = fit_posterior(lambda u: data - u, lambda e: 4 / (4 + e.square()), **options)
    assert abs(float(plain.location)) > 5
    assert abs(float(robust.location)) < 0.3


def test_what_the_data_do_not_see_keeps_its_prior() -> None:
    start, spread = torch.tensor([0.0, 2.0]).double(), torch.tensor([1.0, 1.5]).double()
    fit = fit_posterior(lambda u: 5 - u[..., :1], torch.ones_like, count=1, start=start, spread=spread)
    assert float(fit.location[0, 1]) == 2.0
    assert abs(float(fit.scale[0, 1]) - 1.5) < 1e-9
