"""q as a whole: draws and densities agree through pilot, standardisation and support; path gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet, HalfNormal, Normal, Uniform

from pipeline.config import case_from_values
from pipeline.estimators.network import Condition, NetworkInput, PosteriorNetwork, network_input
from pipeline.estimators.posterior import new_network
from pipeline.estimators.standardize import StandardizeItems
from pipeline.settings import EmbeddingSettings, FlowSettings
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import IndependentPrior, prior_of
from simulators.protocol import Data, Observable, Parameter

MakeGaussian = Callable[..., Any]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Bounded:
    """Three parameters, one on an interval and one positive, with a pilot for the real one."""

    name = "bounded"
    parameters = (
        Parameter("position", Normal(number(0), number(10))),
        Parameter("fraction", Uniform(number(-1), number(4), validate_args=False)),
        Parameter("size", HalfNormal(number(3))),
    )
    observables = (Observable("y", (4,)),)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        return {"y": theta[:, :1] + theta[:, 1:2] * normal(len(theta), 4)}

    def pilot(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        zero = torch.zeros(len(x["y"]), 2, dtype=torch.float64)
        location = torch.cat([x["y"].mean(1, keepdim=True).double(), zero], 1)
        return location, torch.cat([0.1 + x["y"].std(1, keepdim=True).double(), 1 + zero], 1)


SIZES = FlowSettings(transforms=3, hidden=12, blocks=1, bins=5)
ROWS = 5


def random_network() -> tuple[PosteriorNetwork, NetworkInput]:
    """A network with random weights, fitted to simulations, in float64."""
    simulator = Bounded()
    prior = prior_of(simulator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = prior.sample((500,))
        network = PosteriorNetwork(prior, 4, flow=SIZES, embedding=EmbeddingSettings(hidden=8, output=3)).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    x = simulator.simulate(theta, generator=stream())
    network.standardize(theta, network_input(simulator, x))
    return network, network_input(simulator, {"y": x["y"][:ROWS]})


# ------------------------------------------------------------ what the network reads


def test_input_is_features_as_they_are_and_pilot_in_float64() -> None:
    x = {"y": normal(3, 4)}
    inputs = network_input(Bounded(), x)
    assert [v.dtype for v in inputs] == [torch.float64, torch.float64, torch.float64]
    assert network_input(LinearGaussian(), {"x": normal(3, 5).float()}).features.dtype == torch.float32
    assert network_input(LinearGaussian(), {"x": torch.arange(10).view(2, 5)}).features.dtype == torch.float64
    assert torch.equal(inputs.features, x["y"])
    torch.testing.assert_close(inputs.location, Bounded().pilot(x)[0])
    torch.testing.assert_close(inputs.scale, Bounded().pilot(x)[1])
    rows = inputs.rows(torch.tensor([2, 0]))
    for value, all_rows in zip(rows, inputs, strict=True):
        assert torch.equal(value, all_rows[[2, 0]])


def test_without_a_pilot_location_is_zero_and_scale_one() -> None:
    simulator = LinearGaussian(dimension=2)
    inputs = network_input(simulator, {"x": normal(3, 5)})
    assert torch.equal(inputs.location, torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(inputs.scale, torch.ones(3, 2, dtype=torch.float64))


def test_standardize_centres_theta_about_the_pilot() -> None:
    """Median and half the 16-84 % range of (v - location) / scale: 0 and 1 in the flow's own units; outliers do not matter."""
    prior = IndependentPrior([Normal(number(0), number(10)), Uniform(number(0), number(1), validate_args=False)])
    network = PosteriorNetwork(prior, 1, flow=SIZES, embedding=EmbeddingSettings(kind="none"))
    location, scale = normal(4000, 2, seed=1), normal(4000, 2, seed=2).exp()
    w = 3.0 + 0.5 * normal(4000, 2, seed=3)
    w[:40] = 1e9
    theta, _ = network.support.to_theta(location + scale * w)
    features = normal(4000, 1)
    network.standardize(theta, NetworkInput(features.float(), location, scale))
    error = 5 * 0.5 * 1.3 / 4000**0.5  # 1.3: of a median
    assert network.shift[0] == pytest.approx(3.0 + 0.5 * 0.0125, abs=error)  # the outliers move it by 1 % of the ranks
    assert network.width[0] == pytest.approx(0.5, rel=0.06)
    assert float(network.embedding.standardize(features.float()).std()) == pytest.approx(1, abs=1e-3)


# ------------------------------------------------------------ draws and densities


@pytest.mark.parametrize("base_scale", [1.0, 1.5])
@pytest.mark.parametrize("path_gradient", [False, True])
def test_log_q_of_a_draw_is_the_one_it_came_with(path_gradient: bool, base_scale: float) -> None:
    network, inputs = random_network()
    condition = network.condition(inputs)
    theta, log_q = network.draw(
        condition, 50, generator=stream(), path_gradient=path_gradient, dtype=torch.float64, base_scale=base_scale
    )
    assert theta.shape == (50, ROWS, 3)
    assert log_q.shape == (50, ROWS)
    assert bool(prior_of(Bounded()).log_prob(theta).isfinite().all())
    torch.testing.assert_close(network.log_q(theta, condition, base_scale=base_scale), log_q, rtol=0, atol=1e-6)


def test_draws_do_not_depend_on_the_gradient_asked_for() -> None:
    network, inputs = random_network()
    condition = network.condition(inputs)
    full, path = (
        network.draw(condition, 7, generator=stream(3), path_gradient=p, dtype=torch.float64) for p in (False, True)
    )
    assert torch.equal(full[0], path[0])
    torch.testing.assert_close(full[1], path[1], rtol=0, atol=1e-8)
    assert not torch.equal(network.draw(condition, 7, generator=stream(4), dtype=torch.float64)[0], full[0])


def test_q_is_normalised_in_theta() -> None:
    """<1/q> over uniform theta: importance sampling of the whole support, with pilot, interval and half-line."""
    network, inputs = random_network()
    condition = network.condition(inputs)
    broad = IndependentPrior(
        [Normal(number(0), number(15)), Uniform(number(-1), number(4), validate_args=False), HalfNormal(number(9))]
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        theta = broad.sample((40_000, 1)).expand(-1, ROWS, -1)
        weight = (network.log_q(theta, condition) - broad.log_prob(theta)).exp()
    error = weight.std(0) / 40_000**0.5
    assert float(((weight.mean(0) - 1) / error).abs().max()) < 5
    assert float(error.max()) < 0.1


def test_float32_draws_agree_with_float64() -> None:
    network, inputs = random_network()
    network = network.float()
    condition = network.condition(inputs)
    theta, log_q = network.draw(condition, 50, generator=stream())
    assert theta.dtype == log_q.dtype == torch.float32
    double, log_q_double = network.draw(condition, 50, generator=stream(), dtype=torch.float64)
    assert double.dtype == log_q_double.dtype == torch.float64
    torch.testing.assert_close(theta.double(), double, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_q.double(), log_q_double, rtol=0, atol=1e-4)


def test_each_row_of_a_condition_is_its_own_observation() -> None:
    network, inputs = random_network()
    condition = network.condition(inputs)
    assert condition.context.shape == (ROWS, 3 + 3)
    theta, _ = network.draw(condition, 6, generator=stream(), dtype=torch.float64)
    together = network.log_q(theta, condition)
    for n in range(ROWS):
        one = network.condition(inputs.rows(slice(n, n + 1)))
        torch.testing.assert_close(one.location[0], inputs.location[n])
        torch.testing.assert_close(network.log_q(theta[:, n : n + 1], one)[:, 0], together[:, n])
    swapped = network.condition(inputs.rows(torch.tensor([1, 0, 2, 3, 4])))
    assert float((network.log_q(theta, swapped) - together)[:, :2].detach().abs().min()) > 0
    without_draws = network.log_q(theta[0], condition)
    assert without_draws.shape == (ROWS,)
    torch.testing.assert_close(without_draws, together[0])


def test_pilot_moves_and_widens_q() -> None:
    network, inputs = random_network()
    context, location, scale = network.condition(inputs)
    theta, log_q = network.draw(Condition(context, location, scale), 9, generator=stream(), dtype=torch.float64)
    wide = torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64)
    moved, log_q_moved = network.draw(
        Condition(context, location + 7 * (wide - 1), scale * wide), 9, generator=stream(), dtype=torch.float64
    )
    torch.testing.assert_close(moved[..., 0], location[:, 0] + 14 + 3 * (theta[..., 0] - location[:, 0]))
    torch.testing.assert_close(moved[..., 1:], theta[..., 1:])
    torch.testing.assert_close(log_q_moved, log_q - math.log(3))


# ------------------------------------------------------------ gradients


def gradients(case: Any, *, path_gradient: bool, draws: int = 64, seed: int = 0) -> list[Tensor]:
    """Of the ELBO with respect to the flow's parameters."""
    theta, log_q = case.network.draw(
        case.condition, draws, generator=stream(seed), path_gradient=path_gradient, dtype=torch.float64
    )
    loss = (case.log_joint(theta) - log_q).mean()
    return list(torch.autograd.grad(loss, list(case.network.flow.parameters())))


@pytest.mark.parametrize("dimension", [1, 3])
def test_exact_network_is_the_posterior(make_gaussian: MakeGaussian, dimension: int) -> None:
    case = make_gaussian(dimension=dimension)
    theta, log_q = case.network.draw(case.condition, 100, generator=stream(), dtype=torch.float64)
    expected = case.simulator.posterior(case.x["x"]).log_prob(theta)
    torch.testing.assert_close(log_q, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(case.network.log_q(theta, case.condition), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dimension", [1, 3])
def test_path_gradient_vanishes_at_the_posterior(make_gaussian: MakeGaussian, dimension: int) -> None:
    """For every single draw, where the full gradient vanishes on average only."""
    case = make_gaussian(dimension=dimension)
    for draws in (1, 64):
        assert max(float(g.abs().max()) for g in gradients(case, path_gradient=True, draws=draws)) < 1e-6
    assert max(float(g.abs().max()) for g in gradients(case, path_gradient=False)) > 1e-2


def test_path_gradient_differs_from_the_full_one_by_the_score(make_gaussian: MakeGaussian) -> None:
    """full = path - <d log q / d parameters> at fixed theta, draw by draw."""
    case = make_gaussian(shift=0.7, scale=1.3)
    full, path = (gradients(case, path_gradient=p) for p in (False, True))
    theta, _ = case.network.draw(case.condition, 64, generator=stream(), dtype=torch.float64)
    score = torch.autograd.grad(
        case.network.log_q(theta.detach(), case.condition).mean(),
        list(case.network.flow.parameters()),
        allow_unused=True,
    )
    for f, p, s in zip(full, path, score, strict=True):
        torch.testing.assert_close(f, p - (0 if s is None else s), rtol=0, atol=1e-8)
    assert max(float((f - p).abs().max()) for f, p in zip(full, path, strict=True)) > 1e-2


def test_path_gradient_reaches_the_embedding_through_theta_alone() -> None:
    """For the embedding too: full = path + score at fixed theta."""
    network, inputs = random_network()
    parameters = list(network.embedding.network.parameters())

    def gradient(log_q: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(log_q.sum(), parameters)])

    full, path = (
        network.draw(network.condition(inputs), 4, generator=stream(), path_gradient=p, dtype=torch.float64)
        for p in (False, True)
    )
    score = gradient(network.log_q(full[0].detach(), network.condition(inputs)))
    path_gradient = gradient(path[1])
    torch.testing.assert_close(gradient(full[1]), path_gradient + score, rtol=1e-6, atol=1e-6)
    assert float(path_gradient.abs().max()) > 1e-3
    assert float(score.abs().max()) > 1e-3


# ------------------------------------------------------------ shares of a whole, and features with a shape


class Shares:
    """Three shares that add up to one, by counts: the posterior is a Dirichlet. Features are items with a mask."""

    name = "shares"
    prior = Dirichlet(torch.tensor([1.5, 1.0, 2.0], dtype=torch.float64))
    parameters = tuple(Parameter(f"share_{k}") for k in range(3))
    observables = (Observable("count", (3,)),)
    feature_shape = (3, 2)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        return {"count": torch.poisson(20 * theta, generator=generator)}

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([x["count"].log1p(), torch.ones_like(x["count"])], -1).flatten(1)


def shares() -> tuple[PosteriorNetwork, NetworkInput, Tensor]:
    simulator = Shares()
    case = case_from_values(
        {
            "simulator": {"name": "shares"},
            "train": {"flow": SIZES.model_dump(), "embedding": {"kind": "set", "hidden": 8}},
        },
        "test",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = simulator.prior.sample(torch.Size([300]))
        network = new_network(case, simulator, 6).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = network_input(simulator, simulator.simulate(theta, generator=stream()))
    network.standardize(theta, inputs)
    return network, inputs.rows(slice(0, ROWS)), theta


def test_q_on_the_simplex_lives_on_one_number_less() -> None:
    network, inputs, theta = shares()
    assert network.dimension == 2
    assert inputs.location.shape == (ROWS, 2)
    condition = network.condition(inputs)
    draws, log_q = network.draw(condition, 50, generator=stream(), dtype=torch.float64)
    assert draws.shape == (50, ROWS, 3)
    torch.testing.assert_close(draws.sum(-1), torch.ones(50, ROWS, dtype=torch.float64))
    torch.testing.assert_close(network.log_q(draws, condition), log_q, rtol=0, atol=1e-7)
    assert bool(network.log_q(theta[:ROWS], condition).isfinite().all())
    # normalised in the first two shares, by a grid in v that reaches the far tails
    axis = torch.arange(-1.2, 1.2, 0.008, dtype=torch.float64)
    y = torch.cartesian_prod(axis, axis)
    points, log_det = network.support.to_theta(torch.sinh(5 * y))
    log_volume = log_det + (5 * 0.008 * torch.cosh(5 * y)).log().sum(-1)
    with torch.no_grad():
        total = (network.log_q(points[:, None], network.condition(inputs.rows(slice(0, 1))))[:, 0] + log_volume).exp()
    assert float(total.sum()) == pytest.approx(1, abs=2e-3)


def test_the_simulators_feature_shape_reaches_the_embedding() -> None:
    network, _, _ = shares()
    assert isinstance(network.embedding.standardize, StandardizeItems)
    assert network.embedding.standardize.shape == (3, 2)
