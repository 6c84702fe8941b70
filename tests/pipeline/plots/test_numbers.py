from __future__ import annotations

import math

import pytest

from pipeline.plots import numbers


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-103.34912, 0.00123, "−103.3491 ± 0.0012"),
        (-113.471, 0.27, "−113.47 ± 0.27"),
        (1.0, 0.0996, "1.00 ± 0.10"),
        (1234.5, 27.3, "1234 ± 27"),
        (123456.0, 412.0, "123460 ± 410"),
        (2.5321e21, 3.17e19, "(2.532 ± 0.032) × 10²¹"),
        (3.2e-12, 4.5e-13, "(3.20 ± 0.45) × 10⁻¹²"),
        (-0.00001, 0.02, "0.000 ± 0.020"),
        (5.25, None, "5.250"),
        (5.25, 0.0, "5.250"),
        (math.nan, 0.1, "not a number"),
        (-math.inf, 0.1, "−∞"),
        (None, None, "–"),
    ],
)
def test_value_with_error(value, error, text):
    assert numbers.with_error(value, error) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.0123456, "0.0123"), (-9.999, "−10.0"), (3.3e-7, "3.30 × 10⁻⁷"), (None, "–")]
)
def test_significant(value, text):
    assert numbers.significant(value) == text


def test_percentages_probabilities_counts_and_times():
    assert numbers.percent(0.5) == "50.0 %"
    assert numbers.probability(0.0) == "< 10⁻⁴"
    assert numbers.probability(0.049) == "0.049"
    assert numbers.count(None) == "–"
    assert numbers.count(54600) == "54,600"
    assert numbers.duration(0.2) == "0.20 s"
    assert numbers.duration(99.99) == "100 s"
    assert numbers.duration(60.0) == "60 s"
    assert numbers.duration(3599.7) == "1 h 0 min"
