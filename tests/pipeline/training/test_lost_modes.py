"""Two moons and SLCP: the ELBO drops modes of their posteriors, and the guard does not let it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import load_case
from pipeline.estimators.posterior import load_posterior
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.store import read_safetensors
from simulators.priors import sample

CONFIGS = Path(__file__).parents[3] / "configs" / "benchmark"
PHASES = "{objective: forward_kl, steps: STEPS, learning_rate: 1.0e-2, batch: 256}"
GREEDY = "{objective: elbo, steps: 400, learning_rate: 5.0e-3, batch: 256}"


def trained(task: str, folder: Path, phases: str) -> tuple[Run, list[dict[str, Any]]]:
    """A run with these phases, and what became of each."""
    overrides = ["seed=3", f"train.phases=[{phases}]", "simulate.count=2000", "simulate.held_out=600"]
    run = Run(load_case(CONFIGS / f"{task}.yaml", [*overrides, "train.check_every=100"]), folder)
    simulate(run)
    train(run)
    return run, json.loads(read_safetensors(run.output("train"))[1]["phases"])


def smaller_mode(run: Run, sides: Any) -> torch.Tensor:
    """For 40 simulated x, the share of draws of q in the less populated half of a symmetric posterior."""
    stream = torch.Generator().manual_seed(1)
    x = run.simulator.simulate(sample(run.prior, 40, stream), None, generator=stream)["x"]
    theta, _ = load_posterior(run.output("train"), case=run.case).sample_and_log_prob(
        (500,), {"x": x}, generator=stream
    )
    share = sides(theta).double().mean(0)
    return torch.minimum(share, 1 - share)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "steps", "sides"),
    [
        ("two_moons", 700, lambda theta: theta.sum(-1) > 0),  # mirror images about theta_1 = -theta_2
        ("slcp", 1_000, lambda theta: theta[..., 2] > 0),  # scales enter squared
    ],
)
def test_a_mode_dropped_by_the_elbo_is_put_back(
    task: str, steps: int, sides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PHASES.replace("STEPS", str(steps))
    run, (start, greedy) = trained(task, tmp_path / "guarded", f"{first}, {GREEDY}")
    assert greedy["after"]["held_out_elbo"] > start["after"]["held_out_elbo"]
    assert greedy["after"]["held_out_forward_log_q"] < start["after"]["held_out_forward_log_q"] - 0.3
    assert not greedy["kept"]
    guarded = smaller_mode(run, sides)

    monkeypatch.setattr("pipeline.training.guard.MORE_REFUSED", 1.0)
    guard = run.case.train.guard.model_copy(update={"tolerance": 1e3})
    case = run.case.model_copy(update={"train": run.case.train.model_copy(update={"guard": guard})})
    run = Run(case, tmp_path / "unguarded")
    simulate(run)
    train(run)
    free = smaller_mode(run, sides)
    assert float(guarded.median()) > 0.3
    assert float(free.median()) < 0.7 * float(guarded.median())
