"""The search against densities whose optima and masses are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from benchmarks.problems.two_modes import TwoModes, TwoPhases
from pipeline.diagnostics.landscape import Landscape
from pipeline.diagnostics.mode_search import Optima, choose_starts, climb, find_optima, screen
from pipeline.diagnostics.particles import anneal
from simulators.benchmark.slcp import Slcp
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of
from simulators.protocol import Data


def landscape_of(simulator: Any, x: Data) -> tuple[Landscape, torch.Generator]:
    stream = torch.Generator().manual_seed(3)
    return Landscape(simulator, prior_of(simulator), x, generator=stream), stream


def optima_of(simulator: Any, x: Data, *, starts: int = 128, steps: int = 150) -> tuple[Landscape, Optima]:
    landscape, stream = landscape_of(simulator, x)
    w, log_likelihood = screen(landscape, starts, generator=stream)
    first = choose_starts(w, log_likelihood, starts, generator=stream)
    return landscape, find_optima(landscape, *climb(landscape, first, steps=steps))


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_the_mass_of_a_gaussian_is_its_evidence() -> None:
    simulator = LinearGaussian(dimension=4, size=6, noise_scale=0.2)
    x = simulator.simulate(row(0.4, -1.0, 0.2, 2.0), generator=torch.Generator().manual_seed(1))
    landscape, optima = optima_of(simulator, x)
    assert len(optima) == 1
    assert float(optima.log_mass[0]) == pytest.approx(float(simulator.log_evidence(x["x"])), abs=1e-3)
    exact = simulator.posterior(x["x"])
    torch.testing.assert_close(landscape.to_theta(optima.w[0])[0], exact.mean[0], atol=1e-4, rtol=0)
    covariance = landscape.scale[:, None] * optima.covariance[0] * landscape.scale
    torch.testing.assert_close(covariance, exact.covariance_matrix.reshape(-1, 4, 4)[0], atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("width", [1e-6, 1e-9])
def test_a_posterior_that_is_a_millionth_of_its_prior(width: float) -> None:
    """Adam stops a thousandth of the prior away; Newton's steps do the rest."""
    simulator = TwoModes(dimension=2, share=0.0, width=width)
    landscape, optima = optima_of(simulator, {"x": row(1.25, -0.5)}, starts=64)
    theta = landscape.to_theta(optima.w[0])[0]
    torch.testing.assert_close(theta, row(1.25, -0.5)[0], atol=0.1 * width, rtol=0)
    assert float(optima.log_mass[0]) == pytest.approx(-2 * math.log(6), abs=0.05)


def test_data_that_no_prior_draw_explains() -> None:
    """x = theta + n with y = 1e5: the optimum is 50,000 prior widths away, where Newton's steps grow to reach it."""
    simulator = LinearGaussian(dimension=1, size=1, noise_scale=1.0)
    x = {"x": row(1e5)}
    landscape, optima = optima_of(simulator, x, starts=64)
    exact = simulator.posterior(x["x"])
    torch.testing.assert_close(landscape.to_theta(optima.w[0])[0], exact.mean[0], atol=1e-2, rtol=0)
    assert float(optima.log_mass[0]) == pytest.approx(float(simulator.log_evidence(x["x"])), abs=0.01)


def test_all_four_modes_of_slcp() -> None:
    simulator = Slcp()
    x = simulator.simulate(row(0.7, -2.9, -1.2, -0.9, 0.6), generator=torch.Generator().manual_seed(2))
    landscape, optima = optima_of(simulator, x)
    theta = landscape.to_theta(optima.w[:4])[0]
    signs = {tuple(s) for s in theta[:, 2:4].sign().tolist()}
    assert signs == {(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)}
    torch.testing.assert_close(optima.log_mass[:4], optima.log_mass[0].expand(4), atol=1e-2, rtol=0)


def test_a_narrow_spike_is_met_by_one_prior_draw_in_thousands() -> None:
    """A fifth of the posterior in a spike a tenth as wide as the rest of it, whose basin is a 2,000th of the prior."""
    simulator = TwoModes(dimension=2, share=0.2, width=0.3, second_width=0.03)
    _, optima = optima_of(simulator, {"x": row(1.4, -1.9)}, starts=256)
    shares = (optima.log_mass + 2 * math.log(6)).exp()
    spike, rest = sorted(float(s) for s in shares[:2])
    assert spike == pytest.approx(0.2, abs=0.01)
    assert rest == pytest.approx(0.8, abs=0.1)  # wide in logits: no Gaussian


def test_both_ends_of_a_circle() -> None:
    """Phases 0.05 and pi + 0.05: one lies at the cut of the circle."""
    simulator = TwoPhases()
    landscape, optima = optima_of(simulator, {"x": row(math.cos(0.1), math.sin(0.1))})
    assert len(optima) == 2
    phases = landscape.to_theta(optima.w)[0][:, 0].sort().values
    torch.testing.assert_close(phases, row(0.05, math.pi + 0.05)[0], atol=1e-2, rtol=0)
    assert float((optima.log_mass[0] - optima.log_mass[1]).abs()) < 1e-3


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_particles_need_no_gradient_and_keep_the_shares(share: float) -> None:
    """1,000 particles are resampled some 15 times: their shares scatter by several per cent over seeds."""
    simulator = TwoModes(dimension=3, share=share, gradient=False)
    landscape, stream = landscape_of(simulator, {"x": row(1.4, -1.9, 0.8)})
    w, log_likelihood = screen(landscape, 256, generator=stream)
    assert not landscape.is_differentiable(w[:16])
    particles = anneal(landscape, w, log_likelihood, 1_000, generator=stream)
    theta = landscape.to_theta(particles)[0]
    assert float((theta[:, 0] < 0).double().mean()) == pytest.approx(share, abs=0.15)
    near = torch.minimum((theta - row(1.4, -1.9, 0.8)).abs(), (theta + row(1.4, -1.9, 0.8)).abs())
    assert float(near.max()) < 0.6  # six widths


def test_starts_where_the_likelihood_is_zero_are_no_starts() -> None:
    landscape, stream = landscape_of(TwoModes(dimension=2), {"x": row(1.0, 1.0)})
    w = landscape.draw_prior(1_000, stream)
    log_likelihood = torch.where(torch.arange(1_000) < 990, -torch.inf, 0.0).double()
    starts = choose_starts(w, log_likelihood, 64, generator=stream)
    assert len(starts) == 10
    assert not len(anneal(landscape, w, torch.full_like(log_likelihood, -torch.inf), 100, generator=stream))
