"""The conditional affine map: a mean and a triangle, the identity at first, limited scales."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.estimators.affine import ConditionalAffine

CONTEXT = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def affine(dimension: int = 3) -> ConditionalAffine:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        result = ConditionalAffine(dimension, CONTEXT, 8).double()
        with torch.no_grad():
            for parameter in result.parameters():
                parameter.copy_(torch.randn_like(parameter))
    return result


def test_affine_map_starts_as_the_identity() -> None:
    u = normal(4, 3)
    for value, log_det in (
        method(u, normal(4, CONTEXT))
        for method in (
            ConditionalAffine(3, CONTEXT, 8).double().inverse,
            ConditionalAffine(3, CONTEXT, 8).double().forward,
        )
    ):
        torch.testing.assert_close(value, u)
        assert bool((log_det == 0).all())


@pytest.mark.parametrize("dimension", [1, 3])
def test_affine_map_is_a_mean_and_a_triangle(dimension: int) -> None:
    transform = affine(dimension)
    context, v = normal(1, CONTEXT).expand(50, -1), normal(50, dimension, seed=1)
    u, log_det = transform.inverse(v, context)
    mean = transform.inverse(torch.zeros_like(v), context)[0][0]
    lower = torch.stack(
        [transform.inverse(row.expand(50, -1), context)[0][0] - mean for row in torch.eye(dimension).double()], dim=-1
    )
    torch.testing.assert_close(lower, lower.tril())
    assert bool((lower.diagonal() > 0).all())
    torch.testing.assert_close(u, mean + v @ lower.T)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(lower)[1].expand(50))
    back, log_det_back = transform(u, context)
    torch.testing.assert_close(back, v)
    torch.testing.assert_close(log_det_back, -log_det)
    if dimension > 1:
        assert bool((lower[1:, 0] != 0).all())
    with torch.no_grad():  # the mean has a part that is linear in the context
        transform.linear.weight.add_(1.0)
    torch.testing.assert_close(transform.inverse(v, context)[0], u + context.sum(-1, keepdim=True))


def test_scales_of_an_untrained_network_are_limited() -> None:
    transform = affine()
    last = transform.network[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.bias[3:6] = torch.tensor([1e4, -1e4, 0.0])
    _, log_diagonal, _ = transform._coefficients(normal(1, CONTEXT))
    assert log_diagonal[0, :2].tolist() == pytest.approx([8, -8], abs=1e-6)
    assert math.isfinite(float(transform.inverse(normal(1, 3), normal(1, CONTEXT))[1].detach()))
