from __future__ import annotations

import numpy as np
import pytest

from pipeline.diagnostics.c2st import c2st
from pipeline.errors import InputError


def normal(count, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((count, 2)) * [1.0, 100.0] + [shift, 0.0]


def test_equal_distributions_cannot_be_told_apart():
    assert c2st(normal(600, 1), normal(600, 2)) == pytest.approx(0.5, abs=0.05)


def test_shifted_by_two_standard_deviations_matches_the_best_possible_accuracy():
    # Phi(1) = 0.841: the optimal classifier for two unit Gaussians two apart
    assert c2st(normal(800, 1), normal(800, 2, shift=2.0)) == pytest.approx(0.841, abs=0.03)


def test_is_deterministic_and_independent_of_jobs():
    a, b = normal(200, 1), normal(150, 2, shift=0.5)
    assert c2st(a, b) == c2st(a, b) == c2st(a, b, jobs=2)
    assert c2st(a, b, seed=2) != c2st(a, b)


def test_agrees_with_the_benchmark_s_definition():
    """The sbi benchmark's metric, written out once more from the paper's code."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    a, b = normal(150, 1), normal(150, 2, shift=1.0)
    mean, scale = a.mean(0), a.std(0, ddof=1)
    data = np.concatenate([(a - mean) / scale, (b - mean) / scale]).astype(np.float32)
    target = np.concatenate([np.zeros(150), np.ones(150)])
    network = MLPClassifier(hidden_layer_sizes=(20, 20), max_iter=10000, solver="adam", random_state=1)
    folds = KFold(n_splits=5, shuffle=True, random_state=1)
    scores = cross_val_score(network, data, target, cv=folds, scoring="accuracy")
    assert c2st(a, b) == pytest.approx(scores.mean(), abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((60, 2)), np.zeros((60, 3)), "expected .S, D."),
        (normal(60, 1), normal(10, 1), "at least 50"),
        (normal(60, 1), np.full((60, 2), np.nan), "draws: 120 of 120 values"),
        (np.zeros((60, 2)), normal(60, 1), "same value in every draw"),
    ],
)
def test_bad_input_is_explained(a, b, message):
    with pytest.raises(InputError, match=message):
        c2st(a, b)
