"""A population of linear Gaussian objects whose hyperposterior is known, and catalogues that must be refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import arviz
import h5py
import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.stages.members import read_members
from pipeline.stages.netcdf import create_dimensions, create_variable, write_netcdf
from pipeline.stages.population import PopulationPosterior, infer_population, population, why_refused
from pipeline.stages.population_settings import PopulationSettings
from simulators.linear_gaussian import LinearGaussian

MU, SIGMA = 0.5, 0.3
SETTINGS = PopulationSettings.model_validate(
    {
        "parameters": {"theta_1": {"normal": ["mu", "sigma"]}},
        "hyperpriors": {"mu": {"uniform": [-2, 5]}, "sigma": {"uniform": [0.05, 3]}},
        "sampler": {"walkers": 16, "steps": 900, "burn_in": 150},
    }
)


def write_catalogue(
    path: Path, *, count: int, draws: int, sigma: float = SIGMA, noise: float = 0.5, failed: tuple[int, ...] = ()
) -> tuple[LinearGaussian, torch.Tensor]:
    """Objects with theta_1 ~ N(MU, sigma), the others from the prior; exact posterior draws of each. The model, and x."""
    simulator = LinearGaussian(noise_scale=noise)
    stream = torch.Generator().manual_seed(7)
    theta = torch.randn(count, 3, generator=stream, dtype=torch.float64)
    theta[:, 0] = MU + sigma * theta[:, 0]
    x = simulator.simulate(theta, generator=stream)["x"]
    with torch.random.fork_rng():
        torch.manual_seed(8)
        posterior = simulator.posterior(x).sample((draws,)).numpy()
    posterior[:, list(failed)] = 50.0  # whatever failed is far off
    log_evidence = simulator.log_evidence(x).numpy()
    verdicts = ["failed" if n in failed else "exact" for n in range(count)]

    def fill(file) -> None:
        ids = [f"star-{n}" for n in range(count)]
        group = file.create_group("posterior")
        create_dimensions(group, chain=1, draw=draws, observation=ids)
        for d, p in enumerate(simulator.parameters):
            create_variable(group, p.name, ("chain", "draw", "observation"), posterior[None, :, :, d])
        group = file.create_group("certificate")
        create_dimensions(group, observation=ids)
        create_variable(group, "log_evidence", ("observation",), log_evidence)
        create_variable(group, "verdict", ("observation",), verdicts)

    settings = {"simulator": {"name": "linear_gaussian", "options": {"noise_scale": noise}}}
    write_netcdf(path, fill, {"stage": "infer", "settings": json.dumps(settings)})
    return simulator, x


def exact_hyperposterior(simulator: LinearGaussian, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    r"""Means and standard deviations of (mu, sigma) on a grid.

    $x \sim N(a_1 \mu, s^2 I + A \mathrm{diag}(\sigma^2, 1, 1) A^T)$, hyperpriors flat.
    """
    a, eye = simulator.design_matrix, torch.eye(simulator.size, dtype=torch.float64)
    mu = torch.linspace(0.1, 0.9, 300, dtype=torch.float64)
    sigma = torch.linspace(0.05, 0.8, 300, dtype=torch.float64)
    columns = []
    for s in sigma:
        scales = torch.tensor([float(s) ** 2, 1.0, 1.0], dtype=torch.float64)
        covariance = simulator.noise_scale**2 * eye + a * scales @ a.T
        precision = torch.linalg.inv(covariance)
        linear, quadratic = (x @ precision @ a[:, 0]).sum(), a[:, 0] @ precision @ a[:, 0]
        constant = -0.5 * ((x @ precision) * x).sum() - 0.5 * len(x) * torch.logdet(covariance)
        columns.append(constant + mu * linear - 0.5 * len(x) * mu**2 * quadratic)
    weight = torch.softmax(torch.stack(columns, 1).flatten(), 0).view(300, 300)
    moments = []
    for axis, values in ((1, mu), (0, sigma)):
        share = weight.sum(axis)
        mean = float((share * values).sum())
        moments.append((mean, math.sqrt(float((share * (values - mean) ** 2).sum()))))
    return np.array([m for m, _ in moments]), np.array([s for _, s in moments])


def recovered(folder: Path, *, count: int, draws: int) -> PopulationPosterior:
    """Infer the population and compare it with the exact hyperposterior, by mean and standard deviation.

    An estimate of log L with variance v moves the mean by less than about sqrt(v) of its width, and the chain adds
    a twentieth.
    """
    simulator, x = write_catalogue(folder / "inference.h5", count=count, draws=draws)
    result = infer_population(read_members(folder / "inference.h5", SETTINGS), SETTINGS)
    mean, width = exact_hyperposterior(simulator, x)
    assert why_refused(result, SETTINGS) == ""
    tolerance = math.sqrt(float(np.median(result.variance))) + 0.05
    assert tolerance < 0.7
    assert (np.abs(result.draws.mean(0) - mean) < tolerance * width).all()
    np.testing.assert_allclose(result.draws.std(0), width, rtol=0.15)
    return result


def test_hyperparameters_of_a_known_population(tmp_path: Path) -> None:
    result = recovered(tmp_path, count=80, draws=300)
    assert result.names == ("mu", "sigma")
    assert len(result.ids) == 80
    assert (result.least_ess <= result.ess_at_mean + 1e-9).all()
    assert (result.ess_at_mean <= 300).all()
    assert result.outside_prior == 0.0


@pytest.mark.slow
def test_hyperparameters_of_three_hundred_objects(tmp_path: Path) -> None:
    recovered(tmp_path, count=300, draws=2_000)


def test_few_draws_of_many_objects_are_refused(tmp_path: Path) -> None:
    """The same population from 15 draws each: the variance of the log likelihood is several nats squared."""
    write_catalogue(tmp_path / "few.h5", count=80, draws=15)
    short = SETTINGS.model_copy(update={"least_ess": 1.0})
    with pytest.raises(InputError, match="variance of the estimated log likelihood is above 1"):
        population(tmp_path / "few.h5", short, tmp_path / "out.h5")
    with pytest.raises(InputError, match=r"fewer than 10 effective draws .*star-\d+"):
        population(tmp_path / "few.h5", SETTINGS, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_a_population_much_narrower_than_each_posterior_is_refused(tmp_path: Path) -> None:
    """Width 0.01 against posteriors of width 0.7: few of 300 draws lie where the population is."""
    write_catalogue(tmp_path / "narrow.h5", count=80, draws=300, sigma=0.01, noise=2.0)
    hyperpriors = {"mu": {"uniform": [-2, 5]}, "sigma": {"uniform": [0.001, 0.02]}}
    narrow = PopulationSettings.model_validate(SETTINGS.model_dump() | {"hyperpriors": hyperpriors})
    with pytest.raises(InputError, match=r"fewer than 10 effective draws .*more draws of each observation"):
        population(tmp_path / "narrow.h5", narrow, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


@pytest.fixture(scope="module")
def with_failures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("failures") / "inference.h5"
    write_catalogue(path, count=40, draws=200, failed=(3, 17))
    return path


def test_failed_observations_are_left_out_and_counted(
    with_failures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their draws, at 50, would pull mu far off; the file opens in ArviZ and has a value for each of the others."""
    output = population(with_failures, SETTINGS, tmp_path / "population.h5")
    assert "38 observations, 2 left out because their verdict is failed" in capsys.readouterr().err
    draws = arviz.from_netcdf(output)["posterior"]
    assert float(draws["mu"].mean()) == pytest.approx(MU, abs=0.25)  # 4 widths of its posterior
    assert draws["sigma"].dims == ("chain", "draw")
    with h5py.File(output) as file:
        assert json.loads(str(file.attrs["left_out"])) == ["star-3", "star-17"]
        assert file["members/ess_at_mean"].shape == (38,)
        assert (file["members/least_ess"][:] >= 1).all()
        assert (file["estimate/variance"][:] < 2).all()
    written = output.stat().st_mtime_ns
    population(with_failures, SETTINGS, output)
    assert output.stat().st_mtime_ns == written
    with pytest.raises(InputError, match="2 observations have verdict failed, the first star-3"):
        population(with_failures, SETTINGS, tmp_path / "strict.h5", strict=True)


def test_same_seed_same_draws(with_failures: Path) -> None:
    few = SETTINGS.model_copy(update={"sampler": SETTINGS.sampler.model_copy(update={"steps": 20, "burn_in": 5})})
    members = read_members(with_failures, few)
    a, b = (infer_population(members, few) for _ in range(2))
    np.testing.assert_array_equal(a.draws, b.draws)
    c = infer_population(members, few.model_copy(update={"seed": 2}))
    assert not np.array_equal(a.draws, c.draws)
    assert not a.converged
    assert "raise sampler.steps" in why_refused(replace(a, broken_ess=0.0, broken_variance=0.0), few)


def test_a_population_beyond_the_prior_is_refused(with_failures: Path) -> None:
    few = SETTINGS.model_copy(update={"sampler": SETTINGS.sampler.model_copy(update={"steps": 20, "burn_in": 5})})
    result = infer_population(read_members(with_failures, few), few)
    good = replace(result, broken_ess=0.0, broken_variance=0.0, converged=True)
    assert why_refused(good, few) == ""
    assert "outside the support of the prior" in why_refused(replace(good, outside_prior=0.2), few)


def test_hyperpriors_without_any_density_are_an_error(with_failures: Path) -> None:
    nowhere = PopulationSettings.model_validate(
        {"parameters": {"theta_1": {"uniform": [30, "top"]}}, "hyperpriors": {"top": {"uniform": [31, 40]}}}
    )
    with pytest.raises(InputError, match="widen the hyperpriors"):
        infer_population(read_members(with_failures, nowhere), nowhere)
