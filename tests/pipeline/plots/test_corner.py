from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.plots.corner import DrawSet, plot_corner, shared_ranges, weighted_quantile


def draws(count=500, dimension=3, seed=1):
    return np.random.default_rng(seed).standard_normal((count, dimension))


def test_overlays_sets_and_names_them_in_the_legend():
    weights = np.random.default_rng(2).random(500)
    figure = plot_corner(
        [DrawSet("weighted q", draws(), weights), DrawSet("emcee", draws(seed=3), line="--")],
        ["a", "b", "c"],
        truth=np.zeros(3),
    )
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["weighted q", "emcee", "true value"]
    assert len(figure.axes) == 9
    assert figure.axes[6].get_xlabel() == "a"
    assert figure.axes[3].get_ylabel() == "b"


def test_ranges_come_from_one_set_and_ignore_a_thin_tail():
    values = draws(20_000, 2)
    values[:5, 0] = -1000.0  # 2.5e-4 of the draws
    (low, high), _ = shared_ranges(DrawSet("q", values))
    assert -4.5 < low < -3
    assert 3 < high < 4.5
    figure = plot_corner([DrawSet("wide", 50 * draws(dimension=2)), DrawSet("q", values)], ["a", "b"], range_from=1)
    assert figure.axes[0].get_xlim() == pytest.approx((low, high))
    (low, _), _ = shared_ranges(DrawSet("q", values), truth=np.array([-50.0, 0.0]))
    assert low < -50


def test_weighted_quantiles_follow_the_weights():
    values = np.linspace(0, 1, 10_001)
    np.testing.assert_allclose(weighted_quantile(values, np.array([0.25]), values), [0.5], atol=1e-3)  # F = v^2
    np.testing.assert_allclose(weighted_quantile(values, np.array([0.25])), [0.25], atol=1e-3)


@pytest.mark.parametrize("dimension", [1, 2])
def test_few_parameters(dimension):
    assert len(plot_corner([DrawSet("q", draws(dimension=dimension))], ["a", "b"][:dimension]).axes) == dimension**2


def test_constant_parameter_and_set_far_away_are_drawn():
    values = draws()
    values[:, 1] = 4.0
    figure = plot_corner([DrawSet("q", values), DrawSet("lost", draws() + 1000.0)], ["a", "b", "c"])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["q", "lost (outside the ranges)"]


def test_bad_input_is_explained():
    with pytest.raises(InputError, match="at least one set"):
        plot_corner([], ["a"])
    with pytest.raises(InputError, match="'q': expected draws .S, 2."):
        plot_corner([DrawSet("q", draws())], ["a", "b"])
    with pytest.raises(InputError, match="weights for 500 draws"):
        plot_corner([DrawSet("q", draws(), np.ones(3))], ["a", "b", "c"])
