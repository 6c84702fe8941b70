from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.estimators.summary import (
    Summary,
    SummaryShape,
    chosen_kind,
    examine,
    fit_components,
    numbers_of,
    summary_size,
)
from pipeline.likelihood_settings import SummarySettings
from simulators.linear_gaussian import LinearGaussian
from simulators.protocol import Data


class Counts(LinearGaussian):
    """Its data declared to be whole numbers, or not."""

    def __init__(self, *, discrete: bool) -> None:
        super().__init__()
        self.observables = tuple(replace(o, discrete=discrete) for o in self.observables)


def summary_of(columns: Tensor, kind: str = "none") -> Summary:
    """A summary fitted to given columns (N, S)."""
    count = columns.shape[1]
    summary = Summary(SummaryShape(kind, count, count, count), SummarySettings(), LinearGaussian())
    summary.fit_scale(columns)
    return summary


def test_a_skewed_positive_number_is_read_as_its_logarithm_and_the_jacobian_is_counted() -> None:
    stream = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, 2, generator=stream, dtype=torch.float64)
    columns = torch.stack([(1.0 + 2.0 * normal[:, 0]).exp(), 5.0 + 3.0 * normal[:, 1]], 1)
    summary = summary_of(columns)
    assert summary.logged.tolist() == [True, False]
    v, log_det = summary.standardized(columns)
    # medians and half widths of 20,000 draws: 1.25/sqrt(20,000) and alike
    assert torch.allclose(v, normal, atol=0.1)
    density = (torch.distributions.Normal(0.0, 1.0).log_prob(v).sum(-1) + log_det)[:100]
    exact = torch.distributions.LogNormal(1.0, 2.0).log_prob(columns[:100, 0]) + torch.distributions.Normal(
        5.0, 3.0
    ).log_prob(columns[:100, 1])
    assert (density - exact).abs().max() < 0.3
    point = columns[:1].clone().requires_grad_(True)
    slopes = [torch.autograd.grad(summary.standardized(point)[0][0, d], point)[0][0, d] for d in range(2)]
    assert float(log_det[0]) == pytest.approx(float(torch.stack(slopes).log().sum()), abs=1e-10)


def test_a_number_that_must_be_positive_and_is_not_is_far_out_and_finite() -> None:
    columns = torch.rand(1_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).pow(8) + 1e-6
    summary = summary_of(columns)
    assert summary.logged.tolist() == [True]
    v, log_det = summary.standardized(torch.tensor([[-1.0], [float(columns.min())]], dtype=torch.float64))
    assert v.isfinite().all()
    assert log_det.isfinite().all()
    assert v[0] < v[1]


# ------------------------------------------------------------ what has no density


def whole(rows: int = 500) -> Tensor:
    return torch.poisson(torch.full((rows, 2), 3.0, dtype=torch.float64), generator=torch.Generator().manual_seed(2))


def normal(rows: int = 500) -> Tensor:
    return torch.randn(rows, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_undeclared_whole_numbers_are_refused_and_declared_ones_are_known() -> None:
    columns = torch.cat([whole(), normal()], 1)
    with pytest.raises(InputError, match=r"2 of 3 numbers of the data are whole .*discrete=True"):
        examine(Counts(discrete=False), "none", columns)
    kept, is_whole = examine(Counts(discrete=True), "none", columns)
    assert kept.tolist() == [0, 1, 2]
    assert is_whole.tolist() == [True, True, False]


def test_few_values_that_are_not_whole_are_refused_declared_or_not() -> None:
    with pytest.raises(InputError, match="scale them to whole numbers"):
        examine(Counts(discrete=True), "none", whole() / 7)


def test_what_never_varies_is_left_out_and_nothing_at_all_is_refused() -> None:
    columns = torch.cat([torch.ones(500, 1, dtype=torch.float64), normal()], 1)
    assert examine(LinearGaussian(), "none", columns)[0].tolist() == [1]
    with pytest.raises(InputError, match="no number of the summary varies"):
        examine(LinearGaussian(), "none", columns[:, :1])


def test_cells_fill_the_unit_cell_of_whole_numbers_only() -> None:
    summary = summary_of(torch.cat([whole(), normal()], 1))
    assert summary.cells(8).shape == (1, 3)
    summary.whole.copy_(torch.tensor([True, True, False]))
    cells = summary.cells(256)
    assert torch.equal(cells, summary.cells(256))
    assert (cells[:, 2] == 0).all()
    assert torch.allclose(cells[:, :2].mean(0), torch.full((2,), 0.5, dtype=torch.float64), atol=0.01)
    noise = summary.noise(1_000, torch.Generator().manual_seed(4))
    assert isinstance(noise, Tensor)
    assert (noise[:, 2] == 0).all()
    assert float(noise[:, :2].mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 2_000))


# ------------------------------------------------------------ kinds


class Images(LinearGaussian):
    """More data numbers than `auto` takes as they are."""

    def __init__(self) -> None:
        super().__init__(dimension=3, size=40)

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        return x["x"][:, :5]


@pytest.mark.parametrize(
    ("asked", "simulator", "kind"),
    [("auto", LinearGaussian(), "none"), ("auto", Images(), "learned"), ("pca", LinearGaussian(), "pca")],
)
def test_kinds(asked: Any, simulator: Any, kind: str) -> None:
    assert chosen_kind(SummarySettings(kind=asked), simulator) == kind


def test_features_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="has no features"):
        chosen_kind(SummarySettings(kind="features"), LinearGaussian())
    assert numbers_of("features", Images(), data(Images())).shape == (64, 5)


def data(simulator: Any, rows: int = 64) -> Data:
    stream = torch.Generator().manual_seed(5)
    theta = torch.randn(rows, len(simulator.parameters), generator=stream, dtype=torch.float64)
    return simulator.simulate(theta, generator=stream)


def test_size_of_a_summary() -> None:
    assert summary_size(SummarySettings(), Images()) == 6
    assert summary_size(SummarySettings(size=4), Images()) == 4


def test_principal_components_of_a_line() -> None:
    t = torch.randn(4_000, 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    numbers = torch.cat([t, 10 * t, -t], 1) + 0.01
    center, components = fit_components(numbers, 1)
    s = (numbers - center) @ components
    assert abs(float(torch.corrcoef(torch.cat([s, t], 1).T)[0, 1])) > 0.9999


# ------------------------------------------------------------ the digest


def test_without_compression_the_digest_is_that_of_the_data_whatever_was_learned() -> None:
    one, two = summary_of(normal()), summary_of(3 + normal())
    assert one.digest(LinearGaussian()) == two.digest(LinearGaussian())
    assert one.digest(LinearGaussian()) != one.digest(Images())


def test_with_compression_the_digest_is_that_of_the_weights() -> None:
    shape = SummaryShape("pca", 40, 2, 2)
    one, two = (Summary(shape, SummarySettings(), Images()) for _ in range(2))
    assert one.digest(Images()) == two.digest(Images())
    two.components[0, 0] = 1.0
    assert one.digest(Images()) != two.digest(Images())
    two.components[0, 0] = 0.0
    two.fit_scale(torch.cat([normal(), normal() + 3], 1))  # units of the flow are no part of s
    assert one.digest(Images()) == two.digest(Images())
