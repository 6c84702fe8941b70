from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.errors import InputError
from pipeline.interrupt import Interrupted
from pipeline.stages.isolation import attempt, each, joined


def test_one_bad_row_costs_no_other() -> None:
    calls: list[Sequence[int]] = []

    def together(rows: Sequence[int]) -> list[int]:
        calls.append(rows)
        if 5 in rows:
            raise ValueError("large condition number\nand a second line")
        return [10 * n for n in rows]

    found = each(range(16), together)
    assert list(found) == list(range(16))
    assert {n: v for n, (v, _) in found.items() if n != 5} == {n: 10 * n for n in range(16) if n != 5}
    assert found[5] == (None, "ValueError: large condition number")
    assert len(calls) <= 9  # halves, not one by one


def test_what_is_asked_to_stop_stops() -> None:
    def stopped() -> None:
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        attempt(stopped)


def test_reasons_are_one_line() -> None:
    def wrong() -> None:
        raise InputError("x: " + 500 * "a")

    reason = attempt(wrong)[1]
    assert reason.startswith("x: a")
    assert len(reason) == 200
    assert joined("", "one", "", "two") == "one; two"
