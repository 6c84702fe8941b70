"""What `train` writes beside the weights: the simulations that tell a typical observation from another."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pipeline.config import load_case
from pipeline.estimators.posterior import load_posterior
from pipeline.stages import train as train_module
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import HELD_OUT_ROWS, load_simulations, train
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import sample
from tests.pipeline.stages.conftest import write_case

QUICK = {
    "flow": {"transforms": 1, "hidden": 8, "blocks": 1, "bins": 4},
    "embedding": {"hidden": 16, "output": 8},
    "phases": [{"objective": "forward_kl", "steps": 20, "batch": 64}],
}


def test_honest_observations_are_typical_and_noisy_ones_are_not(trained: Run) -> None:
    posterior = load_posterior(trained.output("train"))
    model = posterior.typicality_model
    assert model is not None
    assert len(model.scores) == 1_000 > HELD_OUT_ROWS  # every held-out simulation, not those of the guard alone
    simulator = posterior.simulator
    assert isinstance(simulator, LinearGaussian)
    stream = torch.Generator().manual_seed(21)
    theta = sample(trained.prior, 2_000, stream)
    x = simulator.simulate(theta, generator=stream)["x"]
    flagged = float((posterior.typicality({"x": x}) <= 0.01).double().mean())
    assert flagged == pytest.approx(0.01, abs=4 * math.sqrt(0.01 * 0.99 * (1 / 2_000 + 1 / 1_000)))
    noisy = simulator.mean(theta) + 5 * (x - simulator.mean(theta))
    assert float((posterior.typicality({"x": noisy}) <= 0.01).double().mean()) > 0.5
    held_out, training = load_simulations(trained, trained.model)
    assert (len(held_out), len(training)) == (1_000, 8_000)
    p = posterior.typicality(held_out.x)  # each among themselves: all ranks, each once
    torch.testing.assert_close(
        p.sort().values, (2 + torch.arange(1_000.0, dtype=torch.float64)) / 1_001, rtol=0, atol=0.01
    )


@pytest.mark.parametrize("data", ["file", "online"])
def test_it_is_there_whatever_the_simulations_of_training(tmp_path: Path, data: str) -> None:
    path = write_case(tmp_path, {"simulate": {"count": 300, "held_out": 200}, "train": QUICK | {"data": data}})
    run = Run(load_case(path), tmp_path / "run")
    simulate(run)
    train(run)
    model = load_posterior(run.output("train")).typicality_model
    assert model is not None
    assert len(model.scores) == 200
    assert len(model.clouds) == 2
    assert len(model.clouds[0].points) == 150


def test_too_few_simulations_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_case(tmp_path, {"simulate": {"count": 200, "held_out": 50}, "train": QUICK})
    run = Run(load_case(path), tmp_path / "run")
    simulate(run)
    said: list[str] = []
    monkeypatch.setattr("pipeline.estimators.typicality.LEAST_REFERENCE", 201)
    monkeypatch.setattr(train_module.console, "print", said.append)
    train(run)
    assert any("no typicality of observations: " in line and "raise simulate.count" in line for line in said)
    posterior = load_posterior(run.output("train"))
    assert posterior.typicality_model is None
    assert bool(posterior.typicality(torch.zeros(3, 5)).isnan().all())
