"""Coupling layers for angles: what is transformed, what the network sees, and what it gives."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.estimators.circular_coupling import CircularCoupling, wrap
from pipeline.settings import FlowSettings

PERIODIC = (True, False, True, False)
TRANSFORMED = (True, True, False, False)


def layer() -> CircularCoupling:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = CircularCoupling(PERIODIC, TRANSFORMED, 3, FlowSettings(hidden=12, blocks=1, bins=5)).double()
        with torch.no_grad():
            for parameter in result.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return result


def points(rows: int = 30) -> torch.Tensor:
    return wrap(2 * torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


CONTEXT = torch.ones(30, 3, dtype=torch.float64)


def test_wrap_is_the_same_angle_on_the_circle() -> None:
    angles = torch.tensor([0.0, math.pi, -math.pi, 3.5, -10.0, 100.0], dtype=torch.float64)
    wrapped = wrap(angles)
    assert bool(((wrapped >= -math.pi) & (wrapped < math.pi)).all())
    torch.testing.assert_close(torch.cos(wrapped), torch.cos(angles))
    torch.testing.assert_close(torch.sin(wrapped), torch.sin(angles), rtol=0, atol=1e-9)


def test_the_transformed_half_changes_invertibly_and_the_rest_passes() -> None:
    u = points()
    y, log_det = layer()(u, CONTEXT)
    assert torch.equal(y[:, 2:], u[:, 2:])
    assert bool((y != u)[:, :2].all())
    back, log_det_back = layer().inverse(y, CONTEXT)
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(log_det_back, -log_det)
    for n in range(5):
        jacobian = torch.as_tensor(
            torch.autograd.functional.jacobian(lambda a: layer()(a[None], CONTEXT[:1])[0][0], u[n])
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[n])


@pytest.mark.parametrize("component", [0, 2])
def test_an_angle_is_the_same_a_turn_further(component: int) -> None:
    """Both where it is transformed and where it conditions; and nothing jumps at the seam."""
    u = points()
    further = u.clone()
    further[:, component] += 2 * math.pi
    y, log_det = layer()(u, CONTEXT)
    y_further, log_det_further = layer()(further, CONTEXT)
    torch.testing.assert_close(log_det_further, log_det)
    torch.testing.assert_close(wrap(y_further - y)[:, [0, 1, 3]], torch.zeros(30, 3).double(), rtol=0, atol=1e-9)
    sides = u.repeat(2, 1)
    sides[:30, component], sides[30:, component] = math.pi - 1e-9, 1e-9 - math.pi
    log_det = layer()(sides, CONTEXT.repeat(2, 1))[1]
    torch.testing.assert_close(log_det[:30], log_det[30:], rtol=0, atol=1e-6)
