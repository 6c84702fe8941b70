from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.stages.infer import infer
from pipeline.stages.members import read_members
from pipeline.stages.netcdf import create_dimensions, create_variable, write_netcdf
from pipeline.stages.population_settings import PopulationSettings
from pipeline.stages.run import Run
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of


def settings(*parameters: str, **other) -> PopulationSettings:
    return PopulationSettings.model_validate(
        {
            "parameters": {p: {"normal": ["mu", 1]} for p in parameters},
            "hyperpriors": {"mu": {"uniform": [0, 1]}},
            **other,
        }
    )


def write(path: Path, values: np.ndarray, verdicts: list[str], simulator: dict, prefix: str = "theta") -> None:
    """A file with draws (S, N) of every one of three parameters."""
    ids = [str(n) for n in range(values.shape[1])]

    def fill(file) -> None:
        group = file.create_group("posterior")
        create_dimensions(group, chain=1, draw=len(values), observation=ids)
        for d in range(3):
            create_variable(group, f"{prefix}_{d + 1}", ("chain", "draw", "observation"), values[None] + d)
        group = file.create_group("certificate")
        create_dimensions(group, observation=ids)
        create_variable(group, "log_evidence", ("observation",), np.arange(len(ids), dtype=float))
        create_variable(group, "verdict", ("observation",), verdicts)

    write_netcdf(path, fill, {"stage": "infer", "settings": json.dumps({"simulator": simulator})})


GAUSSIAN = {"name": "linear_gaussian"}


def test_draws_and_prior_of_the_parameters_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).standard_normal((50, 7))
    path = tmp_path / "inference.h5"
    write(path, values, ["exact", "failed", "corrected", "refined", "failed", "sampled", "exact"], GAUSSIAN)
    monkeypatch.setattr("pipeline.stages.members.READ", 90)  # a few observations at once
    members = read_members(path, settings("theta_3", "theta_1", draws=40))
    good = [0, 2, 3, 5, 6]
    np.testing.assert_array_equal(members.catalogue.theta["theta_3"].numpy(), values[:40, good].T + 2)
    np.testing.assert_array_equal(members.catalogue.log_evidence.numpy(), good)
    assert members.ids == ("0", "2", "3", "5", "6")
    assert members.left_out == ("1", "4")
    assert members.stored == 50
    both = torch.stack([members.catalogue.theta[p] for p in ("theta_3", "theta_1")], -1)
    exact = -0.5 * both.square().sum(-1) - np.log(2 * np.pi)
    torch.testing.assert_close(members.catalogue.log_prior, exact)


def test_memory_bounds_the_draws(tmp_path: Path) -> None:
    path = tmp_path / "inference.h5"
    write(path, np.zeros((50, 4)) + np.arange(50)[:, None] / 50, ["exact"] * 4, GAUSSIAN)
    members = read_members(path, settings("theta_1", memory_gb=8 * 2 * 2 * 4 * 30.5 / 1e9))
    assert members.catalogue.log_prior.shape == (4, 30)


def test_what_infer_writes_is_read(trained: Run) -> None:
    path = infer(trained)
    members = read_members(path, settings("theta_2"))
    assert members.ids == ("first", "second")
    exact = LinearGaussian().posterior(trained.observation().x["x"])
    theta = members.catalogue.theta["theta_2"]
    width = exact.stddev.expand(2, 3)[:, 1]
    assert ((theta.mean(1) - exact.mean[:, 1]).abs() < 5 * width / theta.shape[1] ** 0.5).all()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "inference.h5"
    values = np.zeros((50, 2)) + np.arange(50)[:, None] / 50
    write(path, values, ["exact", "exact"], GAUSSIAN)
    with pytest.raises(InputError, match="no parameter 'theta_9'; it has theta_1, theta_2, theta_3"):
        read_members(path, settings("theta_9"))
    with pytest.raises(InputError, match="51 asked for, the file has 50"):
        read_members(path, settings("theta_1", draws=51))
    with pytest.raises(InputError, match="no such file"):
        read_members(tmp_path / "none.h5", settings("theta_1"))
    write(path, values, ["failed", "failed"], GAUSSIAN)
    with pytest.raises(InputError, match="all 2 observations have verdict failed"):
        read_members(path, settings("theta_1"))
    foreign = tmp_path / "foreign.h5"
    write_netcdf(foreign, lambda file: None, {"settings": json.dumps({"simulator": GAUSSIAN})})
    with pytest.raises(InputError, match="not a file of `elboscope infer`"):
        read_members(foreign, settings("theta_1"))
    two_moons = tmp_path / "outside.h5"
    write(two_moons, values + 1.5, ["exact", "exact"], {"name": "two_moons"}, prefix="parameter")
    with pytest.raises(InputError, match="100 draws have no density under the prior"):
        read_members(two_moons, settings("parameter_1"))


OWN = """
from simulators.linear_gaussian import LinearGaussian

class Mine(LinearGaussian):
    name = "mine"
"""


def test_a_simulator_of_ones_own_needs_a_config(tmp_path: Path) -> None:
    own, path = tmp_path / "mine.py", tmp_path / "inference.h5"
    own.write_text(OWN)
    values = np.zeros((50, 2)) + np.arange(50)[:, None] / 50
    write(path, values, ["exact", "exact"], {"name": "Mine", "path": str(own)})
    with pytest.raises(InputError, match="give a config that names it"):
        read_members(path, settings("theta_1"))
    (tmp_path / "case.yaml").write_text("simulator: {name: Mine, path: mine.py}\n")
    members = read_members(path, settings("theta_1"), case=load_case(tmp_path / "case.yaml"))
    prior = prior_of(LinearGaussian())
    assert float(members.prior.log_prob(torch.zeros(1))) == pytest.approx(float(prior.log_prob(torch.zeros(3))) / 3)
