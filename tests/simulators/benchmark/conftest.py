"""What the tests of the benchmark tasks share: reference posteriors, and identities that draws must satisfy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch import Tensor

from simulators.priors import prior_of, sample
from simulators.protocol import Data, Simulator

OBSERVATIONS = (1, 2, 3, 4, 5)


@pytest.fixture(scope="session")
def observed(reference: Path) -> Callable[..., list[tuple[Tensor, Data, Tensor]]]:
    """(theta_true (D,), x of one row, reference posterior (K, D)) for each observation of a task."""

    def read(task: str, *, dataset: str = "x") -> list[tuple[Tensor, Data, Tensor]]:
        with h5py.File(reference / "reference" / f"{task}.h5") as file:
            groups: list[Any] = [file[f"observation_{n:02d}"] for n in OBSERVATIONS]
            arrays = [
                [torch.from_numpy(g[k][()]).double() for k in ("theta_true", dataset, "reference_posterior")]
                for g in groups
            ]
        return [(theta, {"x": x[None, :]}, draws) for theta, x, draws in arrays]

    return read


def _score(simulator: Any, theta: Tensor, x: Data) -> Tensor:
    """Gradient of log_joint, theta (K, D) against one row -> (K, D)."""
    theta = theta.detach().requires_grad_()
    log_likelihood = simulator.log_likelihood(theta[:, None, :], x)[:, 0]
    log_joint = log_likelihood + prior_of(simulator).log_prob(theta)
    return torch.autograd.grad(log_joint.sum(), theta)[0]


@pytest.fixture(scope="session")
def stein() -> Callable[..., Tensor]:
    r"""Deviations, in standard errors, of two identities that hold if the draws follow exp(log_joint).

    With s the gradient of log_joint and any f that vanishes at the edge of the support,
    $< f_d s_d + df_d/d\theta_d > = 0$. Here $f = w$ and $f = w (\theta - m)$, with $w = 1$ on the whole real
    line, $b^2 - \theta^2$ on [-b, b], and $\theta$ on the positive numbers (which is log theta with its
    Jacobian); m is about the mean. The second is < s (theta - m) > = -1 in disguise: it sees a wrong width.
    """

    def deviations(
        simulator: Simulator, x: Data, draws: Tensor, *, bound: float | None = None, positive: bool = False
    ) -> Tensor:
        score = _score(simulator, draws, x)
        if positive:
            weight, slope = draws, torch.ones_like(draws)
            coordinate, rate = draws.log(), 1 / draws
        else:
            weight = torch.ones_like(draws) if bound is None else bound**2 - draws.square()
            slope = torch.zeros_like(draws) if bound is None else -2 * draws
            coordinate, rate = draws, torch.ones_like(draws)
        centered = coordinate - coordinate.mean(0)
        first = weight * score + slope
        second = centered * first + weight * rate
        terms = torch.cat([first, second], dim=1)
        return terms.mean(0) / (terms.std(0) / len(terms) ** 0.5)

    return deviations


@pytest.fixture(scope="session")
def score_at_truth() -> Callable[..., Tensor]:
    """Deviations, in standard errors, of < d log p(x|theta) / d theta > = 0 over x simulated at one theta, (D,)."""

    def deviations(simulator: Any, theta: Tensor, *, count: int = 20000) -> Tensor:
        rows = theta.expand(count, -1).clone().requires_grad_()
        x = simulator.simulate(rows.detach(), generator=torch.Generator().manual_seed(1))
        (score,) = torch.autograd.grad(simulator.log_likelihood(rows, x).sum(), rows)
        return score.mean(0) / (score.std(0) / count**0.5)

    return deviations


@pytest.fixture(scope="session")
def cell_deviation() -> Callable[..., float]:
    r"""How far draws are from exp(log_joint) in two dimensions: chi-squared over cells, in its standard deviations.

    The box given holds the posterior; it is cut into cells x cells, each cell's mass summed over fine x fine
    midpoints. Cells that expect fewer than five draws are left out of chi-squared.
    """

    def deviation(
        simulator: Any, x: Data, draws: Tensor, low: Tensor, high: Tensor, *, cells: int = 12, fine: int = 20
    ) -> float:
        size = cells * fine
        midpoints = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        theta = low + (high - low) * torch.cartesian_prod(midpoints, midpoints)
        log_joint = simulator.log_likelihood(theta[:, None, :], x)[:, 0] + prior_of(simulator).log_prob(theta)
        mass = torch.softmax(log_joint, 0).reshape(cells, fine, cells, fine).sum((1, 3)).flatten()
        inside = ((draws > low) & (draws < high)).all(1)
        assert float(inside.double().mean()) > 0.999
        place = ((draws[inside] - low) / (high - low) * cells).long()
        counts = (place[:, 0] * cells + place[:, 1]).bincount(minlength=cells**2)
        expected = mass * int(inside.sum())
        large = expected > 5
        chi2 = ((counts - expected).square() / expected)[large].sum()
        freedom = int(large.sum()) - 1
        return float((chi2 - freedom) / (2 * freedom) ** 0.5)

    return deviation


@pytest.fixture(scope="session")
def draw() -> Callable[..., tuple[Tensor, Data]]:
    """theta from the prior and x of it."""

    def pair(simulator: Simulator, count: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Data]:
        generator = torch.Generator().manual_seed(5)
        theta = sample(prior_of(simulator), count, generator).to(dtype)
        return theta, simulator.simulate(theta, generator=generator)

    return pair
