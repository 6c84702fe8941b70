"""The linear start: exact where x is linear in theta and the noise small, absent where it would explain little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import case_from_values
from pipeline.estimators.linear_start import LinearStart
from pipeline.estimators.network import NetworkInput, PosteriorNetwork, network_input
from pipeline.estimators.posterior import new_network
from pipeline.estimators.support import SupportTransform
from pipeline.settings import EmbeddingSettings, FlowSettings
from simulators.priors import distribution_from_spec, prior_of, sample
from simulators.protocol import Data, Observable, Parameter

ROWS = 2_000


class Sum:
    """x = A theta + s n with two parameters, each uniform or normal."""

    name = "sum"
    observables = (Observable("x", (2,)),)

    def __init__(self, noise: float, *priors: dict[str, list[float]]) -> None:
        self.noise = noise
        self.parameters = tuple(Parameter(f"p{d}", distribution_from_spec(p)) for d, p in enumerate(priors))

    def mean(self, theta: Tensor) -> Tensor:
        return theta @ torch.tensor([[1.0, -0.2], [0.3, 1.0]], dtype=theta.dtype)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        return {"x": self.mean(theta) + self.noise * noise}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r = (x["x"] - self.mean(theta)) / self.noise
        return -0.5 * r.square().sum(-1) - 2 * math.log(self.noise * math.sqrt(2 * math.pi))


UNIFORM = {"uniform": [0.0, 10.0]}


def simulations(simulator: Any, rows: int = ROWS) -> tuple[Tensor, NetworkInput]:
    stream = torch.Generator().manual_seed(1)
    theta = sample(prior_of(simulator), rows, stream)
    return theta, network_input(simulator, simulator.simulate(theta, generator=stream))


def standardized(simulator: Any, theta: Tensor, inputs: NetworkInput) -> PosteriorNetwork:
    """A network that has seen no step of training."""
    case = case_from_values({"simulator": {"name": "linear_gaussian"}}, "test")
    torch.manual_seed(0)
    network = new_network(case, simulator, inputs.features.shape[1])
    network.standardize(theta, inputs)
    return network


@pytest.mark.parametrize("priors", [(UNIFORM, UNIFORM), ({"normal": [5.0, 2.0]}, UNIFORM)])
@pytest.mark.parametrize("noise", [0.05, 1e-3, 1e-4])
def test_q_begins_at_a_narrow_posterior_however_narrow(
    noise: float, priors: tuple[dict[str, list[float]], ...]
) -> None:
    r"""$\langle \log q \rangle$ of the truth before any training, against minus the entropy of the posterior.

    -log(2 pi e s^2) + log |A| = 0.7 nats of tolerance: correlations (none here, A is near orthogonal) and what the flow's
    random start costs; without the start q is the prior, 2 log(s / prior) = 8 nats and more lower.
    """
    simulator = Sum(noise, *priors)
    theta, inputs = simulations(simulator)
    network = standardized(simulator, theta, inputs)
    log_q = network.log_q(theta, network.condition(inputs)).detach().mean()
    exact = -math.log(2 * math.pi * math.e * noise**2) + math.log(1.06)
    assert float(log_q) == pytest.approx(exact, abs=0.7)


def test_location_and_scale_are_those_of_the_regression() -> None:
    """In theta, T(location + scale) - T(location) is the residual to first order in s; T(location) its guess."""
    simulator = Sum(0.01, UNIFORM, UNIFORM)
    theta, inputs = simulations(simulator)
    network = standardized(simulator, theta, inputs)
    location, scale = network.started(inputs)[1:]
    guess, _ = network.support.to_theta(location)
    inside = ((theta > 0.5) & (theta < 9.5)).all(1)
    residual = (theta - guess)[inside].std(0)
    # A^-1 of the noise, with the bounds of a standard deviation of 1,600 rows
    expected = 0.01 * torch.linalg.inv(simulator.mean(torch.eye(2, dtype=torch.float64))).norm(dim=0)
    torch.testing.assert_close(residual, expected, rtol=5 / math.sqrt(2 * 1_600), atol=0)
    width = (network.support.to_theta(location + 0.1 * scale)[0] - guess)[inside] / 0.1
    torch.testing.assert_close(width, expected.expand_as(width), rtol=0.15, atol=0)


def test_no_start_where_it_would_explain_little_or_the_rows_are_few_or_the_parameter_turns() -> None:
    wide = Sum(3.0, UNIFORM, UNIFORM)
    assert not standardized(wide, *simulations(wide)).start.used.any()
    narrow = Sum(0.01, UNIFORM, UNIFORM)
    assert standardized(narrow, *simulations(narrow)).start.used.all()
    assert not standardized(narrow, *simulations(narrow, rows=29)).start.used.any()
    theta, inputs = simulations(narrow)
    start = LinearStart(2, SupportTransform(prior_of(narrow), (True, False)))
    start.fit(theta, inputs.features)
    assert start.used.tolist() == [False, True]
    location, scale = start(inputs.features)
    assert (location[:, 0] == 0).all()
    assert (scale[:, 0] == 1).all()


def test_a_pilot_of_the_simulator_goes_first_and_a_summary_has_no_start() -> None:
    simulator = Sum(0.01, UNIFORM, UNIFORM)
    theta, inputs = simulations(simulator)
    piloted = inputs._replace(scale=torch.full_like(inputs.scale, 0.5))
    network = standardized(simulator, theta, piloted)
    assert network.started(piloted) is piloted
    summary = PosteriorNetwork(prior_of(simulator), 2, flow=FlowSettings(), embedding=EmbeddingSettings(), readout=2)
    summary.standardize(theta, inputs)
    assert summary.started(inputs) is inputs


def test_a_network_read_from_its_weights_begins_where_it_began() -> None:
    simulator = Sum(0.01, UNIFORM, UNIFORM)
    theta, inputs = simulations(simulator)
    network = standardized(simulator, theta, inputs)
    case = case_from_values({"simulator": {"name": "linear_gaussian"}}, "test")
    other = new_network(case, simulator, 2)
    other.load_state_dict(network.state_dict())
    for one, two in zip(network.condition(inputs), other.condition(inputs), strict=True):
        assert torch.equal(one, two)


def test_an_x_beyond_the_simulations_stays_inside_the_support() -> None:
    simulator = Sum(0.01, UNIFORM, {"normal": [0.0, 1.0]})
    theta, inputs = simulations(simulator)
    network = standardized(simulator, theta, inputs)
    far = inputs.rows(slice(4))._replace(features=torch.tensor([[1e6, 1e6], [-1e6, 0.0], [0.0, 1e6], [1e30, -1e30]]))
    location, scale = network.started(far)[1:]
    assert location.isfinite().all()
    assert (scale.isfinite() & (scale > 0)).all()
    guess = network.support.to_theta(location)[0]
    assert ((guess[:, 0] > 0) & (guess[:, 0] < 10)).all()
    assert guess[:, 1].abs().max() < 15  # three half-ranges of 2,000 normal numbers
