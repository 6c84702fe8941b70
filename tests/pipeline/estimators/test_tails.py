"""The sinh-arcsinh map: its closed form, its Jacobian, and its behaviour at the limits of its parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.estimators.tails import MAX_LOG_WEIGHT, MAX_SKEW, ConditionalTails


def tails(skew: Tensor, log_weight: Tensor) -> ConditionalTails:
    """A map with these coefficients for every context, in float64."""
    transform = ConditionalTails(len(skew), 2, 4).double()
    last = transform.network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.copy_(
            torch.cat(
                [MAX_SKEW * torch.atanh(skew / MAX_SKEW), MAX_LOG_WEIGHT * torch.atanh(log_weight / MAX_LOG_WEIGHT)]
            )
        )
    return transform


def some(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


CONTEXT = torch.zeros(50, 2, dtype=torch.float64)
Y = torch.linspace(-6, 6, 50, dtype=torch.float64)[:, None]


def test_untrained_is_the_identity() -> None:
    transform = ConditionalTails(3, 2, 4).double()
    y = Y * some(1, -1, 0.1)
    for u, log_det in (transform(y, CONTEXT), transform.inverse(y, CONTEXT)):
        torch.testing.assert_close(u, y)
        torch.testing.assert_close(log_det, torch.zeros_like(log_det))


def test_inverse_is_the_closed_form() -> None:
    transform = tails(some(0.7, -1.2), some(0.3, -0.4))
    y = Y * some(1, -1)
    u, _ = transform.inverse(y, CONTEXT)
    torch.testing.assert_close(u, torch.sinh((torch.asinh(y) + some(0.7, -1.2)) * some(0.3, -0.4).exp()))
    back, _ = transform(u, CONTEXT)
    torch.testing.assert_close(back, y)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_log_det_is_the_jacobians(direction: str) -> None:
    transform = tails(some(0.7, -1.2), some(0.3, -0.4))
    mapped = getattr(transform, direction)
    y = (Y * some(1, -1)).requires_grad_()
    u, log_det = mapped(y, CONTEXT)
    (slope,) = torch.autograd.grad(u.sum(), y)  # elementwise: the Jacobian is diagonal
    torch.testing.assert_close(log_det, slope.log().sum(-1))


def test_skew_draws_the_right_tail_out_and_weight_both() -> None:
    y = some(-3, 3)[:, None]
    right = tails(some(0.5), some(0.0)).inverse(y, CONTEXT[:2])[0][:, 0].detach()
    assert float(right[1]) > 3
    assert -3 < float(right[0]) < 0
    heavy = tails(some(0.0), some(0.5)).inverse(y, CONTEXT[:2])[0][:, 0].detach()
    assert float(heavy[1]) > 3
    assert float(heavy[0]) < -3


def test_coefficients_depend_on_the_context_and_stay_in_their_limits() -> None:
    torch.manual_seed(0)
    transform = ConditionalTails(2, 2, 4).double()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.copy_(5 * torch.randn_like(parameter))
    context = torch.randn(50, 2, dtype=torch.float64)
    skew, log_weight = (v.detach() for v in transform._coefficients(context))
    assert float(skew.std(0).max()) > 0.1
    assert float(log_weight.std(0).max()) > 0.1
    assert float(skew.abs().max()) > 1  # the limits are within reach
    assert float(skew.abs().max()) <= MAX_SKEW
    assert float(log_weight.abs().max()) <= MAX_LOG_WEIGHT


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_nothing_overflows_in_float32_at_the_limits(direction: str) -> None:
    signs = torch.cartesian_prod(some(-1, 1), some(-1, 1))
    transform = tails(MAX_SKEW * 0.999999 * signs[:, 0], MAX_LOG_WEIGHT * 0.999999 * signs[:, 1]).float()
    far = torch.cat([-torch.logspace(-3, 6, 25), torch.logspace(-3, 6, 25)])[:, None].expand(-1, 4)
    u, log_det = getattr(transform, direction)(far, CONTEXT.float())
    assert bool(u.isfinite().all() and log_det.isfinite().all())
