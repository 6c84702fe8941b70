"""The example simulators of configs/examples: a NumPy function and an external program, without likelihood."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from pipeline.config import load_case
from pipeline.schema import VERDICTS
from pipeline.stages.check import check
from pipeline.stages.infer import infer
from pipeline.stages.likelihood import diagnostics_of, likelihood
from pipeline.stages.report import report
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.stages.validate import validate

EXAMPLES = Path(__file__).resolve().parents[3] / "configs" / "examples"
needs_awk = pytest.mark.skipif(shutil.which("awk") is None, reason="the external program is written in awk")
NAMES = ["pulsating_star", pytest.param("afterglow", marks=needs_awk)]
SMALL = [
    "simulate.count=1500", "simulate.held_out=400", "likelihood.steps=300", "likelihood.check_every=100", "likelihood.members=2",
    "train.steps=200", "train.check_every=100", "infer.draws=200", "infer.predictive_draws=100", "infer.refine.when=never",
    "infer.sample.when=never", "validate.simulations=100", "validate.draws=40", "validate.proposals=400", "validate.least_ess=10",
]  # fmt: skip


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_an_example_passes_the_check(name: str, tmp_path: Path) -> None:
    check(Run(load_case(EXAMPLES / f"{name}.yaml"), tmp_path))


@needs_awk
def test_counts_of_the_external_program_have_their_mean_and_depend_on_the_seed_alone() -> None:
    afterglow = module("afterglow").Afterglow()
    theta = torch.tensor([[30.0, 2.5]], dtype=torch.float64).expand(400, 2)
    x = afterglow.simulate(theta, generator=torch.Generator().manual_seed(1))["counts"]
    assert torch.equal(x, afterglow.simulate(theta, generator=torch.Generator().manual_seed(1))["counts"])
    expected = (2 + 30 * torch.exp(-torch.arange(8.0) / 2.5)) * 1.025
    assert ((x.mean(0) - expected).abs() < 4 * x.std(0) / 20).all()


@needs_awk
def test_what_an_external_program_says_of_its_failure_is_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"exit code 3 at rate -1, decay 2: rate and decay must be positive"):
        module("afterglow").call_program(-1.0, 2.0, 1)


def test_absent_nights_say_nothing_and_present_ones_are_those_of_the_context() -> None:
    star = module("pulsating_star").PulsatingStar()
    theta = torch.tensor([[0.1, 1.0]], dtype=torch.float64).expand(50, 2)
    x = star.simulate(theta, generator=torch.Generator().manual_seed(1))
    again = star.simulate(theta, {k: x[k] for k in ("time", "present")}, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again["time"], x["time"])
    absent = x["present"] == 0
    assert (x["flux"][absent] == 1).all()
    assert (x["flux"][~absent] != again["flux"][~absent]).all()
    assert int(x["present"].sum(1).min()) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_black_box_goes_through_all_stages(name: str, tmp_path: Path) -> None:
    run = Run(load_case(EXAMPLES / f"{name}.yaml", SMALL), tmp_path / "run")
    for stage in (simulate, likelihood, train, infer, validate, report):
        stage(run)
    assert diagnostics_of(run.output("likelihood"))["simulations"] == 1_500
    with h5py.File(run.output("infer")) as file:
        c: Any = file["certificate"]
        assert c["verdict"].asstr()[0] in VERDICTS
        assert 0 <= float(c["surrogate_outside"][0]) <= 1
        assert file.attrs["likelihood"] == "learned"
