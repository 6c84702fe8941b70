"""A small case with a closed-form answer, trained once for all tests of the stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from pipeline.config import load_case
from pipeline.settings import CaseSettings
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.store import write_data
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of, sample

CASE = {
    "seed": 3,
    "threads": 1,
    "simulator": {"name": "linear_gaussian"},
    "observation": "observed.h5",
    "simulate": {"count": 8_000, "held_out": 1_000, "shard": 3_000},
    "train": {
        "flow": {"transforms": 2, "hidden": 32, "blocks": 1, "bins": 6},
        "embedding": {"kind": "none"},
        "phases": [
            {"objective": "forward_kl", "steps": 200, "learning_rate": 3e-3, "batch": 256},
            {"objective": "elbo", "steps": 300, "learning_rate": 2e-3, "batch": 256},
        ],
        "check_every": 100,
        "checkpoint_every": 50,
    },
    "infer": {"refine": {"steps": 100}},
    "validate": {"simulations": 400, "draws": 100, "proposals": 1_000},
    "compare": {
        "emcee": {"walkers": 24, "steps": 1_500, "burn_in": 200},
        "nautilus": {"live_points": 200, "effective_draws": 4_000},
        "draws": 2_000,
    },
}


def write_case(folder: Path, changes: dict | None = None) -> Path:
    """A config with its observation of two rows, in `folder`."""
    simulator = LinearGaussian()
    stream = torch.Generator().manual_seed(11)
    theta = sample(prior_of(simulator), 2, stream)
    x = simulator.simulate(theta, generator=stream)
    write_data(
        folder / "observed.h5",
        observables=simulator.observables,
        parameters=simulator.parameters,
        x=x,
        theta=theta,
        ids=["first", "second"],
    )
    path = folder / "case.yaml"
    path.write_text(yaml.safe_dump(CASE | (changes or {})), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="session")
def case(config: Path) -> CaseSettings:
    return load_case(config)


@pytest.fixture(scope="session")
def trained(case: CaseSettings, config: Path) -> Run:
    """A run with `simulate` and `train` done."""
    run = Run(case, config.parent / "run")
    simulate(run)
    train(run)
    return run
