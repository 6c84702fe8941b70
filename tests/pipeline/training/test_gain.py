"""What was learned, in nats: nothing is said to be nothing, in q and in a learned likelihood, whatever the units."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.estimators.likelihood import mixture
from pipeline.estimators.network import PosteriorNetwork
from pipeline.likelihood_settings import LikelihoodSettings
from pipeline.settings import EmbeddingSettings, FlowSettings
from pipeline.training.data import TrainingSet, training_set
from pipeline.training.gain import Gain, gain_by_parameter, gains_of, words_of
from pipeline.training.likelihood import Learned, Learner
from simulators.priors import IndependentPrior, distribution_from_spec, prior_of, sample
from simulators.protocol import Observable, Parameter

FLOW = FlowSettings(transforms=2, hidden=16, blocks=1, bins=5)
SETTINGS: dict[str, Any] = {
    "members": 1,
    "steps": 150,
    "batch": 128,
    "learning_rate": 1e-2,
    "check_every": 50,
    "flow": FLOW,
    "guard": {"enabled": False},
}


class Start:
    """y = (t - offset) + noise n, with a second parameter that nothing depends on; as many epochs as context where asked."""

    name = "start"

    def __init__(self, spec: Any, *, offset: float = 0.0, noise: float = 0.02, epochs: bool = False) -> None:
        self.parameters = (
            Parameter("t", distribution_from_spec(spec)),
            Parameter("idle", distribution_from_spec({"normal": [0, 1]})),
        )
        self.offset, self.noise = offset, noise
        self.epochs = epochs
        context = (Observable("epoch", (1,), role="context"),) if epochs else ()
        self.observables = (*context, Observable("y", (1,)))

    def simulate(self, theta: Tensor, context: Any = None, *, generator: torch.Generator) -> dict[str, Tensor]:
        """With epochs e within a day of the offset, y = (e - offset) t + noise."""
        noise = self.noise * torch.randn(len(theta), 1, generator=generator, dtype=torch.float64)
        if not self.epochs:
            return {"y": theta[:, :1] - self.offset + noise}
        epoch = self.offset + torch.rand(len(theta), 1, generator=generator, dtype=torch.float64)
        epoch = epoch if context is None else context["epoch"]
        return {"epoch": epoch, "y": (epoch - self.offset) * theta[:, :1] + noise}


def simulated(simulator: Any, rows: int, seed: int, *, proposal: Any = None) -> TrainingSet:
    stream, prior = torch.Generator().manual_seed(seed), prior_of(simulator)
    theta = sample(proposal or prior, rows, stream)
    x = simulator.simulate(theta, generator=stream)
    return training_set(simulator, theta, x, prior=prior, proposal=proposal or prior, device=torch.device("cpu"))


@cache
def learned_from(simulator: Start) -> Learned:
    settings = LikelihoodSettings.model_validate(SETTINGS)
    return Learner(simulator, settings, simulated(simulator, 2_000, 1), simulated(simulator, 200, 2), seed=3).learn()


DAYS = Start({"uniform": [2_457_000, 2_457_001]}, offset=2_457_000.0)


def test_a_time_in_julian_days_is_as_well_known_as_the_data_know_it() -> None:
    """y = t0 - 2457000 + 0.02 n, y = 0.5: the posterior is N(0.5, 0.02); blind to t0 it was 0.07 wide and more."""
    network = learned_from(DAYS).network
    grid = torch.linspace(2_457_000.2, 2_457_000.8, 601, dtype=torch.float64)
    theta = torch.stack([grid, torch.zeros_like(grid)], 1)
    read = network.read({"y": torch.tensor([[0.5]], dtype=torch.float64)})
    weight = torch.softmax(mixture(network.member_log_prob(theta[:, None], read))[:, 0], 0)
    mean = float((weight * (grid - 2_457_000)).sum())
    width = float((weight * (grid - 2_457_000 - mean).square()).sum().sqrt())
    assert mean == pytest.approx(0.5, abs=0.02)
    assert 0.016 < width < 0.036  # 0.021 to 0.028 over four seeds at 60 to 100 steps


def test_a_likelihood_names_the_parameters_that_it_does_not_see() -> None:
    gains = gain_by_parameter(learned_from(DAYS).network, simulated(DAYS, 500, 5), seed=1)
    assert list(gains) == ["t", "idle"]
    assert gains["t"].mean > 5
    assert not gains["t"].is_none
    assert gains["idle"].is_none


@pytest.mark.slow
def test_epochs_in_julian_days_are_read_as_context() -> None:
    """Were the epoch not seen, y would say of the slope no more than its mean over epochs: 0.3 nats less."""
    means = []
    for offset in (0.0, 2_457_000.0):
        simulator = Start({"normal": [1, 0.5]}, offset=offset, noise=0.1, epochs=True)
        network = learned_from(simulator).network
        test = simulated(simulator, 1_000, 5)
        found = mixture(network.member_log_prob(test.theta, network.read(test.x)))
        means.append(float(found.mean()))
    exact = -0.5 * math.log(2 * math.pi * math.e * 0.1**2)
    assert means[1] == pytest.approx(means[0], abs=0.1)
    assert means[1] > exact - 0.2


# ------------------------------------------------------------ q


def network_for(data: TrainingSet, simulator: Start) -> PosteriorNetwork:
    torch.manual_seed(0)
    network = PosteriorNetwork(prior_of(simulator), 1, flow=FLOW, embedding=EmbeddingSettings(kind="none"))
    network.standardize(data.theta, data.inputs)
    return network


def trained(simulator: Start, data: TrainingSet, *, blind: bool) -> PosteriorNetwork:
    """q after some steps of forward KL; `blind`: of features that are all one number, as q once read them."""
    features = torch.zeros_like(data.inputs.features) if blind else data.inputs.features
    data = data.like([data.theta, *data.x.values(), *data.inputs._replace(features=features), data.log_importance])
    network = network_for(data, simulator)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    stream = torch.Generator().manual_seed(1)
    for _ in range(100):
        rows = data.rows(torch.randint(len(data), (128,), generator=stream))
        loss = -network.log_q(rows.theta, network.condition(rows.inputs)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False)


@pytest.mark.parametrize("blind", [False, True])
def test_a_q_that_never_left_its_prior_says_so(blind: bool) -> None:
    simulator = Start({"normal": [0, 1]}, noise=0.5)
    network = trained(simulator, simulated(simulator, 2_000, 1), blind=blind)
    gain, from_data = gains_of(network, simulated(simulator, 1_000, 2), prior=prior_of(simulator))
    assert gain.is_none == blind
    assert from_data.is_none == blind
    assert gain.mean < 0.5 * math.log(1 + 1 / 0.25) + 4 * gain.error  # the mutual information
    assert ("q is the prior" in words_of(gain, from_data)) == blind


def test_a_q_that_is_the_proposal_has_learned_nothing_although_it_is_narrower_than_the_prior() -> None:
    simulator = Start({"uniform": [-10, 10]}, noise=5.0)
    box = IndependentPrior([distribution_from_spec({"uniform": [-1, 1]}), prior_of(simulator).marginals[1]])  # pyright: ignore[reportAttributeAccessIssue]
    data = simulated(simulator, 2_000, 1, proposal=box)
    network = trained(simulator, data, blind=True)
    over_prior, over_other = gains_of(network, simulated(simulator, 1_000, 2, proposal=box), prior=prior_of(simulator))
    assert over_prior.mean > 1
    assert over_other.is_none
    assert "q does not depend on the data" in words_of(over_prior, over_other)


def test_the_figures_and_the_words() -> None:
    assert Gain(0.5, 0.1).is_none is False
    assert Gain(0.15, 0.1).is_none is True
    assert Gain(0.005, 0.0001).is_none is True
    assert Gain(-0.5, 0.01).is_none is True
    assert Gain(math.nan, 1.0).is_none is False
    assert words_of(Gain(0.5, 0.1), Gain(0.5, 0.1)) == ""
    assert words_of(Gain(0.004, 0.01), Gain(0.5, 0.1)).startswith(
        "the network learned nothing: q is the prior (held-out log q of the true theta is above the prior's by 0.004 +- 0.010 nats)"
    )
