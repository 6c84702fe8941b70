"""The test by exchange on cases whose answer is known: v = A theta + noise, K = 400 simulations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.diagnostics.exchange import exchange_p_value, whitened, whitened_theta
from pipeline.diagnostics.surrogate_effect import effect

COUNT, DRAWN = 400, 19


def normal(*shape: int, stream: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


def case(wrong: str, seed: int, *, size: int = 4, dimension: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """v (K, L + 1, S), its log density under the density that drew it (K, L + 1), and theta (K, T)."""
    stream = torch.Generator().manual_seed(seed)
    theta = normal(COUNT, dimension, stream=stream)
    slope = torch.linalg.qr(normal(size, dimension, stream=stream))[0] if size > 1 else torch.ones(1, dimension)
    slope = slope.double()
    simulated, mean, scale = theta @ slope.T + normal(COUNT, size, stream=stream), theta @ slope.T, 1.0
    if wrong == "wide":
        scale = 1.4
    elif wrong == "shifted":
        mean = mean + slope[:, 0]
    elif wrong == "blind":
        mean = theta[:, 1:] @ slope[:, 1:].T
    elif wrong == "uncorrelated":
        common = normal(COUNT, 1, stream=stream)
        simulated = theta @ slope.T + 0.8 * normal(COUNT, size, stream=stream) + 0.6 * common
    drawn = mean[:, None] + scale * normal(COUNT, DRAWN, size, stream=stream)
    v = torch.cat([simulated[:, None], drawn], 1)
    return v, -((v - mean[:, None]) ** 2).sum(-1) / 2, theta


def p_of(wrong: str, seed: int, **sizes: int) -> float:
    return exchange_p_value(*case(wrong, seed, **sizes), generator=torch.Generator().manual_seed(seed))


def test_a_right_density_is_rejected_as_often_as_the_p_value_says() -> None:
    values = torch.tensor([p_of("none", seed) for seed in range(100)])
    # binomial of 100: more than 4 at 1 % once in 300, fewer than 12 or more than 39 at 25 % once in 1,000
    assert int((values < 0.01).sum()) <= 4
    assert 12 <= int((values < 0.25).sum()) <= 39


@pytest.mark.parametrize("wrong", ["wide", "shifted", "blind", "uncorrelated"])
@pytest.mark.parametrize(("size", "dimension"), [(4, 2), (12, 4)])
def test_every_wrong_is_found(wrong: str, size: int, dimension: int) -> None:
    assert p_of(wrong, 1, size=size, dimension=dimension) < 1e-3


def test_a_wrong_detail_is_found_beside_a_common_offset_a_thousand_times_larger() -> None:
    """Velocities with an unknown zero point: marginal ranks see the offset alone."""
    v, log_density, theta = case("shifted", 1)
    stream = torch.Generator().manual_seed(2)
    offset = 1e3 * normal(COUNT, DRAWN + 1, 1, stream=stream)
    assert exchange_p_value(v + offset, torch.zeros_like(log_density), theta, generator=stream) < 1e-3
    right = case("none", 1)[0] + offset
    assert exchange_p_value(right, torch.zeros_like(log_density), theta, generator=stream) > 0.01


def test_draws_that_are_no_numbers_or_far_away_end_nothing() -> None:
    v, log_density, theta = case("none", 3)
    v[5, 7] = torch.nan
    v[6, 3] = 1e30
    log_density[5, 7] = -torch.inf
    assert exchange_p_value(v, log_density, theta, generator=torch.Generator().manual_seed(1)) > 0.01


def test_one_theta_for_all_and_data_that_tie_are_no_error() -> None:
    v, log_density, theta = case("none", 4)
    v[..., 0] = v[..., 0].round()
    v[..., 1] = 3.0
    p = exchange_p_value(v, log_density, torch.zeros_like(theta), generator=torch.Generator().manual_seed(1))
    assert 0.01 < p <= 1
    assert whitened_theta(torch.zeros(9, 2)).shape == (9, 0)
    assert whitened(v).residual.shape[2] == 3
    assert effect(v, torch.zeros_like(theta)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("wrong", "shift", "width"),
    [("none", 0.0, 1.0), ("shifted", 1.0, 1.0)],
)
def test_the_effect_is_that_of_the_closed_form_where_all_is_normal(wrong: str, shift: float, width: float) -> None:
    """theta of the delivered posterior has precision 1 under a flat prior, as slope and noise here give it."""
    found = torch.tensor([effect(*case(wrong, seed)[::2]) for seed in range(8)]).mean(0)
    assert float(found[0]) == pytest.approx(shift, abs=0.1)  # 8 runs of 0.06 each, and the worst of two parameters
    assert float(found[1]) == pytest.approx(width, abs=0.12)


def test_a_likelihood_whose_noise_is_too_wide_gives_a_posterior_too_wide() -> None:
    """1.4 times the noise, under a flat prior: 1.4 times the width, and draws that are as wide."""
    found = []
    for seed in range(8):
        stream = torch.Generator().manual_seed(seed)
        theta = 1.4 * normal(COUNT, 1, stream=stream)
        drawn = theta[:, None] + 1.4 * normal(COUNT, DRAWN, 1, stream=stream)
        v = torch.cat([(theta + normal(COUNT, 1, stream=stream))[:, None], drawn], 1)
        found.append(effect(v, theta)[1])
    assert sum(found) / 8 == pytest.approx(1.4, abs=0.12)
