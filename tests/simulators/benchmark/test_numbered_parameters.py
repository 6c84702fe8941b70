"""Names and labels of the benchmark's parameters."""

from __future__ import annotations

import pytest

from simulators.benchmark.numbered_parameters import numbered_parameters


def test_names_and_labels_are_numbered_from_one() -> None:
    parameters = numbered_parameters([None] * 10)
    assert [p.name for p in parameters] == [f"parameter_{d}" for d in range(1, 11)]
    assert parameters[9].label == r"$\theta_{10}$"


def test_labels_must_be_as_many_as_priors() -> None:
    with pytest.raises(ValueError, match="shorter"):
        numbered_parameters([None, None], labels=[r"\beta"])
