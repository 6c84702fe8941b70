"""The stack of coupling layers: splines of nflows, one Jacobian, contexts shared by draws, all components mixed."""

from __future__ import annotations

import pytest
import torch
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline
from torch import Tensor

from pipeline.estimators.coupling import Conditioner, SplineCouplings
from pipeline.estimators.spline import DERIVATIVE_SHIFT
from pipeline.settings import FlowSettings

CONTEXT, BINS, BOUND = 3, 5, 4.0


def stack(dimension: int, transforms: int = 4) -> SplineCouplings:
    """Random weights, in float64."""
    settings = FlowSettings(transforms=transforms, hidden=8, blocks=2, bins=BINS, tail_bound=BOUND)
    with torch.random.fork_rng():
        torch.manual_seed(dimension)
        layers = SplineCouplings(dimension, CONTEXT, settings).double()
        with torch.no_grad():
            for parameter in layers.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return layers


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_one_layer_is_nflows_spline_of_the_even_components_given_the_odd_ones() -> None:
    layer, u, context = stack(4, transforms=1), normal(50, 4), normal(50, CONTEXT, seed=1)
    noise, log_det = layer(u, context)
    odd, even = u[:, [1, 3]], u[:, [0, 2]]
    assert torch.equal(noise[:, :2], odd)
    conditioner = layer.conditioners[0]
    assert isinstance(conditioner, Conditioner)
    parameters = conditioner(odd, layer.from_context(context)).view(50, 2, -1)
    widths, heights, derivatives = parameters.split([BINS, BINS, BINS - 1], dim=-1)
    expected, log_slope = unconstrained_rational_quadratic_spline(
        even, widths, heights, derivatives + DERIVATIVE_SHIFT, tail_bound=BOUND
    )
    torch.testing.assert_close(noise[:, 2:], expected)
    torch.testing.assert_close(log_det, log_slope.sum(-1))


def test_conditioner_is_its_equation() -> None:
    conditioner, seen, from_context = Conditioner(2, 6, hidden=8, blocks=2).double(), normal(9, 2), normal(9, 8, seed=1)
    assert conditioner.seen is not None
    h = seen @ conditioner.seen.weight.T + from_context
    for layer in conditioner.hidden:
        h = h + layer(h * torch.sigmoid(h))
    torch.testing.assert_close(conditioner(seen, from_context), conditioner.last(h * torch.sigmoid(h)))


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("transforms", [1, 4, 7])
def test_inverse_and_jacobian(dimension: int, transforms: int) -> None:
    layers, u, context = stack(dimension, transforms), normal(6, dimension), normal(6, CONTEXT, seed=1)
    noise, log_det = layers(u, context)
    back, log_det_back = layers.inverse(noise, context)
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(log_det_back, -log_det)
    for n in range(6):
        row = context[n : n + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, row=row: layers(v[None], row)[0][0], u[n])
        torch.testing.assert_close(torch.linalg.slogdet(torch.as_tensor(jacobian))[1], log_det[n])
        if transforms == 7:
            assert bool((torch.as_tensor(jacobian) != 0).all())


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_draws_of_an_observation_share_its_context(dimension: int) -> None:
    layers, u, context = stack(dimension), normal(7, 4, dimension), normal(4, CONTEXT, seed=1)
    repeated = context.expand(7, 4, CONTEXT).reshape(28, CONTEXT)
    for method in (layers.forward, layers.inverse):
        together, log_det = method(u, context)
        apart, log_det_apart = method(u.view(28, dimension), repeated)
        torch.testing.assert_close(together.view(28, dimension), apart)
        torch.testing.assert_close(log_det.reshape(28), log_det_apart)
        assert not torch.allclose(method(u, context + 1)[0], together)


def test_an_untrained_stack_is_nearly_the_identity() -> None:
    layers = SplineCouplings(4, CONTEXT, FlowSettings(transforms=4, hidden=64, blocks=1, bins=8))
    u = normal(500, 4).float()
    noise, log_det = layers(u, normal(500, CONTEXT, seed=1).float())
    assert float((noise - u).square().mean().sqrt().detach()) < 0.3
    assert float(log_det.square().mean().sqrt().detach()) < 0.3
