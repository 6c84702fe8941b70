"""Proposals that are read off an observation: inside the prior, around the truth, and as a config takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.stages.propose import proposal_yaml, propose
from pipeline.stages.run import Run
from pipeline.store import write_data
from simulators.linear_gaussian import LinearGaussian
from simulators.multi_instrument_velocity import MultiInstrumentVelocity

OPTIONS: dict[str, Any] = {
    "planets": [{"period": {"uniform": [20, 60]}, "conjunction": {"uniform": [0, 20]}, "logk": {"uniform": [0, 4]}}],
    "jit": {"uniform": [0, 5]},
    "instruments": ["a", "b"],
    "design": {"points": 60, "baseline": 900, "error": 1},
}
TRUTH = {"per1": 33.3, "tc1": 7.0, "logk1": 2.5, "jit": 1.0}
PRIORS = {"per1": (20.0, 60.0), "tc1": (0.0, 20.0), "logk1": (0.0, 4.0), "jit": (0.0, 5.0)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A star with one planet of 12 m/s, as an observation."""
    folder = tmp_path_factory.mktemp("star")
    simulator = MultiInstrumentVelocity(**OPTIONS)
    theta = torch.tensor([list(TRUTH.values())], dtype=torch.float64)
    x = simulator.simulate(theta, generator=torch.Generator().manual_seed(3))
    write_data(folder / "star.h5", observables=simulator.observables, x=x, ids=["star"])
    path = folder / "star.yaml"
    case = {"simulator": {"name": simulator.name, "options": OPTIONS}, "observation": "star.h5"}
    path.write_text(yaml.safe_dump(case))
    return path


def run_of(config: Path, overrides: list[str] | None = None) -> Run:
    return Run(load_case(config, overrides or []), config.parent / "run")


def test_the_truth_is_within_and_the_range_within_the_prior(config: Path) -> None:
    ranges = propose(run_of(config))
    assert list(ranges) == list(TRUTH)
    for name, (low, high) in ranges.items():
        assert PRIORS[name][0] <= low < TRUTH[name] < high <= PRIORS[name][1]
    low, high = ranges["per1"]
    # 60 points of 1.4 m/s over 900 d: sigma_P = sqrt(6 / 60) / pi * (1.4 / 12.2) P^2 / 900 = 0.014 d
    assert high - low < 0.02 * (PRIORS["per1"][1] - PRIORS["per1"][0])


def test_widths_widen_it(config: Path) -> None:
    """Narrow next to the prior, so linear: twice the widths, twice the range."""
    run = run_of(config)
    (low, high), (lower, higher) = (propose(run, widths=w)["per1"] for w in (3.0, 6.0))
    assert (higher - lower) / (high - low) == pytest.approx(2, rel=0.01)
    with pytest.raises(InputError, match="--widths must be positive, got 0"):
        propose(run, widths=0.0)


def test_the_command_prints_what_a_config_takes(config: Path) -> None:
    result = CliRunner().invoke(app, ["propose", str(config), "--widths", "4"])
    assert result.exit_code == 0, result.output
    assert result.output == proposal_yaml(run_of(config), widths=4.0)
    case = yaml.safe_load(config.read_text()) | yaml.safe_load(result.output)
    proposed = config.with_name("proposed.yaml")
    proposed.write_text(yaml.safe_dump(case))
    assert set(load_case(proposed).simulate.proposal or {}) == set(TRUTH)


def test_without_a_pilot_it_says_so(tmp_path: Path) -> None:
    linear = LinearGaussian()
    x = linear.simulate(torch.zeros(1, 3), generator=torch.Generator().manual_seed(0))
    write_data(tmp_path / "x.h5", observables=linear.observables, x=x, ids=["one"])
    path = tmp_path / "case.yaml"
    path.write_text(yaml.safe_dump({"simulator": {"name": "linear_gaussian"}, "observation": "x.h5"}))
    with pytest.raises(
        InputError, match=r"simulator 'linear_gaussian' has no pilot: write simulate\.proposal yourself"
    ):
        propose(run_of(path))
