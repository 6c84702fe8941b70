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
    values = torch.tensor([p_of("none", seed) for seed in range(60)])
    # binomial of 60: more than 3 at 1 % once in 300; fewer than 5 or more than 26 at 25 % once in 1,000
    assert int((values < 0.01).sum()) <= 3
    assert 5 <= int((values < 0.25).sum()) <= 26


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
    assert effect(v, v[0, 0], torch.zeros_like(theta)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("scale", "offset", "shift", "width"),
    [(1.0, 0.0, 0.0, 1.0), (1.4, 0.0, 0.0, 1.4), (1.0, 1.0, 1.0, 1.0), (1.4, 1.4, 1.0, 1.4)],
)
@pytest.mark.parametrize(("size", "dimension"), [(1, 1), (5, 3), (16, 6)])
def test_the_effect_is_that_of_the_closed_form_where_all_is_normal(
    scale: float, offset: float, shift: float, width: float, size: int, dimension: int
) -> None:
    """Flat prior: noise 1.4 times too wide gives a posterior 1.4 times too wide, an offset one as far off."""
    found = []
    for seed in range(6):
        stream = torch.Generator().manual_seed(seed)
        slope = torch.linalg.qr(normal(size, dimension, stream=stream))[0]
        observed = normal(size, stream=stream)
        theta = (observed - offset * slope[:, 0]) @ slope + scale * normal(COUNT, dimension, stream=stream)
        mean = theta @ slope.T + offset * slope[:, 0]
        drawn = mean[:, None] + scale * normal(COUNT, DRAWN, size, stream=stream)
        simulated = theta @ slope.T + normal(COUNT, size, stream=stream)
        found.append(effect(torch.cat([simulated[:, None], drawn], 1), observed, theta))
    mean_shift, mean_width = (sum(f) / len(found) for f in zip(*found, strict=True))
    assert mean_shift == pytest.approx(shift, abs=0.35)  # at 16 numbers one run scatters by 0.28; squares add to it
    assert mean_width == pytest.approx(width, rel=0.3)  # an offset of one number is seen in its square too
