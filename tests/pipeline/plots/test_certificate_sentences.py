from __future__ import annotations

import math

import pytest

from pipeline.plots.certificate_sentences import (
    badge,
    gap_sentence,
    refinement_sentence,
    search_sentence,
    sentences,
    surrogate_sentence,
    verdict_words,
)
from pipeline.schema import VERDICTS
from pipeline.settings import InferSettings

INFER = InferSettings()


@pytest.mark.parametrize("verdict", list(VERDICTS))
def test_green_is_for_the_simulators_own_likelihood(verdict):
    learned = badge(verdict, learned=True)
    assert learned.tone == ("bad" if verdict == "failed" else "amber")
    assert ("learned likelihood" in learned.text) == (verdict != "failed")
    assert badge(verdict, learned=False).text == verdict
    assert ("learned likelihood" in verdict_words(verdict, learned=True)) == (verdict != "failed")


def test_a_gap_of_draws_without_weight_is_explained():
    said = gap_sentence({"kl_gap": 2.8, "ess_fraction": 0.91, "gap_of_worst_percent": 2.6})
    assert "of a gap of 2.8 nats 2.6 come from the 1 % of draws with the least weight" in said
    assert "91.0 % are effective" in said


def test_a_gap_that_is_spread_over_many_draws_is_explained_otherwise():
    said = gap_sentence({"kl_gap": 0.8, "ess_fraction": 0.55, "gap_of_worst_percent": 0.1})
    assert "most comes from draws of small weight (0.10 of them from the 1 %" in said
    assert "(nan" not in gap_sentence({"kl_gap": 0.8, "ess_fraction": 0.55})


def test_a_small_gap_with_few_effective_draws_is_explained():
    assert "a few draws carry large weights" in gap_sentence({"kl_gap": 0.01, "ess_fraction": 0.03})


@pytest.mark.parametrize(
    "certificate",
    [
        {},
        {"kl_gap": 0.05, "ess_fraction": 0.9},
        {"kl_gap": 3.0, "ess_fraction": 0.1},
        {"kl_gap": math.nan, "ess_fraction": math.nan},
    ],
)
def test_nothing_is_said_where_gap_and_ess_agree(certificate):
    assert gap_sentence(certificate) == ""


def test_a_refinement_that_raised_gap_and_ess_is_explained():
    """An X-ray spectrum: amortized gap 1.73 at an ESS fraction of 0.067, refined 1.90 at 0.939."""
    figures = {"kl_gap": 1.90, "amortized_kl_gap": 1.73, "ess_fraction": 0.939, "amortized_ess_fraction": 0.067}
    said = refinement_sentence(figures)
    for expected in ("6.70 %", "93.9 %", "1.7 to 1.9 nats"):
        assert expected in said
    assert refinement_sentence(figures | {"kl_gap": 0.2}) == ""


def test_what_was_searched_is_said():
    found = {"search_starts": 256.0, "search_candidates": 12.0, "search_optima": 3.0, "search_missed": 0.0}
    said = search_sentence(found | {"search_uncovered": 0.0})
    assert (
        "256 starts, from the prior and beside known draws, and 12 candidates of the simulator ended in 3 optima"
        in said
    )
    assert said.endswith("the delivered draws cover all of them.")
    added = search_sentence(found | {"search_missed": 0.45, "search_uncovered": 0.001})
    assert "q lacked 45.0 % of the posterior, which was added" in added
    lacking = search_sentence(found | {"search_uncovered": 0.2})
    assert "do not cover 20.0 % of the posterior" in lacking
    assert "1 optimum; the delivered draws cover it" in search_sentence({"search_starts": 64, "search_optima": 1})
    for nothing in ({}, {"search_starts": 0.0}, {"search_starts": math.nan}):
        assert search_sentence(nothing).startswith("Not searched")


def test_what_simulations_say_of_a_learned_likelihood():
    found = {"surrogate_check": 0.0007, "surrogate_shift": 1.08, "surrogate_width": 1.31, "surrogate_failed": 3.0}
    said = surrogate_sentence(found, INFER)
    for expected in (
        "differs from the simulator",
        "p = 0.00070",
        "off by 1.1 s.d.",
        "1.3 times",
        "3 simulations failed",
    ):
        assert expected in said
    assert "agrees with the simulator (p = 0.50)" in surrogate_sentence({"surrogate_check": 0.5}, INFER)
    assert surrogate_sentence({}, INFER).startswith("Not checked")


def test_older_files_and_exact_likelihoods_get_no_word_of_a_check():
    assert not any("learned" in s for s in sentences({}, INFER))
    assert any("Not checked" in s for s in sentences({"surrogate_spread": 0.1}, INFER))
    assert any("Not checked" in s for s in sentences({}, INFER, learned=True))
    held = sentences({"inputs_held": 2.0, "predictive_failed": 5.0}, INFER)
    assert any("2 numbers of this observation" in s for s in held)
    assert any("5 replicates" in s for s in held)
