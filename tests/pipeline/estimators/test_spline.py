"""The spline against nflows' own, and its derivatives against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline
from torch import Tensor

from pipeline.estimators.spline import DERIVATIVE_SHIFT, MIN_BIN, rational_quadratic_spline

BOUND = 3.0


def spline_arguments(
    count: int, bins: int, *, size: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Inputs well beyond the interval on both sides, and packed parameters."""
    generator = torch.Generator().manual_seed(bins)
    inputs = 2 * BOUND * (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1)
    parameters = size * torch.randn(count, 3 * bins - 1, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), parameters.to(dtype)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_spline_is_nflows(inverse: bool, bins: int, dtype: torch.dtype, tolerance: float) -> None:
    """nflows' derivatives carry no shift: zero network output is not the identity there."""
    inputs, parameters = spline_arguments(2000, bins, dtype=dtype)
    got = rational_quadratic_spline(inputs, parameters, inverse=inverse, bound=BOUND, scale=0.7)
    widths, heights, derivatives = parameters.split([bins, bins, bins - 1], dim=-1)
    expected = unconstrained_rational_quadratic_spline(
        inputs, 0.7 * widths, 0.7 * heights, derivatives + DERIVATIVE_SHIFT, inverse=inverse, tail_bound=BOUND
    )
    for value, reference in zip(got, expected, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance)


def test_inverse_undoes_the_spline() -> None:
    inputs, parameters = spline_arguments(2000, 8, size=1.5)
    outputs, log_slope = rational_quadratic_spline(inputs, parameters, inverse=False, bound=BOUND)
    back, log_slope_back = rational_quadratic_spline(outputs, parameters, inverse=True, bound=BOUND)
    torch.testing.assert_close(back, inputs, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_slope_back, -log_slope, rtol=0, atol=1e-7)


@pytest.mark.parametrize("inverse", [False, True])
def test_tails_are_the_identity_and_the_ends_join_them(inverse: bool) -> None:
    inputs, parameters = spline_arguments(2000, 8)
    outputs, log_slope = rational_quadratic_spline(inputs, parameters, inverse=inverse, bound=BOUND)
    outside = inputs.abs() > BOUND
    assert torch.equal(outputs[outside], inputs[outside])
    assert bool((log_slope[outside] == 0).all())
    assert float((outputs - inputs)[~outside].abs().max()) > 0.5
    ends = torch.full((2000,), BOUND, dtype=torch.float64) * torch.where(torch.arange(2000) % 2 == 0, 1, -1)
    outputs, log_slope = rational_quadratic_spline(ends, parameters, inverse=inverse, bound=BOUND)
    torch.testing.assert_close(outputs, ends)
    torch.testing.assert_close(log_slope, torch.zeros_like(ends), rtol=0, atol=1e-9)  # slope one at both ends


def test_zero_parameters_are_the_identity() -> None:
    inputs, parameters = spline_arguments(200, 8, size=0.0)
    outputs, log_slope = rational_quadratic_spline(inputs, parameters, inverse=False, bound=BOUND)
    torch.testing.assert_close(outputs, inputs)
    torch.testing.assert_close(log_slope, torch.zeros_like(inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("periodic", [False, True])
def test_gradients_match_finite_differences(inverse: bool, periodic: bool) -> None:
    inputs, parameters = spline_arguments(24, 4)
    if periodic:
        parameters = torch.cat([parameters, parameters[:, :1]], dim=-1)
    arguments = [v.requires_grad_() for v in (inputs, parameters)]
    assert torch.autograd.gradcheck(
        lambda u, p: rational_quadratic_spline(u, p, inverse=inverse, bound=BOUND, scale=0.6, periodic=periodic),
        arguments,
    )


@pytest.mark.parametrize("inverse", [False, True])
def test_log_slope_is_the_logarithm_of_the_derivative(inverse: bool) -> None:
    inputs, parameters = spline_arguments(500, 6)
    inputs.requires_grad_()
    outputs, log_slope = rational_quadratic_spline(inputs, parameters, inverse=inverse, bound=BOUND)
    (slope,) = torch.autograd.grad(outputs.sum(), inputs)
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("inverse", [False, True])
def test_spline_is_monotone(inverse: bool) -> None:
    _, parameters = spline_arguments(1, 8, size=2.0)
    grid = torch.linspace(-2 * BOUND, 2 * BOUND, 4001, dtype=torch.float64)
    outputs, _ = rational_quadratic_spline(grid, parameters.expand(4001, -1), inverse=inverse, bound=BOUND)
    assert bool((outputs.diff() > 0).all())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [30.0, 1e3])
def test_extreme_parameters_give_numbers_and_gradients(inverse: bool, size: float) -> None:
    arguments = [v.requires_grad_() for v in spline_arguments(4000, 8, size=size, dtype=torch.float32)]
    outputs, log_slope = rational_quadratic_spline(*arguments, inverse=inverse, bound=BOUND)  # pyright: ignore[reportArgumentType]
    assert bool((outputs.isfinite() & log_slope.isfinite()).all())
    inside = arguments[0].abs() <= BOUND
    assert float(outputs[inside].detach().abs().max()) <= BOUND + 1e-5
    for gradient in torch.autograd.grad((outputs + log_slope).sum(), arguments):
        assert bool(gradient.isfinite().all())


def test_inverse_beside_a_knot_survives_rounding_where_nflows_does_not() -> None:
    """In float32 the discriminant there may be negative, and the root outside its bin by a percent."""
    _, parameters = spline_arguments(40_000, 8, size=6.0, dtype=torch.float32)
    widths, heights, derivatives = parameters.split([8, 8, 7], dim=-1)
    knots = (MIN_BIN + (1 - 8 * MIN_BIN) * heights.softmax(-1)).cumsum(-1) * 2 * BOUND - BOUND
    upper = knots.gather(-1, torch.arange(40_000)[:, None] % 8)[:, 0]
    inputs = torch.nextafter(upper, torch.full_like(upper, -9.0))
    with pytest.raises(AssertionError):
        unconstrained_rational_quadratic_spline(
            inputs, widths, heights, derivatives + DERIVATIVE_SHIFT, inverse=True, tail_bound=BOUND
        )
    outputs, log_slope = rational_quadratic_spline(inputs, parameters, inverse=True, bound=BOUND)
    assert bool((outputs.isfinite() & log_slope.isfinite()).all())
    ends = (MIN_BIN + (1 - 8 * MIN_BIN) * widths.softmax(-1)).cumsum(-1) * 2 * BOUND - BOUND
    beyond = outputs - ends.gather(-1, torch.arange(40_000)[:, None] % 8)[:, 0]
    assert float(beyond.max()) < 1e-3  # where rounding of the knots puts it into the next bin


@pytest.mark.parametrize("inverse", [False, True])
def test_shapes_do_not_depend_on_data(inverse: bool) -> None:
    """Tensors without data refuse boolean masks, as a GPU waits for them and torch.compile breaks the graph at them."""
    inputs, parameters = (v.to("meta").requires_grad_() for v in spline_arguments(20, 5))
    outputs, log_slope = rational_quadratic_spline(inputs, parameters, inverse=inverse, bound=BOUND)
    gradients = torch.autograd.grad((outputs + log_slope).sum(), [inputs, parameters])
    assert [v.shape for v in (outputs, log_slope, *gradients)] == [(20,), (20,), (20,), (20, 14)]


@pytest.mark.parametrize("inverse", [False, True])
def test_periodic_spline_has_one_slope_where_its_ends_meet(inverse: bool) -> None:
    inputs, parameters = spline_arguments(2000, 8)
    parameters = torch.cat([parameters, parameters[:, :1].flip(0)], dim=-1)
    ends = torch.full_like(inputs, BOUND)
    low, high = (
        rational_quadratic_spline(e, parameters, inverse=inverse, bound=BOUND, periodic=True) for e in (-ends, ends)
    )
    torch.testing.assert_close(low[0], -ends)
    torch.testing.assert_close(high[0], ends)
    torch.testing.assert_close(low[1], high[1])
    assert float(low[1].std()) > 0.1
    slope = F.softplus(parameters[:, 16] + DERIVATIVE_SHIFT) + 1e-3
    torch.testing.assert_close(low[1], -slope.log() if inverse else slope.log())
