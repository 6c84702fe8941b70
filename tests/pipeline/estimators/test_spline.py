"""The static-shape spline against nflows' own, and its derivatives against autograd."""

from __future__ import annotations

import pytest
import torch
from nflows.nn.nets import ResidualNet
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline
from torch import Tensor

from pipeline.estimators.spline import DERIVATIVE_SHIFT, SplineCoupling, _knots, rational_quadratic_spline

BOUND = 3.0


def spline_arguments(
    count: int, bins: int, *, size: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """Inputs well beyond the interval on both sides, and unnormalised widths, heights and derivatives."""
    generator = torch.Generator().manual_seed(bins)
    inputs = 2 * BOUND * (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1)
    parts = [size * torch.randn(count, n, generator=generator, dtype=torch.float64) for n in (bins, bins, bins - 1)]
    return tuple(v.to(dtype) for v in (inputs, *parts))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_spline_is_nflows(inverse: bool, bins: int, dtype: torch.dtype, tolerance: float) -> None:
    """nflows' derivatives carry no shift: zero network output is not the identity there."""
    inputs, widths, heights, derivatives = spline_arguments(2000, bins, dtype=dtype)
    got = rational_quadratic_spline(inputs, widths, heights, derivatives, inverse=inverse, bound=BOUND)
    expected = unconstrained_rational_quadratic_spline(
        inputs, widths, heights, derivatives + DERIVATIVE_SHIFT, inverse=inverse, tail_bound=BOUND
    )
    for value, reference in zip(got, expected, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance)


def test_inverse_undoes_the_spline() -> None:
    inputs, *parameters = spline_arguments(2000, 8, size=1.5)
    outputs, log_slope = rational_quadratic_spline(inputs, *parameters, inverse=False, bound=BOUND)
    back, log_slope_back = rational_quadratic_spline(outputs, *parameters, inverse=True, bound=BOUND)
    torch.testing.assert_close(back, inputs, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_slope_back, -log_slope, rtol=0, atol=1e-7)


@pytest.mark.parametrize("inverse", [False, True])
def test_tails_are_the_identity_and_the_ends_join_them(inverse: bool) -> None:
    inputs, *parameters = spline_arguments(2000, 8)
    outputs, log_slope = rational_quadratic_spline(inputs, *parameters, inverse=inverse, bound=BOUND)
    outside = inputs.abs() > BOUND
    assert torch.equal(outputs[outside], inputs[outside])
    assert bool((log_slope[outside] == 0).all())
    assert float((outputs - inputs)[~outside].abs().max()) > 0.5
    ends = torch.full((2000,), BOUND, dtype=torch.float64) * torch.where(torch.arange(2000) % 2 == 0, 1, -1)
    outputs, log_slope = rational_quadratic_spline(ends, *parameters, inverse=inverse, bound=BOUND)
    torch.testing.assert_close(outputs, ends)
    torch.testing.assert_close(log_slope, torch.zeros_like(ends), rtol=0, atol=1e-9)  # slope one at both ends


def test_zero_parameters_are_the_identity() -> None:
    inputs, *parameters = spline_arguments(200, 8, size=0.0)
    outputs, log_slope = rational_quadratic_spline(inputs, *parameters, inverse=False, bound=BOUND)
    torch.testing.assert_close(outputs, inputs)
    torch.testing.assert_close(log_slope, torch.zeros_like(inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_match_finite_differences(inverse: bool) -> None:
    arguments = [v.requires_grad_() for v in spline_arguments(12, 4)]
    assert torch.autograd.gradcheck(lambda *a: rational_quadratic_spline(*a, inverse=inverse, bound=BOUND), arguments)


@pytest.mark.parametrize("inverse", [False, True])
def test_log_slope_is_the_logarithm_of_the_derivative(inverse: bool) -> None:
    inputs, *parameters = spline_arguments(500, 6)
    inputs.requires_grad_()
    outputs, log_slope = rational_quadratic_spline(inputs, *parameters, inverse=inverse, bound=BOUND)
    (slope,) = torch.autograd.grad(outputs.sum(), inputs)
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("inverse", [False, True])
def test_spline_is_monotone(inverse: bool) -> None:
    _, *parameters = spline_arguments(1, 8, size=2.0)
    grid = torch.linspace(-2 * BOUND, 2 * BOUND, 4001, dtype=torch.float64)
    outputs, _ = rational_quadratic_spline(
        grid, *(p.expand(4001, -1) for p in parameters), inverse=inverse, bound=BOUND
    )
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
    _, widths, heights, derivatives = spline_arguments(40_000, 8, size=6.0, dtype=torch.float32)
    y_knots, x_knots = _knots(heights, BOUND)[0], _knots(widths, BOUND)[0]
    bin_of = torch.arange(40_000)[:, None] % 8
    upper = y_knots.gather(-1, bin_of + 1)[:, 0]
    inputs = torch.nextafter(upper, torch.full_like(upper, -9.0))
    with pytest.raises(AssertionError):
        unconstrained_rational_quadratic_spline(
            inputs, widths, heights, derivatives + DERIVATIVE_SHIFT, inverse=True, tail_bound=BOUND
        )
    outputs, log_slope = rational_quadratic_spline(inputs, widths, heights, derivatives, inverse=True, bound=BOUND)
    assert bool((outputs.isfinite() & log_slope.isfinite()).all())
    in_bin = (inputs >= y_knots.gather(-1, bin_of)[:, 0]) & (inputs < upper)
    assert int(in_bin.sum()) > 30_000
    beyond = outputs - x_knots.gather(-1, bin_of + 1)[:, 0]
    assert float(beyond[in_bin].max()) < 1e-6


def test_shapes_do_not_depend_on_data() -> None:
    """vmap refuses boolean masks, as a GPU waits for them and torch.compile breaks the graph at them."""
    arguments = spline_arguments(20, 5)

    def one(inputs: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline(inputs, *parameters, inverse=True, bound=BOUND)

    for value, expected in zip(torch.vmap(one)(*arguments), one(*arguments), strict=True):
        torch.testing.assert_close(value, expected)


def coupling() -> SplineCoupling:
    torch.manual_seed(1)
    layer = SplineCoupling(
        torch.tensor([0, 1, 0]),
        lambda inputs, outputs: ResidualNet(inputs, outputs, hidden_features=8, context_features=2, num_blocks=1),
        num_bins=5,
        tails="linear",
        tail_bound=BOUND,
    ).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer


def test_coupling_transforms_what_the_mask_says_with_its_own_jacobian() -> None:
    layer = coupling()
    u = torch.randn(6, 3, dtype=torch.float64)
    context = torch.randn(6, 2, dtype=torch.float64)
    v, log_det = layer(u, context)
    assert torch.equal(v[:, [0, 2]], u[:, [0, 2]])
    assert bool((v != u)[:, 1].all())
    for n in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda a, n=n: layer(a[None], context[n : n + 1])[0][0], u[n])
        torch.testing.assert_close(torch.linalg.slogdet(torch.as_tensor(jacobian))[1], log_det[n])
    back, log_det_back = layer.inverse(v, context)
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(log_det_back, -log_det)
    assert not torch.allclose(layer(u, context + 1)[0], v)


def test_coupling_scales_bin_sizes_but_not_derivatives_by_the_width_of_its_network() -> None:
    """As nflows does: softmax inputs of order one from a wide network."""
    layer = coupling()
    u, parameters = torch.rand(7, 1, dtype=torch.float64), torch.randn(7, 1, 14, dtype=torch.float64)
    widths, heights, derivatives = parameters.split([5, 5, 4], dim=-1)
    expected = rational_quadratic_spline(u, widths / 8**0.5, heights / 8**0.5, derivatives, inverse=False, bound=BOUND)
    for value, reference in zip(layer._piecewise_cdf(u, parameters), expected, strict=True):
        torch.testing.assert_close(value, reference)


@pytest.mark.parametrize("inverse", [False, True])
def test_periodic_spline_has_one_slope_where_its_ends_meet(inverse: bool) -> None:
    inputs, widths, heights, derivatives = spline_arguments(2000, 8)
    derivatives = torch.cat([derivatives, derivatives[:, :1].flip(0)], dim=-1)
    ends = torch.full_like(inputs, BOUND)
    low, high = (
        rational_quadratic_spline(e, widths, heights, derivatives, inverse=inverse, bound=BOUND, periodic=True)
        for e in (-ends, ends)
    )
    torch.testing.assert_close(low[0], -ends)
    torch.testing.assert_close(high[0], ends)
    torch.testing.assert_close(low[1], high[1])
    assert float(low[1].std()) > 0.1
    slope = torch.nn.functional.softplus(derivatives[:, 0] + DERIVATIVE_SHIFT) + 1e-3
    torch.testing.assert_close(low[1], -slope.log() if inverse else slope.log())
