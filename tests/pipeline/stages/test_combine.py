from __future__ import annotations

import json
import math
from pathlib import Path

import arviz
import h5py
import numpy as np
import pytest
import torch
from scipy.special import ive
from torch.distributions import MultivariateNormal, Uniform

from pipeline.errors import InputError
from pipeline.estimators.network import PosteriorNetwork
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.schema import CERTIFICATE
from pipeline.settings import CaseSettings, EmbeddingSettings, FlowSettings, InferSettings
from pipeline.stages.combine import combine, combine_observations
from pipeline.stages.run import Run
from pipeline.store import hdf5_content_digest, write_data
from simulators.benchmark.two_moons import TwoMoons
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of
from simulators.protocol import Observable, Parameter, Simulator

ORACLE = LinearGaussian()
CPU = torch.device("cpu")
FLOW = FlowSettings(transforms=1, hidden=8, blocks=1, bins=4)


def untrained(simulator: Simulator, features: int) -> Posterior:
    """A posterior whose network has learned nothing: every q_n is about the prior."""
    case = CaseSettings.model_validate({"simulator": {"name": "none"}})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PosteriorNetwork(
            prior_of(simulator),
            features,
            flow=FLOW,
            embedding=EmbeddingSettings(kind="none"),
            periodic=[p.periodic for p in simulator.parameters],
        )
    return Posterior(case, simulator, network)


def rows_of(simulator: Simulator, theta: list[float], count: int, seed: int) -> dict[str, torch.Tensor]:
    shared = torch.tensor(theta, dtype=torch.float64).expand(count, -1)
    return simulator.simulate(shared, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def posterior(trained: Run) -> Posterior:
    return load_posterior(trained.output("train"))


@pytest.mark.parametrize("count", [1, 2, 10, 100])
def test_repeated_rows_of_the_oracle(posterior: Posterior, count: int) -> None:
    """Evidence of all rows within 3 of its errors; mean and width of the draws, against the closed form."""
    x = rows_of(ORACLE, [0.4, -0.8, 1.1], count, seed=100 + count)
    result = combine(posterior, x, settings=InferSettings(), seed=1)
    a, s2 = ORACLE.design_matrix, ORACLE.noise_scale**2
    covariance = torch.linalg.inv(torch.eye(3).double() / ORACLE.prior_scale**2 + count * a.T @ a / s2)
    mean = covariance @ a.T @ x["x"].sum(0) / s2
    # log p(x) = log p(x, theta) - log p(theta | x), at any theta
    exact = (
        ORACLE.log_likelihood(mean.expand(1, count, 3), x).sum()
        + prior_of(ORACLE).log_prob(mean)
        - MultivariateNormal(mean, covariance).log_prob(mean)
    )
    e = result.evidence
    assert result.verdict == "exact"
    assert float(e.log_evidence_error) < 0.01
    assert abs(float(e.log_evidence - exact)) < 3 * float(e.log_evidence_error)
    assert float(e.kl_gap) == pytest.approx(float(e.log_evidence - e.elbo))
    width = covariance.diagonal().sqrt()
    draws = len(result.theta)
    assert ((result.theta.mean(0) - mean).abs() / width < 4.5 / math.sqrt(draws)).all()
    assert ((result.theta.std(0) / width - 1).abs() < 4.5 / math.sqrt(2 * draws)).all()
    torch.testing.assert_close(
        result.proposals.log_likelihood[:5, 0],
        ORACLE.log_likelihood(result.proposals.theta[:5].expand(5, count, 3), x).sum(-1),
    )


def moons_on_a_grid(simulator: TwoMoons, x: torch.Tensor, draws: torch.Tensor) -> float:
    """log evidence of all rows, by the midpoint rule around the draws of one mode; the other is its reflection."""
    low, high = draws.min(0).values, draws.max(0).values
    cells = 1_000
    middles = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    axes = [low[d] + (high[d] - low[d]) * middles for d in range(2)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    log_likelihood = sum(simulator.log_likelihood(grid[:, None], {"x": row[None]})[:, 0] for row in x)
    area = float((high - low).prod()) / cells**2
    return float(torch.logsumexp(torch.as_tensor(log_likelihood), 0)) + math.log(2 * area / 4)


@pytest.mark.parametrize("count", [2, 8])
def test_both_moons_are_kept(count: int) -> None:
    """Likelihood and prior are the same under a reflection: half of the draws in each mode, at any number of rows."""
    simulator = TwoMoons()
    theta = [0.35, 0.2]
    x = rows_of(simulator, theta, count, seed=count)
    result = combine(untrained(simulator, 2), x, settings=InferSettings(), seed=2)
    assert result.verdict in ("exact", "corrected")
    first = result.theta.sum(-1) > 0
    assert float(first.double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(first)))
    usable = result.proposals.log_weight[:, 0].isfinite()
    points = result.proposals.theta[usable, 0]
    exact = moons_on_a_grid(simulator, x["x"], points[points.sum(-1) > 0])
    error = float(result.evidence.log_evidence_error)
    # the likelihood ends abruptly where the crescent does: the grid is good to a few thousandths
    assert float(result.evidence.log_evidence) == pytest.approx(exact, abs=4 * error + 0.005)


class Direction:
    r"""A direction seen as two noisy coordinates: x ~ N((cos t, sin t), 0.7), t ~ U(0, 2 pi). The posterior is von Mises."""

    name = "direction"
    scale = 0.7
    parameters = (
        Parameter(
            "t", Uniform(torch.tensor(0.0).double(), torch.tensor(2 * math.pi, dtype=torch.float64)), periodic=True
        ),
    )
    observables = (Observable("x", (2,)),)

    def mean(self, theta: torch.Tensor) -> torch.Tensor:
        return torch.cat([theta.cos(), theta.sin()], -1)

    def simulate(self, theta, context=None, *, generator):
        noise = torch.randn(len(theta), 2, generator=generator, dtype=theta.dtype)
        return {"x": self.mean(theta) + self.scale * noise}

    def log_likelihood(self, theta, x):
        r = (x["x"].to(theta) - self.mean(theta)) / self.scale
        return -0.5 * r.square().sum(-1) - math.log(2 * math.pi * self.scale**2)


def test_an_angle_across_the_end_of_its_period() -> None:
    """p(t | x) is von Mises of concentration |sum x| / s^2, and the evidence a Bessel function; t = 0.02 is nearly 2 pi."""
    simulator, count = Direction(), 20
    x = rows_of(simulator, [0.02], count, seed=4)
    result = combine(untrained(simulator, 2), x, settings=InferSettings(), seed=5)
    total = x["x"].sum(0)
    kappa = float(total.norm()) / simulator.scale**2
    constant = -0.5 * float(x["x"].square().sum() + count) / simulator.scale**2
    exact = constant - count * math.log(2 * math.pi * simulator.scale**2) + math.log(ive(0, kappa)) + kappa
    e = result.evidence
    assert abs(float(e.log_evidence) - exact) < 4 * float(e.log_evidence_error)
    assert result.verdict == "exact"
    turned = torch.remainder(result.theta[:, 0] - torch.atan2(total[1], total[0]) + math.pi, 2 * math.pi) - math.pi
    resultant = float(turned.cos().mean())
    assert resultant == pytest.approx(ive(1, kappa) / ive(0, kappa), abs=0.005)
    assert (result.theta[:, 0] > 6).any()
    assert (result.theta[:, 0] < 0.5).any()


def test_rows_that_share_no_theta_are_refused() -> None:
    x = {"x": torch.tensor([[0.2, 0.1], [-5.0, 0.1]], dtype=torch.float64)}  # no crescent reaches the second
    with pytest.raises(InputError, match="do not share one theta"):
        combine(untrained(TwoMoons(), 2), x, settings=InferSettings(), seed=1)


def test_file_of_one_posterior_with_all_rows(trained: Run, tmp_path: Path) -> None:
    x = rows_of(ORACLE, [0.4, -0.8, 1.1], 7, seed=6)
    observed = tmp_path / "star.h5"
    write_data(observed, observables=ORACLE.observables, x=x, ids=[f"night-{i}" for i in range(7)])
    settings = InferSettings(draws=500)

    def made(name: str, seed: int) -> Path:
        return combine_observations(
            trained.output("train"), observed, tmp_path / name, settings=settings, case=None, seed=seed, device=CPU
        )

    output = made("a.h5", 1)
    result = arviz.from_netcdf(output)
    assert {"posterior", "observed_data"} <= set(result.groups())
    assert list(result["posterior"]["observation"].values) == ["star"]
    assert list(result["observed_data"]["observation"].values) == [f"night-{i}" for i in range(7)]
    with h5py.File(output) as file:
        certificate = file["certificate"]
        assert set(certificate) >= {*CERTIFICATE, "verdict", "note", "atypical"}
        assert certificate["verdict"][0] == b"exact"
        assert np.isnan(certificate["amortized_elbo"][0])  # no amortized q of all rows together
        assert file["posterior/theta_2"].shape == (1, 500, 1)
        proposal = file["proposal"]
        assert proposal["log_weight"].shape == (5_000, 1)
        np.testing.assert_allclose(
            proposal["log_weight"][:], proposal["log_joint"][:] - proposal["log_q"][:], rtol=1e-12
        )
        np.testing.assert_array_equal(file["observed_data/x"][:], x["x"].numpy())
        assert json.loads(file.attrs["parameters"]) == ["theta_1", "theta_2", "theta_3"]
    digest, written = hdf5_content_digest(output), output.stat().st_mtime_ns
    assert hdf5_content_digest(made("b.h5", 1)) == digest
    assert hdf5_content_digest(made("c.h5", 2)) != digest
    assert made("a.h5", 1).stat().st_mtime_ns == written  # up to date
    (tmp_path / "mine.h5").write_text("mine")
    with pytest.raises(InputError, match="not written by `elboscope combine`"):
        made("mine.h5", 1)


def test_without_a_likelihood_there_are_no_weights() -> None:
    class Silent(LinearGaussian):
        log_likelihood = None  # pyright: ignore[reportAssignmentType]

    with pytest.raises(InputError, match="no log_likelihood"):
        combine(untrained(Silent(), 5), {"x": torch.zeros(1, 5).double()}, settings=InferSettings())
