"""The likelihood against SciPy and exact grids; robustness; what networks read; observed files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from benchmarks.supernova_grid import grid_posterior, moduli
from simulators.priors import prior_of, sample
from simulators.protocol import Data
from simulators.supernova_cosmology import SupernovaCosmology

SMALL: dict[str, Any] = {"count": 12, "design": {"missing": 0.3}}
CELLS = {"lcdm": 300, "wcdm": 60}


def surveys(rows: int = 5, seed: int = 1, **options: Any) -> tuple[SupernovaCosmology, torch.Tensor, Data]:
    simulator = SupernovaCosmology(**(SMALL | options))
    stream = torch.Generator().manual_seed(seed)
    theta = sample(prior_of(simulator), rows, stream)
    return simulator, theta, simulator.simulate(theta, generator=stream)


def one_survey(x: Data, n: int) -> dict[str, np.ndarray]:
    """Those present, as NumPy arrays."""
    there = x["present"][n].numpy() > 0.5
    arrays = {k: x[k][n].numpy()[there] for k in ("redshift", "heliocentric_redshift", "magnitude")}
    return arrays | {"covariance": x["covariance"][n].numpy()[np.ix_(there, there)]}


def test_the_likelihood_of_a_sampled_offset_is_scipys() -> None:
    simulator, theta, x = surveys(model="wcdm", offset="sampled")
    ours = simulator.log_likelihood(theta, x)
    for n in range(len(theta)):
        one = one_survey(x, n)
        mean = moduli(theta[n, None, :2].numpy(), one)[0] + float(theta[n, 2])
        expected = multivariate_normal.logpdf(one["magnitude"], mean, one["covariance"])  # pyright: ignore[reportArgumentType]
        assert float(ours[n]) == pytest.approx(expected, abs=1e-6)


def test_marginalising_is_integrating_over_the_offset_with_density_one() -> None:
    sampled, theta, x = surveys(rows=3, model="wcdm", offset="sampled")
    marginal = SupernovaCosmology(**SMALL, model="wcdm")
    offsets = theta[:, 2] + torch.linspace(-1.5, 1.5, 30_001, dtype=torch.float64)[:, None]
    points = torch.cat([theta[:, :2].expand(len(offsets), -1, -1), offsets[..., None]], dim=-1)
    density = sampled.log_likelihood(points, x)
    peak = density.amax(0)
    integral = torch.trapezoid((density - peak).exp(), dx=1e-4, dim=0).log() + peak
    torch.testing.assert_close(marginal.log_likelihood(theta[:, :2], x), integral, atol=1e-6, rtol=0)


@pytest.mark.parametrize("likelihood", ["student_t", "mixture"])
def test_robust_likelihoods_have_integral_one(likelihood: str) -> None:
    """Of two correlated supernovae, over a grid of their magnitudes."""
    priors = {"freedom": 8} if likelihood == "student_t" else {"outlier_fraction": 0.1}
    design = {"error": 0.05, "error_trend": 0, "systematic": 1, "first": 0.05}
    simulator, theta, x = surveys(
        1, count=2, model="lcdm", offset="sampled", likelihood=likelihood, priors=priors, design=design
    )
    step, center = 0.04, x["magnitude"][0]
    axis = torch.arange(-5, 5, step, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1) + center
    rows = {k: v.expand(len(grid), *v.shape[1:]) for k, v in x.items()} | {"magnitude": grid}
    total = simulator.log_likelihood(theta.expand(len(grid), -1), rows).exp().sum() * step**2
    assert float(total) == pytest.approx(1, abs=0.01)  # tails of t_8 beyond 5 mag, and a step of half a width


def test_an_outlier_moves_a_robust_fit_less() -> None:
    truth = torch.tensor([[0.3, 23.8]], dtype=torch.float64)
    shifts = {}
    for likelihood in ("gaussian", "student_t", "mixture"):
        priors = {"outlier_fraction": 0.05} if likelihood == "mixture" else {}
        options = {
            "model": "lcdm",
            "offset": "sampled",
            "likelihood": likelihood,
            "priors": priors,
            "design": {"error": 0.02},
        }
        simulator = SupernovaCosmology(**options)
        x = SupernovaCosmology(**(options | {"likelihood": "gaussian", "priors": {}})).simulate(
            truth, generator=torch.Generator().manual_seed(4)
        )
        before, width = simulator.pilot(x)
        x["magnitude"][0, 30] += 1.0
        shifts[likelihood] = float(((simulator.pilot(x)[0] - before) / width).abs()[0, 0])
    assert shifts["gaussian"] > 1
    assert max(shifts["student_t"], shifts["mixture"]) < 0.5 * shifts["gaussian"]


@pytest.mark.parametrize("offset", ["marginalised", "sampled"])
def test_absent_supernovae_do_not_matter(offset: str) -> None:
    simulator, theta, x = surveys(model="w0wa", offset=offset)
    absent = x["present"] < 0.5
    assert bool(absent.any())
    other = {k: v.clone() for k, v in x.items()}
    for name in ("redshift", "heliocentric_redshift", "magnitude"):
        other[name][absent] = 0.77
    other["covariance"][absent] = 3.0
    other["covariance"].mT[absent] = 3.0
    for method in (simulator.features, lambda v: simulator.log_likelihood(theta, v), lambda v: simulator.pilot(v)[0]):
        torch.testing.assert_close(method(other), method(x), atol=1e-8, rtol=1e-8)


def test_a_marginalised_offset_is_invisible() -> None:
    simulator, theta, x = surveys(model="wcdm")
    moved = x | {"magnitude": torch.where(x["present"] > 0.5, x["magnitude"] + 19.3, 0.0)}
    torch.testing.assert_close(simulator.features(moved), simulator.features(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(simulator.log_likelihood(theta, moved), simulator.log_likelihood(theta, x))
    grid = torch.tensor([0.1, 1.0], dtype=torch.float64)
    one, other = ({k: v[:1] for k, v in d.items()} for d in (x, moved))
    curves = simulator.model_curve(theta, other, grid) - simulator.model_curve(theta, one, grid)
    torch.testing.assert_close(curves, torch.full_like(curves, 19.3))


def test_no_big_bang_is_likelihood_zero_and_gradient_zero() -> None:
    simulator, _, x = surveys(1, model="open_lcdm", priors={"Ode": {"uniform": [0, 3]}})
    theta = torch.tensor([[0.1, 2.5]], dtype=torch.float64, requires_grad=True)
    value = simulator.log_likelihood(theta, x)
    assert value.tolist() == [-torch.inf]
    (gradient,) = torch.autograd.grad(value.sum(), theta)
    assert gradient.abs().max() == 0
    assert bool(simulator.features(x).isfinite().all())


@pytest.mark.parametrize("model", ["lcdm", "wcdm"])
def test_the_pilot_finds_the_posterior_of_the_grid(model: str) -> None:
    """Within half a width of the exact mean, and a width right to a third: a first guess."""
    simulator, theta, x = surveys(3, seed=3, count=40, model=model, design={"error": 0.02, "systematic": 0.3})
    names = tuple(p.name for p in simulator.parameters)
    location, scale = simulator.pilot(x)
    for n in range(len(theta)):
        grid = grid_posterior(one_survey(x, n), names, cells=CELLS[model])
        u = np.log(grid.points[:, 0] / (1 - grid.points[:, 0]))  # Om: uniform on 0..1
        mean = grid.weight @ u
        width = np.sqrt(grid.weight @ (u - mean) ** 2)
        if model == "lcdm":
            assert abs(float(location[n, 0]) - mean) < 0.5 * width
            assert float(scale[n, 0]) == pytest.approx(width, rel=0.35)
        else:  # a bent posterior with a long tail to small Om: the guess is inside it
            assert abs(float(location[n, 0]) - mean) < 1.5 * width


def test_pantheon(reference: Path) -> None:
    """The grid of this file's evidence and moments are those of the reference; our density is the grid's, constant included."""
    path = reference / "observations/pantheon/pantheon_binned.h5"
    for model, expected in (("lcdm", [(0.2974, 0.0218)]), ("wcdm", [(0.314, 0.075), (-1.091, 0.221)])):
        simulator = SupernovaCosmology(model=model)
        x, ids = simulator.read_observation(path)
        assert ids == ["pantheon_binned"]
        grid = grid_posterior(one_survey(x, 0), tuple(p.name for p in simulator.parameters), cells=CELLS[model])
        for found, wanted in zip(np.transpose(grid.moments()), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1.5e-3)  # theirs are rounded, on a grid of their own
        some = np.flatnonzero(grid.weight > 1e-12)[::7]
        ours = simulator.log_likelihood(torch.from_numpy(grid.points[some])[:, None], x)[:, 0].numpy()
        log_likelihood = np.log(grid.weight[some]) + grid.log_evidence + np.log(len(grid.points))
        np.testing.assert_allclose(ours, log_likelihood, atol=1e-6)


def test_a_smaller_survey_is_filled_up_and_a_larger_one_refused(reference: Path) -> None:
    folder = reference / "observations/pantheon"
    theta = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    exact, filled = SupernovaCosmology(model="wcdm"), SupernovaCosmology(model="wcdm", count=50)
    (x, _), (more, _) = exact.read_observation(folder), filled.read_observation(folder)
    assert more["present"].sum() == 40
    torch.testing.assert_close(filled.log_likelihood(theta, more), exact.log_likelihood(theta, x))
    with pytest.raises(ValueError, match="has 40 supernovae, the simulator 30: set its option count to 40"):
        SupernovaCosmology(count=30).read_observation(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "cdm"}, "model: expected one of lcdm, open_lcdm"),
        ({"offset": "free"}, "offset: expected one of marginalised, sampled"),
        ({"likelihood": "student_t"}, "set offset: sampled"),
        ({"count": 1}, "a whole number from 2 up"),
        ({"priors": {"w": {"uniform": [-2, 0]}}}, "no key 'w'"),
        ({"priors": {"Om": 0.3}}, "nothing is free"),
        ({"priors": {"Om": {"unifrom": [0, 1]}}}, "supernova_cosmology: Om: unknown distribution"),
        (
            {"likelihood": "mixture", "offset": "sampled", "priors": {"outlier_width": 0.5}},
            "outlier_width: expected a number above 1",
        ),
        ({"likelihood": "student_t", "offset": "sampled", "priors": {"freedom": -1}}, "freedom: expected a value"),
        (
            {"likelihood": "student_t", "offset": "sampled", "priors": {"freedom": {"normal": [4, 2]}}},
            "freedom: expected a value between 0 and inf",
        ),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupernovaCosmology(**options)
