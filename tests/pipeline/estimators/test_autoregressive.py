"""The autoregressive splines: nflows' own, with static shapes, and fast in the direction that samples."""

from __future__ import annotations

import pytest
import torch
from nflows.transforms.base import InverseTransform
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

from pipeline.estimators.autoregressive import SplineAutoregressive, autoregressive_layers
from pipeline.estimators.spline import DERIVATIVE_SHIFT
from pipeline.settings import FlowSettings

SETTINGS = FlowSettings(kind="autoregressive", transforms=3, hidden=16, blocks=1, bins=4, tail_bound=3.0)


def layer() -> SplineAutoregressive:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SplineAutoregressive(3, 2, SETTINGS).double()


@pytest.mark.parametrize("inverse", [False, True])
def test_each_component_goes_through_nflows_spline(inverse: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    u = 2 * torch.randn(50, 3, dtype=torch.float64, generator=generator)
    parameters = torch.randn(50, 3, 11, dtype=torch.float64, generator=generator)
    value, log_det = layer()._elementwise(u, parameters.flatten(1), inverse=inverse)
    widths, heights, derivatives = parameters.split([4, 4, 3], dim=-1)
    expected, log_slope = unconstrained_rational_quadratic_spline(
        u, widths / 4, heights / 4, derivatives + DERIVATIVE_SHIFT, inverse=inverse, tail_bound=3.0
    )
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(log_det, log_slope.sum(-1))


def test_a_component_depends_on_those_before_it_alone() -> None:
    context, noise = torch.ones(1, 2, dtype=torch.float64), torch.tensor([[0.3, -0.4, 0.5]], dtype=torch.float64)
    jacobian = torch.as_tensor(torch.autograd.functional.jacobian(lambda z: layer()(z, context)[0], noise))[0, :, 0]
    assert bool((jacobian.triu(1) == 0).all())
    assert bool((jacobian.tril() != 0)[torch.tril_indices(3, 3).unbind()].all())


def test_a_draw_is_one_pass_and_a_density_one_a_component() -> None:
    layers = [t for t in autoregressive_layers(3, 2, SETTINGS) if isinstance(t, InverseTransform)]
    assert len(layers) == 3
    inner = layers[0]._transform
    assert isinstance(inner, SplineAutoregressive)
    passes: list[int] = []
    inner.autoregressive_net.register_forward_hook(lambda *_: passes.append(1))
    context, z = torch.ones(5, 2), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    layers[0].inverse(z, context)
    assert len(passes) == 1
    layers[0].forward(z, context)
    assert len(passes) == 1 + 3
