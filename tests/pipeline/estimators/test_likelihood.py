from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import HalfNormal, LogNormal, Normal, Uniform

from pipeline.errors import InputError
from pipeline.estimators.learned_likelihood import (
    PREFIX,
    WithLearnedLikelihood,
    attributes_of,
    learned_part,
    likelihood_from,
    model_header,
)
from pipeline.estimators.likelihood import (
    SUMMARY,
    Coordinates,
    Judged,
    LikelihoodNetwork,
    LikelihoodShape,
    mixture,
)
from pipeline.estimators.summary import SummaryShape
from pipeline.likelihood_settings import LikelihoodSettings
from pipeline.network_settings import FlowSettings
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import IndependentPrior
from simulators.protocol import (
    Data,
    Observable,
    Simulator,
    has_likelihood,
    likelihood_data,
    likelihood_trust,
    log_likelihood,
)

SMALL = FlowSettings(transforms=2, hidden=16, blocks=1, bins=4)


class NoLikelihood:
    """The linear Gaussian model with observing conditions beside its data, and no likelihood."""

    name = "no_likelihood"

    def __init__(self) -> None:
        self.inner = LinearGaussian()
        self.parameters = self.inner.parameters
        self.observables = (Observable("gain", (2,), role="context"), *self.inner.observables)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        gain = (
            torch.rand(len(theta), 2, generator=generator, dtype=torch.float64) if context is None else context["gain"]
        )
        return self.inner.simulate(theta, generator=generator) | {"gain": gain}

    def model_curve(self) -> str:
        return "the simulator's own"


def network_of(
    simulator: Any, *, size: int = 5, context: int = 0, kind: str = "none", **changes: Any
) -> LikelihoodNetwork:
    """An untrained ensemble whose members differ."""
    settings = LikelihoodSettings(flow=SMALL, context=4, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = LikelihoodNetwork(simulator, LikelihoodShape(SummaryShape(kind, size, size, size), context), settings)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


def pairs(simulator: Simulator, rows: int = 4) -> tuple[Tensor, Data]:
    stream = torch.Generator().manual_seed(2)
    theta = torch.randn(rows, 3, generator=stream, dtype=torch.float64)
    return theta, simulator.simulate(theta, generator=stream)


# ------------------------------------------------------------ shapes


@pytest.mark.parametrize(("simulator", "context"), [(LinearGaussian(), 0), (NoLikelihood(), 2)])
def test_draws_of_theta_broadcast_over_observations(simulator: Simulator, context: int) -> None:
    network = network_of(simulator, context=context)
    theta, x = pairs(simulator)
    read = network.read(x)
    draws = theta + torch.linspace(0, 1, 7, dtype=torch.float64)[:, None, None]
    together = network.log_likelihood(draws, read)
    assert together.shape == (7, 4)
    assert together.dtype == torch.float64
    one = torch.stack(
        [
            network.log_likelihood(draws[:, n : n + 1], network.read({k: v[n : n + 1] for k, v in x.items()}))[:, 0]
            for n in range(4)
        ],
        1,
    )
    assert torch.allclose(together, one, atol=1e-4)


def test_observing_conditions_matter() -> None:
    simulator = NoLikelihood()
    network = network_of(simulator, context=2)
    theta, x = pairs(simulator)
    other = network.read(x | {"gain": 1 - x["gain"]})
    assert not torch.allclose(network.log_likelihood(theta, network.read(x)), network.log_likelihood(theta, other))


def test_the_gradient_reaches_theta() -> None:
    network = network_of(LinearGaussian())
    theta, x = pairs(LinearGaussian())
    theta.requires_grad_(True)
    network.log_likelihood(theta, network.read(x)).sum().backward()
    assert theta.grad is not None
    assert (theta.grad.abs().sum(1) > 0).all()


# ------------------------------------------------------------ densities


def test_a_density_of_one_number_integrates_to_one() -> None:
    simulator = LinearGaussian(dimension=3, size=1)
    network = network_of(simulator, size=1, guard={"enabled": False})
    grid = torch.linspace(-60, 60, 12_001, dtype=torch.float64)
    theta = torch.zeros(len(grid), 3, dtype=torch.float64)
    log_prob = network.log_likelihood(theta, network.read({"x": grid[:, None]}))
    assert float(torch.trapezoid(log_prob.exp(), grid)) == pytest.approx(1.0, abs=1e-3)


def test_probabilities_of_whole_numbers_add_up_to_one() -> None:
    simulator = LinearGaussian(dimension=3, size=1)
    network = network_of(simulator, size=1, guard={"enabled": False}, dequantize=64)
    network.summary.whole.fill_(True)
    network.summary.width.fill_(10.0)
    grid = torch.arange(-400, 400, dtype=torch.float64)
    theta = torch.zeros(len(grid), 3, dtype=torch.float64)
    log_prob = network.log_likelihood(theta, network.read({"x": grid[:, None]}))
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=2e-3)
    assert float(log_prob.max()) < 0  # a probability; a density of the same numbers knows no such bound


def test_draws_follow_the_density() -> None:
    """Mean log density of draws of the ensemble is that of the density itself, by quadrature."""
    simulator = LinearGaussian(dimension=3, size=1)
    network = network_of(simulator, size=1, guard={"enabled": False})
    grid = torch.linspace(-60, 60, 12_001, dtype=torch.float64)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    log_prob = network.log_likelihood(zero.expand(len(grid), 3), network.read({"x": grid[:, None]}))
    read = network.read({"x": grid[:1, None]})
    v = network.sample(zero, read, 20_000, generator=torch.Generator().manual_seed(3))[:, 0]
    drawn = network.log_likelihood(zero.expand(len(v), 3), network.read({"x": v}))
    expected = float(torch.trapezoid(log_prob.exp() * log_prob, grid))
    assert float(drawn.mean()) == pytest.approx(expected, abs=4 * float(drawn.std()) / math.sqrt(len(drawn)))


# ------------------------------------------------------------ the guard


def judged(spread: float, depth: float) -> Judged:
    return Judged(torch.zeros(2, 1), torch.tensor([spread]).double(), torch.tensor([depth]).double())


@pytest.mark.parametrize(
    ("spread", "depth", "nats", "outside"),
    [
        (0.5, 3.0, 0.0, False),
        (1.0, 3.0, 4 * (1.0 / 0.5 - 1) ** 2, True),
        (0.4, 5.0, 2 * (5.0 - 3.0), True),
        (1.5, 4.0, 18.0, True),
    ],
)
def test_the_guard_subtracts_what_its_equation_says(spread: float, depth: float, nats: float, outside: bool) -> None:
    network = network_of(LinearGaussian(), guard={"spread_penalty": 4.0, "density_penalty": 2.0})
    network.spread_level.fill_(0.5)
    network.depth_level.fill_(3.0)
    assert float(network.penalty(judged(spread, depth))) == pytest.approx(nats)
    assert bool(network.is_outside(judged(spread, depth))) == outside


def test_the_guard_lowers_the_mixture_far_from_the_training_set_and_is_off_where_asked() -> None:
    theta, x = pairs(LinearGaussian())
    guarded, plain = network_of(LinearGaussian()), network_of(LinearGaussian(), guard={"enabled": False})
    for network in (guarded, plain):
        network.spread_level.fill_(1e6)
        network.depth_level.fill_(20.0)
    read = guarded.read(x)
    near, far = theta, theta + 300.0
    assert torch.equal(guarded.log_likelihood(near, read), plain.log_likelihood(near, read))
    assert (guarded.log_likelihood(far, read) < plain.log_likelihood(far, read)).all()
    assert torch.equal(plain.log_likelihood(far, read), mixture(plain.member_log_prob(far, read)))


# ------------------------------------------------------------ coordinates of theta


def test_coordinates_of_theta() -> None:
    prior = IndependentPrior(
        [Uniform(2.0, 4.0), LogNormal(0.0, 1.0), HalfNormal(1.0), Normal(0.0, 1.0), Uniform(0.0, 6.0)]
    )
    coordinates = Coordinates(prior, [False, False, False, False, True])
    theta = torch.tensor([[2.5, math.e, 1.0, -3.0, 1.5], [4.0, 1.0, 0.0, 3.0, 7.5]], dtype=torch.float64)
    raw = coordinates.raw(theta)
    assert raw[0, :2].tolist() == [2.5, -3.0]
    assert raw[0, 2:4].tolist() == pytest.approx([1.0, 0.0])
    assert raw[0, 4:].tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert torch.allclose(raw[0, 4:], raw[1, 4:])  # a turn later
    assert raw.isfinite().all()


# ------------------------------------------------------------ in the place of the simulator's own


def test_a_wrapped_simulator_is_one_with_a_likelihood_and_all_else_as_it_was() -> None:
    simulator = NoLikelihood()
    learned = WithLearnedLikelihood(simulator, network_of(simulator, context=2))
    assert isinstance(learned, Simulator)
    assert has_likelihood(learned)
    assert not has_likelihood(simulator)
    assert learned.model_curve() == "the simulator's own"
    assert not hasattr(learned, "pilot")
    theta, x = pairs(simulator)
    reduced = likelihood_data(learned, x)
    assert SUMMARY in reduced
    assert likelihood_data(simulator, x) is x
    assert torch.equal(log_likelihood(learned, theta, x), log_likelihood(learned, theta, reduced))
    assert learned_part(learned) is learned
    assert learned_part(simulator) is None
    assert attributes_of(simulator) == {}
    assert attributes_of(learned)["likelihood"] == "learned"


def test_q_reads_the_summary_where_x_is_compressed() -> None:
    simulator = NoLikelihood()
    _, x = pairs(simulator)
    plain = WithLearnedLikelihood(simulator, network_of(simulator, context=2))
    assert plain.features(x).shape == (4, 7)
    compressed = WithLearnedLikelihood(simulator, network_of(simulator, context=2, kind="learned", size=5))
    compressed.network.summary.shape = SummaryShape("pca", 5, 5, 5)
    assert compressed.network.summary.compresses


def test_what_the_surrogate_says_of_itself() -> None:
    """Evidences of the members against that of the mixture: by quadrature in theta, one dimension."""
    simulator = LinearGaussian(dimension=1, size=2)
    network = network_of(simulator, size=2, guard={"enabled": False})
    network.spread_level.fill_(0.05)
    network.depth_level.fill_(1e9)
    learned = WithLearnedLikelihood(simulator, network)
    x = {"x": torch.tensor([[0.3, -0.2]], dtype=torch.float64)}
    grid = torch.linspace(-6, 6, 4_001, dtype=torch.float64)
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid)
    members = network.member_log_prob(grid[:, None, None], network.read(x))[..., 0]
    evidence = torch.logsumexp(members + log_prior, 1)
    posterior = torch.softmax(mixture(members) + log_prior, 0)
    index = torch.multinomial(posterior, 40_000, replacement=True, generator=torch.Generator().manual_seed(4))
    found = likelihood_trust(learned, grid[index][:, None, None], x)
    assert float(found["surrogate_error"]) == pytest.approx(float(evidence.std()), rel=0.05)
    spread = members.std(0)
    assert float(found["surrogate_spread"]) == pytest.approx(float((posterior * spread).sum()), rel=0.02)
    outside = float((posterior * (spread > 0.05)).sum())
    assert float(found["surrogate_outside"]) == pytest.approx(outside, abs=0.02)
    assert likelihood_trust(simulator, grid[index][:, None, None], x) == {}


def test_a_model_file_gives_the_same_likelihood_and_refuses_another_simulator() -> None:
    network = network_of(LinearGaussian())
    tensors = {f"{PREFIX}{k}": v for k, v in network.state_dict().items()} | {"of_q": torch.zeros(1)}
    header = model_header(network)
    again = likelihood_from(tensors, header, LinearGaussian(), source="file", prefix=PREFIX)
    theta, x = pairs(LinearGaussian())
    assert torch.equal(again.log_likelihood(theta, x), network.log_likelihood(theta, network.read(x)))
    with pytest.raises(InputError, match=r"file: its learned likelihood does not fit"):
        likelihood_from(tensors, header, LinearGaussian(dimension=4), source="file", prefix=PREFIX)
    with pytest.raises(InputError, match=r"file: its learned likelihood does not fit"):
        likelihood_from(tensors, {}, LinearGaussian(), source="file", prefix=PREFIX)


def test_the_network_of_sbi_is_a_member_like_ours() -> None:
    network = network_of(LinearGaussian(), estimator="sbi_nle", members=2)
    theta, x = pairs(LinearGaussian())
    assert network.log_likelihood(theta[None], network.read(x)).shape == (1, 4)
    drawn = network.sample(theta, network.read(x), 6, generator=torch.Generator().manual_seed(5))
    assert drawn.shape == (6, 4, 5)
    assert torch.equal(drawn, network.sample(theta, network.read(x), 6, generator=torch.Generator().manual_seed(5)))
