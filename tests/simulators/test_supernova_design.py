"""The family of surveys that is simulated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simulators.supernova_design import survey_design


def draw(spec: dict[str, Any] | None = None, count: int = 300) -> dict[str, torch.Tensor]:
    return survey_design(spec).draw(count, 40, generator=torch.Generator().manual_seed(1))


def test_surveys_are_ordered_and_their_covariances_positive() -> None:
    x = draw()
    assert bool((x["redshift"].diff(dim=1) > 0).all())
    assert float(x["redshift"].min()) > 0.005
    assert float(x["redshift"].max()) < 2.4
    assert float(torch.linalg.eigvalsh(x["covariance"]).min()) > 1e-6
    assert bool((x["present"] == 1).all())


def test_numbers_fix_what_ranges_leave_free() -> None:
    fixed = {"bend": 1, "error": 0.02, "error_trend": 0, "error_scatter": 0, "systematic": 0, "missing": 0.25}
    x = draw(fixed)
    torch.testing.assert_close(x["covariance"], torch.eye(40).double().expand(300, 40, 40) * 0.0004)
    inner = x["present"][:, 1:-1]
    assert abs(float(inner.mean()) - 0.75) < 4 * (0.75 * 0.25 / inner.numel()) ** 0.5
    assert bool((x["present"][:, [0, -1]] == 1).all())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"frist": 0.1}, "no key 'frist'; did you mean 'first'"),
        ({"first": [0.5, 0.1]}, r"expected \[low, high\] in order"),
        ({"first": 0.9}, "first must lie below last"),
        ({"error": -1}, "must be positive"),
        ({"missing": 1}, "a probability below 1"),
        ({"error": [1, 2, 3]}, r"expected a number, or \[low, high\]"),
        ([1], "expected a mapping"),
    ],
)
def test_mistakes_are_one_line(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        survey_design(spec)
