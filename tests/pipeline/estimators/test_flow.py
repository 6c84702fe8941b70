"""The flow is a normalised density whose samples, densities and Jacobians agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.estimators.flow import ConditionalFlow
from pipeline.settings import FlowSettings

CONTEXT = 3


def flow(dimension: int, *, transforms: int = 3, size: float = 0.1) -> ConditionalFlow:
    """A flow with random weights everywhere, in float64: far from the identity that it starts as."""
    with torch.random.fork_rng():
        torch.manual_seed(dimension)
        result = ConditionalFlow(
            dimension, CONTEXT, FlowSettings(transforms=transforms, hidden=12, blocks=1, bins=5)
        ).double()
        with torch.no_grad():
            for parameter in result.parameters():
                parameter.add_(size * torch.randn_like(parameter))
    return result


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dimension", [1, 2])
def test_density_integrates_to_one(dimension: int) -> None:
    """By a grid in y, where the density is of order one: u = sinh(5 y) reaches the far tails."""
    q = flow(dimension)
    step = 0.004 if dimension == 1 else 0.008
    axis = torch.arange(-1.6, 1.6, step, dtype=torch.float64)
    y = torch.cartesian_prod(*[axis] * dimension).view(-1, dimension)
    u, log_slope = torch.sinh(5 * y), (5 * torch.cosh(5 * y)).log().sum(-1)
    for seed, base_scale in ((1, 1.0), (2, 1.5)):
        context = normal(1, CONTEXT, seed=seed).expand(len(u), -1)
        with torch.no_grad():
            total = (q.log_prob(u, context, base_scale=base_scale) + log_slope).exp().sum() * step**dimension
        assert float(total) == pytest.approx(1, abs=1e-3)  # a density with kinks: steps squared


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 5e-3)])
def test_log_prob_of_a_sample_is_the_one_it_came_with(dimension: int, dtype: torch.dtype, tolerance: float) -> None:
    q = flow(dimension).to(dtype)
    context = normal(300, CONTEXT, seed=3).to(dtype)
    with torch.no_grad():
        u, log_q = q.sample_and_log_prob(normal(300, dimension).to(dtype), context)
        assert u.shape == (300, dimension)
        torch.testing.assert_close(q.log_prob(u, context), log_q, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_log_det_is_the_jacobians_and_every_component_depends_on_the_noise(dimension: int) -> None:
    q = flow(dimension, transforms=4)
    context = normal(5, CONTEXT, seed=3)
    noise = normal(5, dimension)
    u, log_q = q.sample_and_log_prob(noise, context)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1)
    for n in range(5):
        row = context[n : n + 1]
        jacobian = torch.as_tensor(
            torch.autograd.functional.jacobian(lambda z, row=row: q.sample_and_log_prob(z[None], row)[0][0], noise[n])
        )
        torch.testing.assert_close(base[n] - torch.linalg.slogdet(jacobian)[1], log_q[n], rtol=0, atol=1e-8)
        assert bool((jacobian != 0).all())  # four couplings mix everything
    assert bool(u.isfinite().all())


def test_base_scale_widens_the_tails_and_is_counted() -> None:
    q, context = flow(2), normal(1, CONTEXT, seed=1).expand(400, -1)
    with torch.no_grad():
        u, log_q = q.sample_and_log_prob(normal(400, 2), context, base_scale=1.7)
        torch.testing.assert_close(q.log_prob(u, context, base_scale=1.7), log_q, rtol=0, atol=1e-7)
        torch.testing.assert_close(u, q.sample_and_log_prob(1.7 * normal(400, 2), context)[0])
        assert float((q.log_prob(u, context) - log_q).min()) < -2  # far out the unwidened density is lower


def test_density_depends_on_the_context() -> None:
    q, u = flow(2), normal(50, 2)
    one, other = (q.log_prob(u, normal(1, CONTEXT, seed=s).expand(50, -1)) for s in (1, 2))
    assert float((one - other).detach().abs().mean()) > 0.1


def test_one_parameter_is_more_than_gaussian() -> None:
    """Alone it has no neighbour to be conditioned on: the context alone drives its splines."""
    u = (
        flow(1, size=1.0)
        .sample_and_log_prob(normal(20_000, 1), normal(1, CONTEXT, seed=1).expand(20_000, -1))[0]
        .detach()
    )
    z = (u - u.median()) / (torch.quantile(u, 0.84) - torch.quantile(u, 0.16))
    gaussian = torch.quantile(normal(20_000, seed=5) / 2, torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert float((torch.quantile(z, torch.tensor([0.025, 0.975], dtype=torch.float64)) - gaussian).abs().max()) > 0.05
