"""Posterior predictive p-values: exact where they are known, uniform where theta is known, small for wrong noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pipeline.config import load_case
from pipeline.diagnostics import replicates
from pipeline.diagnostics.predictive import distance_p_value, likelihood_p_value, predictive_check
from pipeline.diagnostics.replicates import replicate
from pipeline.errors import InputError
from pipeline.stages.run import Run
from pipeline.store import read_data
from simulators.failures import Failure, FailureCode
from simulators.linear_gaussian import LinearGaussian
from simulators.protocol import Data, Observable, Parameter
from simulators.radial_velocity import RadialVelocity

STARS = 300


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_gaussian(noise: float = 1.0, *, rows: int = STARS, draws: int = 400) -> tuple[LinearGaussian, Tensor, Data]:
    """Observations with `noise` times the model's noise, and exact posterior draws (S, N, D)."""
    simulator = LinearGaussian(size=40)
    theta = torch.randn(rows, 3, dtype=torch.float64, generator=stream(1))
    x = simulator.simulate(theta, generator=stream(2))["x"]
    mean = simulator.mean(theta)
    x = mean + noise * (x - mean)
    posterior = simulator.posterior(x)
    factor = torch.linalg.cholesky(posterior.covariance_matrix.reshape(-1, 3, 3)[0])
    normal = torch.randn(draws, rows, 3, dtype=torch.float64, generator=stream(3))
    return simulator, posterior.mean + normal @ factor.T, {"x": x}


def share(p: Tensor, level: float = 0.01) -> float:
    return float((p <= level).double().mean())


def test_likelihood_p_value_is_the_known_one() -> None:
    r"""$T = |x - A\theta|^2 / s^2$ of a replicate is $\chi^2_M$: $P = \langle P(\chi^2_M > T(x, \theta)) \rangle$ over the posterior."""
    simulator, theta, x = linear_gaussian(draws=1_000)
    t = ((x["x"] - simulator.mean(theta)) / simulator.noise_scale).square().sum(-1)
    tail = stats.chi2(40).sf(t.numpy()).mean(0)
    expected = 2 * np.minimum(tail, 1 - tail)
    check = predictive_check(simulator, theta, x, generator=stream(4), least_replicates=4_000)
    assert check.replicates == 4_000
    assert set(check.p_value) == {"log_likelihood", "x"}
    assert check.p_value["log_likelihood"].dtype == torch.float64
    error = 2 * np.sqrt(tail * (1 - tail) / 4_000)
    assert np.abs((check.p_value["log_likelihood"].numpy() - expected) / (error + 1e-3)).max() < 5


def test_honest_observations_are_flagged_no_more_often_than_stated() -> None:
    simulator, theta, x = linear_gaussian()
    check = predictive_check(simulator, theta, x, generator=stream(4))
    for p in check.p_value.values():
        for level in (0.01, 0.1):
            assert share(p, level) < level + 4 * math.sqrt(level * (1 - level) / STARS)
        assert 0.4 < float(p.mean()) < 0.7
        assert float(p.min()) > 0


@pytest.mark.parametrize(
    ("noise", "likelihood", "distance"), [(3.0, True, True), (2.0, True, True), (0.5, True, False), (0.2, True, False)]
)
def test_wrong_noise_is_seen_either_way(noise: float, likelihood: bool, distance: bool) -> None:
    """The distance is one-sided, and data that scatter too little are near their mean."""
    simulator, theta, x = linear_gaussian(noise, rows=60)
    check = predictive_check(simulator, theta, x, generator=stream(4))
    assert (share(check.p_value["log_likelihood"]) > 0.9) is likelihood
    assert (share(check.p_value["x"]) > 0.9) is distance


def velocities(rows: int, *, offset_scale: float = 5.0, draws: int = 50) -> tuple[RadialVelocity, Tensor, Data]:
    """Stars with epochs of their own, and their true theta in place of posterior draws."""
    simulator = RadialVelocity(
        planets=[{"period": 20.9, "conjunction": 2072.8, "logk": {"normal": [1.6, 1]}}],
        jit={"normal": [1.1, 0.5]},
        offset_scale=offset_scale,
        design={"points": 20, "baseline": 90, "start": 2364, "error": 1.7, "error_scatter": 0.3},
    )
    theta = torch.tensor([1.6, 1.1], dtype=torch.float64) + 0.3 * torch.randn(rows, 2, generator=stream(1)).double()
    x = simulator.simulate(theta, None, generator=stream(2))
    return simulator, theta.expand(draws, rows, 2), x


def test_p_values_are_uniform_where_theta_is_known() -> None:
    """x and its replicates are then draws of one distribution."""
    simulator, theta, x = velocities(STARS)
    check = predictive_check(simulator, theta, x, generator=stream(5))
    for p in check.p_value.values():
        assert stats.kstest(p.numpy(), "uniform").pvalue > 1e-3


def test_an_offset_drawn_anew_hides_nothing_else() -> None:
    """Offsets of 500 m/s beside noise of 2 m/s: every shift is near, a step of 15 m/s is not."""
    simulator, theta, x = velocities(60, offset_scale=500.0)
    shifted = x | {"velocity": x["velocity"] + 300.0}
    assert share(predictive_check(simulator, theta, shifted, generator=stream(5)).p_value["velocity"]) < 0.1
    later = x["time"] > x["time"].median(-1, keepdim=True).values
    step = x | {"velocity": x["velocity"] + 15.0 * later}
    assert share(predictive_check(simulator, theta, step, generator=stream(5)).p_value["velocity"]) > 0.95


def test_observing_conditions_are_kept() -> None:
    simulator, theta, x = velocities(3)
    drawn = replicate(simulator, theta, x, generator=stream(6)).x
    assert drawn["velocity"].shape == (50, 3, 20)
    assert torch.equal(drawn["time"], x["time"].expand(50, 3, 20))
    assert torch.equal(drawn["velocity_error"], x["velocity_error"].expand(50, 3, 20))
    spread = drawn["velocity"].diff(dim=-1).std(0)
    assert float(spread.min()) > 0


def test_blocks_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator, theta, x = linear_gaussian(rows=12)
    whole = predictive_check(simulator, theta, x, generator=stream(4))
    again = predictive_check(simulator, theta, x, generator=stream(4))
    other = predictive_check(simulator, theta, x, generator=stream(5))
    assert all(torch.equal(whole.p_value[k], again.p_value[k]) for k in whole.p_value)
    assert any(not torch.equal(whole.p_value[k], other.p_value[k]) for k in whole.p_value)
    largest = []
    simulate = LinearGaussian.simulate

    def watched(self: LinearGaussian, theta: Tensor, context: object = None, *, generator: torch.Generator) -> Data:
        largest.append(len(theta))
        assert context is None  # nothing to be kept: no mapping, and no design either
        return simulate(self, theta, generator=generator)

    monkeypatch.setattr(LinearGaussian, "simulate", watched)
    monkeypatch.setattr(replicates, "BLOCK_NUMBERS", 8_000)
    parts = predictive_check(simulator, theta, x, generator=stream(4))
    assert max(largest) == 200  # 8,000 numbers at 40 a row
    assert sum(largest) == 12 * 1_000
    for name, p in whole.p_value.items():  # other random numbers: a rank among 500 moves by 0.02, a distance by more
        assert float((parts.p_value[name] - p).abs().mean()) < 0.12
        assert float(np.corrcoef(parts.p_value[name], p)[0, 1]) > 0.7


def test_few_draws_serve_several_times_and_none_are_refused() -> None:
    simulator, theta, x = linear_gaussian(rows=4)
    assert predictive_check(simulator, theta[:20], x, generator=stream(1)).replicates == 1_000
    assert predictive_check(simulator, theta[:20], x, generator=stream(1), least_replicates=1).replicates == 20
    with pytest.raises(InputError, match=r"expected draws theta \(K, N, D\) of 4 observations, got \(0, 4, 3\)"):
        predictive_check(simulator, theta[:0], x, generator=stream(1))
    with pytest.raises(InputError, match=r"of 4 observations, got \(400, 3, 3\)"):
        predictive_check(simulator, theta[:, :3], x, generator=stream(1))
    with pytest.raises(InputError, match=r"expected at least 8 replicates, got 4"):
        predictive_check(simulator, theta[:4], x, generator=stream(1), least_replicates=2)


@dataclass(frozen=True)
class Image:
    """A picture of 40 x 40 pixels around theta, whose likelihood nobody knows, and a constant beside it."""

    name: str = "image"
    parameters: tuple[Parameter, ...] = field(default_factory=lambda: LinearGaussian(dimension=1).parameters)
    observables: tuple[Observable, ...] = (Observable("image", (40, 40)), Observable("fixed", (2,)))

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        noise = torch.randn(len(theta), 40, 40, generator=generator, dtype=theta.dtype)
        return {"image": theta[:, :, None] + noise, "fixed": torch.full((len(theta), 2), 3.0, dtype=theta.dtype)}


def test_images_without_a_likelihood() -> None:
    """More numbers than replicates; a number that never varies must not."""
    simulator, theta = Image(), torch.randn(1, 160, 1, generator=stream(1)).double()
    x = simulator.simulate(theta[0], generator=stream(2))
    check = predictive_check(simulator, theta, x, generator=stream(3), least_replicates=200)
    assert bool(check.p_value["log_likelihood"].isnan().all())
    assert stats.kstest(check.p_value["image"].numpy(), "uniform").pvalue > 1e-3
    assert bool((check.p_value["fixed"] == 1).all())
    mean = theta[0][:, :, None]
    wrong = {"image": mean + 1.15 * (x["image"] - mean), "fixed": x["fixed"] + 1e-3}
    check = predictive_check(simulator, theta, wrong, generator=stream(3), least_replicates=200)
    assert share(check.p_value["image"]) > 0.9
    assert bool((check.p_value["fixed"] == 1 / 101).all())


def test_likelihoods_that_are_no_numbers() -> None:
    simulator, theta, x = linear_gaussian(rows=2, draws=100)
    replicated = replicate(simulator, theta, x, generator=stream(1)).x
    p = likelihood_p_value(simulator, theta, x, replicated)
    some = theta.clone()
    some[:50, 0] = torch.nan
    half = likelihood_p_value(simulator, some, x, replicated)
    assert half[1] == p[1]
    assert float(half[0]) == pytest.approx(float(p[0]), abs=0.3)
    assert bool(likelihood_p_value(simulator, theta * torch.nan, x, replicated).isnan().all())
    assert float(distance_p_value(x["x"][0] * torch.nan, replicated["x"][:, 0])) == 1 / 51


class MayFail(LinearGaussian):
    """A share of simulations fails by chance, and every one whose first parameter is above `broken`."""

    how: str
    share: float = 0.0
    broken: float = torch.inf

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        x = super().simulate(theta, context, generator=generator)["x"]
        bad = (torch.remainder(1e4 * x[:, 0], 1.0) < self.share) | (theta[:, 0] > self.broken)
        if self.how == "raises" and bool(bad.any()):
            raise RuntimeError("the disc is unstable")
        return {"x": torch.where(bad[:, None], torch.nan, x)}


class WithReasons(MayFail):
    def simulate_with_reasons(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> tuple[Data, dict[int, Failure]]:
        x = self.simulate(theta, context, generator=generator)
        bad = x["x"].isnan().any(1).nonzero()[:, 0].tolist()
        return x, {row: Failure(FailureCode.TIME_LIMIT, "./disc: killed after 60 s") for row in bad}


def failing(how: str, **options: float) -> MayFail:
    simulator = (WithReasons if how == "reasons" else MayFail)(size=40)
    simulator.how = how
    for name, value in options.items():
        setattr(simulator, name, value)
    return simulator


@pytest.mark.parametrize("how", ["nan", "reasons", "raises"])
def test_replicates_that_fail_are_left_out_and_counted(how: str) -> None:
    """A tenth fails at random: the p-values stay what they are within their Monte Carlo error."""
    _, theta, x = linear_gaussian(rows=3)
    whole = predictive_check(failing(how), theta, x, generator=stream(4), least_replicates=400)
    assert whole.failed.tolist() == [0, 0, 0]
    check = predictive_check(failing(how, share=0.1), theta, x, generator=stream(4), least_replicates=400)
    assert check.failed.sum() == pytest.approx(0.1 * 3 * 400, abs=5 * math.sqrt(0.09 * 1200))
    assert check.reason == ("", "", "")
    assert bool(check.p_value["x"].isfinite().all())
    error = 2 * math.sqrt(2 * 0.25 / 360)  # of the difference of two two-sided p-values at worst
    torch.testing.assert_close(check.p_value["log_likelihood"], whole.p_value["log_likelihood"], rtol=0, atol=5 * error)


@pytest.mark.parametrize("how", ["nan", "reasons", "raises"])
def test_an_observation_whose_replicates_fail_costs_no_other_its_p_value(how: str) -> None:
    _, theta, x = linear_gaussian(rows=3)
    theta = theta.clone()
    theta[:, 1, 0] = 100.0
    check = predictive_check(failing(how, broken=50.0), theta, x, generator=stream(4), least_replicates=400)
    assert check.failed.tolist() == [0, 400, 0]
    assert check.reason[0] == check.reason[2] == ""
    said = {
        "nan": "x is NaN or infinite",
        "reasons": "./disc: killed after 60 s",
        "raises": "RuntimeError: the disc is unstable",
    }
    assert check.reason[1] == f"predictive check: 400 of 400 replicates failed, too few are left: {said[how]}"
    for p in check.p_value.values():
        assert p.isnan().tolist() == [False, True, False]


def test_a_simulator_that_always_raises_is_not_called_for_every_replicate() -> None:
    calls = []

    class Dead(LinearGaussian):
        def simulate(self, theta: Tensor, context: object = None, *, generator: torch.Generator) -> Data:
            calls.append(len(theta))
            raise OSError("./disc: cannot be started")

    _, theta, x = linear_gaussian(rows=1)
    check = predictive_check(Dead(size=40), theta, x, generator=stream(4), least_replicates=1_000)
    assert check.failed.tolist() == [1_000]
    assert "OSError: ./disc: cannot be started" in check.reason[0]
    assert len(calls) == 101  # all at once, then one at a time until a hundred have failed


def test_a_likelihood_that_raises_for_one_observation_costs_no_other_its_p_value() -> None:
    class Picky(LinearGaussian):
        def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
            if bool((x["x"].abs() > 1e6).any()):
                raise np.linalg.LinAlgError("the matrix is singular")
            return super().log_likelihood(theta, x)

    _, theta, x = linear_gaussian(rows=3)
    x = {"x": x["x"] * torch.tensor([[1.0], [1e9], [1.0]], dtype=torch.float64)}
    check = predictive_check(Picky(size=40), theta, x, generator=stream(4), least_replicates=200)
    assert check.reason[0] == check.reason[2] == ""
    assert "the matrix is singular" in check.reason[1]
    assert bool(check.p_value["log_likelihood"][[0, 2]].isfinite().all())


def test_absolute_velocities_are_as_likely_as_relative_ones() -> None:
    """-33 km/s, simulated offsets of 5 m/s: the likelihood marginalises them, nothing is flagged."""
    simulator, theta, x = velocities(60)
    relative = predictive_check(simulator, theta, x, generator=stream(5))
    absolute = predictive_check(simulator, theta, x | {"velocity": x["velocity"] - 33_000.0}, generator=stream(5))
    for name, p in relative.p_value.items():
        torch.testing.assert_close(absolute.p_value[name], p, rtol=0, atol=0.005)  # ranks among 500, two at most
    assert share(absolute.p_value["velocity"], 0.005) < 0.05


def test_the_real_star_is_explained_by_its_posterior(root: Path, reference: Path) -> None:
    """K2-24, with the posterior of an independent sampler: honest as it is, flagged with its noise or unit spoiled."""
    run = Run(load_case(root / "configs/k2_24.yaml"), root / "runs/none")
    import h5py

    with h5py.File(reference / "observations/radial_velocity/k2_24_reference_posterior.h5") as file:
        samples = torch.from_numpy(np.asarray(file["samples"], dtype=np.float64))
    theta = samples[torch.randperm(len(samples), generator=stream(7))[:1_000], None]
    x = read_data(root / "data/k2_24.h5", observables=run.simulator.observables).x

    def p_values(velocity: Tensor) -> list[float]:
        check = predictive_check(run.simulator, theta, x | {"velocity": velocity}, generator=stream(8))
        return [float(p) for p in check.p_value.values()]

    assert min(p_values(x["velocity"])) > 0.05
    assert max(p_values(1_000 * x["velocity"])) < 0.003
    planet = 30 * torch.sin(2 * math.pi * x["time"] / 7.3)
    assert max(p_values(x["velocity"] + planet)) < 0.003


@pytest.mark.parametrize("value", [0.0, 1e-22, 2_457_000.3, 1e44])
def test_what_is_the_same_in_all_replicates_and_another_number_in_the_observation_is_far_in_any_unit(
    value: float,
) -> None:
    drawn = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn[:, 1] = value
    observed = torch.zeros(3, dtype=torch.float64)
    observed[1] = value * (1 + 1e-15)
    assert float(distance_p_value(observed, drawn)) > 0.05
    observed[1] = value * (1 + 1e-9) if value else 1e-200
    assert float(distance_p_value(observed, drawn)) < 0.006


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_distances_of_replicates_do_not_depend_on_the_unit(scale: float) -> None:
    drawn = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for observed in (torch.zeros(3).double(), torch.full((3,), 1.5).double(), torch.full((3,), 9.0).double()):
        assert distance_p_value(scale * (1e9 + observed), scale * (1e9 + drawn)) == pytest.approx(
            float(distance_p_value(observed, drawn)), abs=0.006
        )
