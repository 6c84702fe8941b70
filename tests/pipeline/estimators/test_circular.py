"""Angles: q is continuous across the seam, and learns a posterior whose mode lies on it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, Uniform, VonMises

from pipeline.estimators.base import NormalBase
from pipeline.estimators.circular import MAX_LOG_K, UNTRAINED_COSINE, CircularBase, ConditionalRotation
from pipeline.estimators.circular_coupling import wrap
from pipeline.estimators.flow import ConditionalFlow
from pipeline.estimators.network import PosteriorNetwork, network_input
from pipeline.settings import EmbeddingSettings, FlowSettings
from simulators.priors import prior_of
from simulators.protocol import Data, Observable, Parameter

SIZES = FlowSettings(transforms=4, hidden=12, blocks=1, bins=5)
PERIODIC = (True, False, True)
TURN = 2 * math.pi


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def flow(periodic: tuple[bool, ...] = PERIODIC) -> ConditionalFlow:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = ConditionalFlow(len(periodic), 3, SIZES, periodic=periodic).double()
        with torch.no_grad():
            for parameter in result.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return result


def test_density_and_its_slope_are_continuous_across_the_seam() -> None:
    q, context = flow(), normal(20, 3)
    for d in (0, 2):
        u = normal(20, 3, seed=1)
        u[:, d] = math.pi
        left = (u - 1e-7 * torch.eye(3, dtype=torch.float64)[d]).requires_grad_()
        right = (u * (1 - 2 * torch.eye(3, dtype=torch.float64)[d]) + 1e-7 * torch.eye(3).double()[d]).requires_grad_()
        one, other = q.log_prob(left, context), q.log_prob(right, context)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    whole_turns = TURN * torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    u = normal(20, 3, seed=1)
    torch.testing.assert_close(q.log_prob(u + whole_turns, context), q.log_prob(u, context), rtol=0, atol=1e-8)


def test_each_component_is_transformed_and_its_angle_stays_on_the_circle() -> None:
    q = flow()
    z = q.noise(500, generator=torch.Generator().manual_seed(2), device=torch.device("cpu"), dtype=torch.float64)
    u, _ = q.sample_and_log_prob(z, normal(500, 3))
    assert bool((u[:, [0, 2]].abs() <= math.pi).all())
    assert bool((z[:, [0, 2]].abs() <= math.pi).all())
    assert float((u - z).detach().abs().mean(0).min()) > 0.1
    assert float(u[:, 1].detach().abs().max()) > math.pi


def test_base_is_uniform_on_the_circle_and_widened_beside_it_alone() -> None:
    base = CircularBase(PERIODIC, NormalBase(1))
    z = base.noise(4000, generator=torch.Generator().manual_seed(0), device=torch.device("cpu"), dtype=torch.float64)
    assert float(z[:, [0, 2]].cos().mean(0).abs().max()) < 5 / 4000**0.5
    assert float(z[:, 1].std()) == pytest.approx(1, rel=0.06)
    assert torch.equal(base.widen(z, 2.0), z * torch.tensor([1.0, 2.0, 1.0]))
    expected = Normal(0.0, 2.0).log_prob(z[:, 1]) - 2 * math.log(TURN)
    torch.testing.assert_close(base.log_prob(z, 2.0), expected)


# ------------------------------------------------------------ rotation and stretch


def test_untrained_rotation_is_none_and_a_radian_wide() -> None:
    u = torch.linspace(-3.1, 3.1, 40, dtype=torch.float64)[:, None]
    _, log_det = ConditionalRotation(1, 3, 8).double()(u, normal(40, 3))
    expected = Normal(0.0, 1.0).log_prob(u[:, 0]) + math.log(TURN) + 0.0017  # of mass beyond half a turn
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("k", [0.5, 8.0, 500.0])
def test_uniform_noise_becomes_a_normal_angle_cut_off_at_half_a_turn(k: float) -> None:
    transform = ConditionalRotation(1, 3, 8).double()
    last = transform.network[-1]
    assert isinstance(last, torch.nn.Linear)
    mode = 2.9
    with torch.no_grad():
        change = MAX_LOG_K * math.atanh(math.log(k) / MAX_LOG_K)
        bias = [2 * math.cos(mode) - UNTRAINED_COSINE, 2 * math.sin(mode), change]
        last.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    half = min(math.pi, 5 / k)
    u = wrap(mode + torch.linspace(-half, half, 100, dtype=torch.float64)[1:-1, None])
    context = normal(98, 3)
    y, log_det = transform(u, context)
    delta = wrap(u - mode)[:, 0]
    cut = 2 * Normal(0.0, 1.0).cdf(torch.tensor(k * math.pi)).double() - 1
    density = Normal(torch.tensor(0.0).double(), torch.tensor(1 / k).double()).log_prob(delta) - cut.log()
    torch.testing.assert_close(log_det - math.log(TURN), density, rtol=0, atol=1e-4)
    back, log_det_back = transform.inverse(y, context)
    torch.testing.assert_close(torch.sin(back - u), torch.zeros_like(u), rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_infinite_at_the_ends_of_the_circle(dtype: torch.dtype) -> None:
    transform = ConditionalRotation(1, 3, 8).to(dtype)
    with torch.no_grad():
        transform.network[-1].bias[2] = 50.0  # pyright: ignore[reportIndexIssue, reportArgumentType]
    ends = torch.tensor([[-math.pi], [math.pi], [0.0]], dtype=dtype, requires_grad=True)
    for u, log_det in (
        transform(ends, torch.ones(3, 3, dtype=dtype)),
        transform.inverse(ends, torch.ones(3, 3, dtype=dtype)),
    ):
        assert bool(u.isfinite().all() and log_det.isfinite().all())
        (gradient,) = torch.autograd.grad(u.sum() + log_det.sum(), ends)
        assert bool(gradient.isfinite().all())


# ------------------------------------------------------------ a posterior across the seam


class Compass:
    r"""A direction in [0, 2 pi), uniform a priori, seen with von Mises noise: the posterior is von Mises about x.

    The network sees (cos x, sin x), and a real parameter beside the direction is seen with normal noise.
    """

    name = "compass"
    concentration = 20.0
    parameters = (
        Parameter(
            "direction",
            Uniform(torch.tensor(0.0).double(), torch.tensor(TURN, dtype=torch.float64), validate_args=False),
            periodic=True,
        ),
        Parameter("offset", Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())),
    )
    observables = (Observable("y", (3,)),)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        noise = VonMises(torch.tensor(0.0).double(), torch.tensor(self.concentration).double()).sample((len(theta),))
        seen = theta[:, 0] + noise
        beside = theta[:, 1] + torch.randn(len(theta), generator=generator, dtype=theta.dtype)
        return {"y": torch.stack([torch.cos(seen), torch.sin(seen), beside], 1)}

    def log_posterior(self, theta: Tensor, x: Data) -> Tensor:
        y = x["y"]
        mode = torch.atan2(y[:, 1], y[:, 0])
        direction = VonMises(mode, torch.tensor(self.concentration).double()).log_prob(theta[..., 0])
        return direction + Normal(y[:, 2] / 2, 0.5**0.5).log_prob(theta[..., 1])


def trained() -> tuple[Compass, PosteriorNetwork]:
    simulator = Compass()
    prior = prior_of(simulator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = prior.sample(torch.Size([4096]))
        inputs = network_input(simulator, simulator.simulate(theta, generator=torch.Generator().manual_seed(1)))
        network = PosteriorNetwork(
            prior,
            3,
            flow=FlowSettings(transforms=2, hidden=24, blocks=1, bins=6),
            embedding=EmbeddingSettings(kind="none"),
            periodic=[p.periodic for p in simulator.parameters],
        )
        network.standardize(theta, inputs)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
        for step in range(300):
            rows = torch.arange(256) + 256 * (step % 16)
            loss = -network.log_q(theta[rows], network.condition(inputs.rows(rows))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return simulator, network.requires_grad_(False)


def test_a_posterior_with_its_mode_on_the_seam_is_learned() -> None:
    simulator, network = trained()
    modes = torch.tensor([0.0, 0.02, -0.02, 1.5, math.pi, -2.0], dtype=torch.float64)
    x = {"y": torch.stack([torch.cos(modes), torch.sin(modes), 0.3 * torch.ones(6)], 1)}
    condition = network.double().condition(network_input(simulator, x))
    theta, log_q = network.draw(condition, 2000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert bool(((theta[..., 0] >= 0) & (theta[..., 0] < TURN)).all())
    share = (theta[:, 0, 0] < math.pi).double().mean()
    assert 0.4 < float(share) < 0.6  # both sides of the seam
    kl = (log_q - simulator.log_posterior(theta, x)).mean(0)
    assert float(kl.min()) > -0.01
    assert float(kl.max()) < 0.03
    torch.testing.assert_close(network.log_q(theta, condition), log_q, rtol=0, atol=1e-6)
    direction, offset = (
        (torch.arange(n, dtype=torch.float64) + 0.5) / n * width + low
        for n, width, low in ((160, TURN, 0), (100, 9, -4))
    )
    grid = torch.cartesian_prod(direction, offset)[:, None].expand(-1, 6, -1)
    total = network.log_q(grid, condition).exp().sum(0) * (TURN / 160) * (9 / 100)
    torch.testing.assert_close(total, torch.ones(6, dtype=torch.float64), rtol=0, atol=2e-3)


def test_pilot_turns_an_angle_and_does_not_scale_it() -> None:
    simulator = Compass()
    x = {"y": torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.1]], dtype=torch.float64)}

    class WithPilot(Compass):
        def pilot(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            return torch.full((len(x["y"]), 2), 0.5).double(), torch.full((len(x["y"]), 2), 3.0).double()

    inputs = network_input(WithPilot(), x)
    assert inputs.location.tolist() == [[0.5, 0.5]] * 2
    assert inputs.scale.tolist() == [[1.0, 3.0]] * 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PosteriorNetwork(
            prior_of(simulator), 3, flow=SIZES, embedding=EmbeddingSettings(hidden=8), periodic=(True, False)
        ).double()
    plain, turned = (
        network.draw(network.condition(i), 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for i in (network_input(simulator, x), inputs)
    )
    difference = turned[0][..., 0] - plain[0][..., 0] - 0.5
    torch.testing.assert_close(torch.sin(difference / 2), torch.zeros_like(difference), rtol=0, atol=1e-9)
    torch.testing.assert_close(turned[1], plain[1] - math.log(3.0))


def test_periodic_needs_an_interval() -> None:
    for prior in (None, Normal(0.0, 1.0)):
        with pytest.raises(ValueError, match=r"parameter 'phase': periodic needs a prior of its own on one period"):
            Parameter("phase", prior, periodic=True)
