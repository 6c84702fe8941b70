from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.estimators.likelihood import mixture
from pipeline.estimators.summary import Summary
from pipeline.likelihood_settings import LikelihoodSettings
from pipeline.network_settings import FlowSettings
from pipeline.training.data import TrainingSet, joined, training_set
from pipeline.training.likelihood import Learned, Learner, set_levels
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of, sample
from simulators.protocol import Data

SETTINGS: dict[str, Any] = {
    "members": 2,
    "steps": 300,
    "batch": 128,
    "learning_rate": 5e-3,
    "check_every": 50,
    "flow": FlowSettings(transforms=2, hidden=24, blocks=1, bins=6),
}


def simulated(simulator: Any, rows: int, seed: int) -> TrainingSet:
    stream = torch.Generator().manual_seed(seed)
    prior = prior_of(simulator)
    theta = sample(prior, rows, stream)
    x = simulator.simulate(theta, generator=stream)
    return training_set(simulator, theta, x, prior=prior, proposal=prior, device=torch.device("cpu"))


def learn(simulator: Any, rows: int = 2_000, *, summary: Summary | None = None, **changes: Any) -> Learned:
    settings = LikelihoodSettings(**(SETTINGS | changes))
    learner = Learner(simulator, settings, simulated(simulator, rows, 1), simulated(simulator, 200, 2), seed=3)
    return learner.learn(summary)


@pytest.fixture(scope="module")
def learned() -> Learned:
    return learn(LinearGaussian(dimension=2, size=3))


def test_the_learned_density_is_the_simulators_own(learned: Learned) -> None:
    simulator = LinearGaussian(dimension=2, size=3)
    test = simulated(simulator, 1_000, 4)
    found = mixture(learned.network.member_log_prob(test.theta, learned.network.read(test.x)))
    gap = simulator.log_likelihood(test.theta, test.x) - found
    # KL of 2,000 simulations to a three-dimensional density: 0.02 to 0.1 nats with these small networks
    assert -3 * float(gap.std()) / 1_000**0.5 < float(gap.mean()) < 0.15


def test_levels_leave_the_share_outside_that_they_are_set_for(learned: Learned) -> None:
    simulator = LinearGaussian(dimension=2, size=3)
    figures = set_levels(learned.network, simulated(simulator, 2_000, 5))
    assert figures["held_out_spread"] > 0
    test = simulated(simulator, 2_000, 6)
    judged = learned.network.judge(test.theta, learned.network.read(test.x))
    # one in 100 by spread and one in 1,000 by density, each of 2,000 against a quantile of 2,000
    assert float(learned.network.is_outside(judged).double().mean()) == pytest.approx(0.011, abs=0.013)
    far = simulated(simulator, 50, 7)
    judged = learned.network.judge(far.theta + 12.0, learned.network.read(far.x))
    assert learned.network.is_outside(judged).all()


def test_the_same_seed_gives_the_same_network() -> None:
    few = {"steps": 20, "check_every": 10}
    one, two = (learn(LinearGaussian(dimension=2, size=3), 300, **few).network.state_dict() for _ in range(2))
    assert all(torch.equal(v, two[k]) for k, v in one.items())


class Images(LinearGaussian):
    """Forty noisy numbers of two parameters."""

    def __init__(self) -> None:
        super().__init__(dimension=2, size=40)


@pytest.mark.slow
def test_a_learned_summary_keeps_what_the_data_say_of_theta() -> None:
    simulator = Images()
    network = learn(simulator, 2_000, steps=200).network
    assert network.summary.shape.kind == "learned"
    assert network.summary.shape.kept == 4
    test = simulated(simulator, 500, 8)
    s = network.read(test.x)["summary"]
    mean = simulator.posterior(test.x["x"]).mean
    design = torch.cat([s, torch.ones(len(s), 1, dtype=s.dtype)], 1)
    residual = mean - design @ torch.linalg.lstsq(design, mean).solution
    # the posterior mean is what there is to know: a residual of 0.75 widths makes a posterior given s a quarter wider
    width = simulator.posterior(test.x["x"]).stddev
    assert (residual.std(0) < 0.75 * width.mean(0)).all()
    again = learn(simulator, 500, summary=network.summary, steps=20, check_every=10).network
    assert again.summary.digest(simulator) == network.summary.digest(simulator)


class WithPilot(Images):
    """Its pilot says all that there is to know."""

    def pilot(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        known = self.posterior(x["x"])
        return known.mean, known.stddev.expand_as(known.mean)


def test_a_learned_summary_says_itself_what_the_pilot_knows() -> None:
    """q reads the pilot beside s, but the likelihood has s alone."""
    simulator = WithPilot()
    network = learn(simulator, 2_000, steps=150, members=1).network
    test = simulated(simulator, 500, 8)
    s = network.read(test.x)["summary"]
    design = torch.cat([s, torch.ones(len(s), 1, dtype=s.dtype)], 1)
    residual = test.theta.double() - design @ torch.linalg.lstsq(design, test.theta.double()).solution
    width = simulator.posterior(test.x["x"]).stddev
    assert (residual.std(0) < 1.5 * width.mean(0)).all()


@pytest.mark.slow
def test_sbis_nle_learns_the_same_density() -> None:
    simulator = LinearGaussian(dimension=2, size=3)
    found = learn(simulator, 2_000, estimator="sbi_nle", members=1, steps=400)
    assert 0 < found.steps["member 0"] <= math.ceil(400 * 128 / 2_000) + 1  # sbi counts one more
    test = simulated(simulator, 1_000, 10)
    gap = simulator.log_likelihood(test.theta, test.x) - mixture(
        found.network.member_log_prob(test.theta, found.network.read(test.x))
    )
    assert -3 * float(gap.std()) / 1_000**0.5 < float(gap.mean()) < 0.3  # its learning rate is slow: 26 epochs


class Photons(LinearGaussian):
    """Poisson counts of exp(theta)."""

    def __init__(self, *, discrete: bool) -> None:
        super().__init__(dimension=1, size=2)
        self.observables = tuple(replace(o, discrete=discrete) for o in self.observables)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        return {"x": torch.poisson(theta.exp().expand(-1, 2), generator=generator)}


def test_counts_have_the_probabilities_of_their_distribution() -> None:
    with pytest.raises(InputError, match="discrete=True"):
        learn(Photons(discrete=False), 300)
    simulator = Photons(discrete=True)
    network = learn(simulator, 2_000, dequantize=32, steps=200).network
    test = simulated(simulator, 1_000, 9)
    exact = torch.distributions.Poisson(test.theta.exp().expand(-1, 2)).log_prob(test.x["x"]).sum(1)
    gap = exact - mixture(network.member_log_prob(test.theta, network.read(test.x)))
    # uniform noise costs nothing where the density is constant in a cell; splines with bends inside cells pay some
    assert -3 * float(gap.std()) / 1_000**0.5 < float(gap.mean()) < 0.2


def test_too_few_held_out_simulations_are_refused() -> None:
    simulator = LinearGaussian()
    with pytest.raises(InputError, match="raise simulate.held_out"):
        Learner(simulator, LikelihoodSettings(), simulated(simulator, 50, 1), simulated(simulator, 5, 2), seed=1)


def test_two_sets_of_simulations_are_one() -> None:
    simulator = LinearGaussian()
    one, two = simulated(simulator, 30, 1), simulated(simulator, 20, 2)
    both = joined([one, two])
    assert len(both) == 50
    assert torch.equal(both.x["x"][30:], two.x["x"])
    assert torch.equal(both.inputs.features[:30], one.inputs.features)
