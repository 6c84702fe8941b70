"""One contract for all flows by name, over bases and periodic components: a normalised density, consistent both ways."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.estimators.flow import ConditionalFlow
from pipeline.settings import FlowSettings

CONTEXT = 3
CASES: dict[str, tuple[dict[str, Any], tuple[bool, ...]]] = {
    "coupling": ({}, ()),
    "autoregressive": ({}, ()),
    "zuko_nsf": ({}, ()),
    "zuko_maf": ({}, ()),
    "zuko_nice": ({}, ()),
    "zuko_bpf": ({}, ()),
    "coupling, student": ({"base": "student", "base_freedom": 4}, ()),
    "zuko_maf, student": ({"base": "student"}, ()),
    "coupling, angles": ({}, (True, True, True, True)),
    "coupling, an angle": ({}, (True, False, False, True)),
    "coupling, an angle, student": ({"base": "student"}, (False, True, False, True)),
}
BISECTED = 2e-5  # zuko_bpf inverts to 1e-6


def flow(case: str, dimension: int, *, size: float = 0.1) -> ConditionalFlow:
    """Random weights everywhere, in float64: far from where training starts."""
    options, periodic = CASES[case]
    settings = FlowSettings(
        kind=case.split(",")[0],  # pyright: ignore[reportArgumentType]
        transforms=3,
        hidden=12,
        blocks=1,
        bins=5,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(dimension)
        result = ConditionalFlow(dimension, CONTEXT, settings, periodic=periodic[:dimension]).double()
        with torch.no_grad():
            for parameter in result.parameters():
                parameter.add_(size * torch.randn_like(parameter))
    return result


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise(q: ConditionalFlow, count: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return q.noise(count, generator=generator, device=torch.device("cpu"), dtype=dtype)


def grid(case: str, dimension: int) -> tuple[Tensor, Tensor]:
    """Points that cover circles and the far tails of real components, and the logarithm of the volume of each."""
    step = 0.004 if dimension == 1 else 0.011
    axis = torch.arange(-1.6 + step / 2, 1.6, step, dtype=torch.float64)
    y = torch.cartesian_prod(*[axis] * dimension).view(-1, dimension)
    angles = torch.tensor([*CASES[case][1], *[False] * dimension][:dimension])
    u = torch.where(angles, y * math.pi / 1.6, torch.sinh(5 * y))
    log_slope = torch.where(angles, math.log(math.pi / 1.6), (5 * torch.cosh(5 * y)).log())
    return u, log_slope.sum(-1) + dimension * math.log(step)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("dimension", [1, 2])
def test_density_integrates_to_one(case: str, dimension: int) -> None:
    q = flow(case, dimension)
    u, log_volume = grid(case, dimension)
    for seed, base_scale in ((1, 1.0), (2, 1.5)):
        context = normal(1, CONTEXT, seed=seed).expand(len(u), -1)
        with torch.no_grad():
            total = (q.log_prob(u, context, base_scale=base_scale) + log_volume).exp().sum()
        assert float(total) == pytest.approx(1, abs=4e-3)  # kinks: of order steps squared


@pytest.mark.parametrize("dimension", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, BISECTED), (torch.float32, 5e-3)])
@pytest.mark.parametrize("base_scale", [1.0, 1.5])
def test_density_and_noise_of_a_draw_are_those_it_came_with(
    case: str, dimension: int, dtype: torch.dtype, tolerance: float, base_scale: float
) -> None:
    q = flow(case, dimension).to(dtype)
    context = normal(200, CONTEXT, seed=3).to(dtype)
    z = noise(q, 200, dtype=dtype)
    with torch.no_grad():
        u, log_q = q.sample_and_log_prob(z, context, base_scale=base_scale)
        assert u.dtype == log_q.dtype == dtype
        assert u.shape == (200, dimension)
        again, (back, _) = q.log_prob(u, context, base_scale=base_scale), q.to_noise(u, context)
    turned = back - q.base.widen(z, base_scale)
    angles = [d for d, p in enumerate(CASES[case][1][:dimension]) if p]
    turned[:, angles] = torch.sin(turned[:, angles] / 2)  # -pi and pi are one
    # in float32 single draws far out are ill-conditioned, and zuko_bpf knows its inverse to ten roundings alone
    share, tolerance = (1.0, tolerance) if dtype == torch.float64 else (0.98, 0.02 if "bpf" in case else tolerance)
    for error in ((again - log_q).abs(), turned.abs().amax(1)):
        assert float(torch.quantile(error, share)) < tolerance


def test_log_det_is_the_jacobians_and_every_component_depends_on_the_noise(case: str) -> None:
    q = flow(case, 4)
    context, z = normal(3, CONTEXT, seed=3), noise(q, 3)
    _, log_q = q.sample_and_log_prob(z, context)
    base = q.base.log_prob(z, 1.0)
    for n in range(3):
        row = context[n : n + 1]
        jacobian = torch.as_tensor(
            torch.autograd.functional.jacobian(lambda v, row=row: q.sample_and_log_prob(v[None], row)[0][0], z[n])
        )
        torch.testing.assert_close(base[n] - torch.linalg.slogdet(jacobian)[1], log_q[n], rtol=0, atol=BISECTED)
        assert bool((jacobian != 0).sum(0).min() >= 2)
        assert bool((jacobian.abs().sum(1) > 0).all())


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter_both_ways_and_are_those_of_differences(case: str, training: bool) -> None:
    """Also in evaluation mode, in which a loaded posterior is refined."""
    q = flow(case, 2).train(training)
    parameters = [p for p in q.parameters() if p.numel()]
    context, z, u = normal(60, CONTEXT, seed=3), noise(q, 60), noise(q, 60, seed=1)

    def loss(direction: str) -> Tensor:
        if direction == "density":
            return q.log_prob(u, context).mean()
        draws, log_q = q.sample_and_log_prob(z, context)
        return (draws.sin().sum(-1) - log_q).mean()

    for direction in ("density", "draw"):
        gradient = torch.autograd.grad(loss(direction), parameters, allow_unused=True)
        assert all(g is not None and bool(g.isfinite().all()) for g in gradient)
        assert sum(float(g.abs().max()) > 0 for g in gradient) >= len(parameters) - 2  # widths of one bin may cancel
        step = [0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(9)).to(p) for p in parameters]
        expected = sum(float((g * s).sum()) for g, s in zip(gradient, step, strict=True))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, s in zip(parameters, step, strict=True):
                    p.add_(s, alpha=sign * 1e-4)
                values.append(float(loss(direction)))
                for p, s in zip(parameters, step, strict=True):
                    p.sub_(s, alpha=sign * 1e-4)
        assert (values[0] - values[1]) / 2e-4 == pytest.approx(expected, rel=0.02, abs=0.02)


def test_draws_follow_the_density(case: str) -> None:
    """<p / q> over draws of q is one, for another flow's density p that q covers: its own, less widened."""
    q, context = flow(case, 2), normal(1, CONTEXT, seed=4).expand(4000, -1)
    with torch.no_grad():
        u, log_q = q.sample_and_log_prob(noise(q, 4000), context, base_scale=1.5)
        weight = (q.log_prob(u, context) - log_q).exp()
    assert float(weight.mean()) == pytest.approx(1, abs=5 * float(weight.std()) / 4000**0.5 + 1e-6)


def test_state_is_saved_and_loaded(case: str) -> None:
    q, again = flow(case, 3), flow(case, 3, size=0.5)
    again.load_state_dict(q.state_dict())
    u, context = noise(q, 20), normal(20, CONTEXT)
    assert torch.equal(q.log_prob(u, context), again.log_prob(u, context))
    assert all(isinstance(v, Tensor) for v in q.state_dict().values())


def test_density_depends_on_the_context(case: str) -> None:
    q = flow(case, 2)
    u = noise(q, 50)
    one, other = (q.log_prob(u, normal(1, CONTEXT, seed=s).expand(50, -1)) for s in (1, 2))
    assert float((one - other).detach().abs().mean()) > 0.05


@pytest.mark.parametrize("kind", ["autoregressive", "zuko_nsf"])
def test_kinds_without_a_circular_form_refuse_periodic_parameters(kind: Any) -> None:
    with pytest.raises(InputError, match=f"{kind} has no form for periodic parameters; use coupling"):
        ConditionalFlow(2, CONTEXT, FlowSettings(kind=kind), periodic=(True, False))


@pytest.mark.parametrize("dimension", [1, 4])
def test_draws_of_an_observation_share_its_context(case: str, dimension: int) -> None:
    q, context = flow(case, dimension), normal(3, CONTEXT, seed=1)
    together = noise(q, 15).view(5, 3, dimension)
    with torch.no_grad():
        u, log_q = q.sample_and_log_prob(together, context, base_scale=1.2)
        repeated = context.expand(5, 3, CONTEXT).reshape(15, CONTEXT)
        expected, expected_log_q = q.sample_and_log_prob(together.view(15, dimension), repeated, base_scale=1.2)
        torch.testing.assert_close(u.reshape(15, dimension), expected, rtol=0, atol=BISECTED)
        torch.testing.assert_close(log_q.reshape(15), expected_log_q, rtol=0, atol=BISECTED)
        torch.testing.assert_close(q.log_prob(u, context, base_scale=1.2), log_q, rtol=0, atol=10 * BISECTED)
