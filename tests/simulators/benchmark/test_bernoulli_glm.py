"""bernoulli_glm: statistics, and the density of the spike train that they stand for."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch

from simulators.benchmark.bernoulli_glm import BernoulliGlm


def test_statistics_are_those_of_the_published_spike_trains(reference: Path) -> None:
    with h5py.File(reference / "reference" / "bernoulli_glm.h5") as file:
        for number in range(1, 6):
            x, spikes = (
                torch.from_numpy(file[f"observation_{number:02d}/{name}"][()])[None] for name in ("x", "x_raw")
            )
            torch.testing.assert_close(BernoulliGlm().statistics(spikes), x, rtol=0, atol=1e-5)  # x is from float32


@pytest.mark.parametrize("number", range(5))
def test_reference_draws_follow_the_joint_density(observed, stein, number: int) -> None:
    _, x, draws = observed("bernoulli_glm")[number]
    assert float(stein(BernoulliGlm(), x, draws).abs().max()) < 5


def test_density_is_that_of_the_spike_train(draw) -> None:
    simulator = BernoulliGlm()
    theta, spikes = draw(simulator.neuron, 50)
    x = {"x": simulator.statistics(spikes["x"])}
    torch.testing.assert_close(
        simulator.log_likelihood(theta, x), simulator.neuron.log_likelihood(theta, spikes), rtol=1e-10, atol=1e-10
    )
    again = simulator.simulate(theta, generator=torch.Generator().manual_seed(1))
    train = simulator.neuron.simulate(theta, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again["x"], simulator.statistics(train["x"]))


def test_score_of_simulations_is_zero_on_average(score_at_truth) -> None:
    theta = torch.linspace(-1, 1, 10, dtype=torch.float64)
    assert float(score_at_truth(BernoulliGlm(), theta).abs().max()) < 5
