from __future__ import annotations

import math

import pytest

from pipeline.plots.certificate_meaning import MEANING
from pipeline.plots.certificate_words import FOLDED, certificate_lines
from pipeline.schema import CERTIFICATE
from pipeline.settings import InferSettings


def by_name(certificate):
    return {line.name: line for line in certificate_lines(certificate, InferSettings())}


def test_every_number_of_the_schema_has_words(good):
    assert set(CERTIFICATE) <= set(MEANING)
    assert set(by_name(good)) == set(good) - FOLDED
    assert set(by_name(dict.fromkeys(MEANING, 0.01))) == set(MEANING) - FOLDED


def test_what_was_not_made_has_no_line_and_what_had_to_be_fails(good):
    nothing = dict.fromkeys(set(MEANING) - set(good), math.nan)
    assert set(by_name(good | nothing)) == set(good) - FOLDED
    assert by_name(good | {"kl_gap": math.nan})["kl_gap"].mark == "fail"


def test_a_learned_likelihood_that_was_not_checked_says_so(good):
    assert "surrogate_check" not in by_name(good)
    for found in ({}, {"surrogate_check": math.nan}):
        line = by_name(good | {"surrogate_spread": 0.1} | found)["surrogate_check"]
        assert (line.value, line.mark) == ("not checked", "info")


def test_units_and_digits(good):
    lines = by_name(good)
    assert lines["log_evidence"].value == "−103.3491 ± 0.0011 nats"
    assert lines["elbo"].value == "−103.3921 nats"
    assert lines["kl_gap"].value == "0.043 nats"
    assert lines["ess_fraction"].value == "91.0 %"
    assert lines["pareto_k"].value == "0.21"


def test_good_numbers_pass(good):
    lines = by_name(good)
    assert not [line for line in lines.values() if line.mark == "fail"]
    assert "as 'exact' asks" in lines["ess_fraction"].judgement
    assert "9,400 effective draws" in lines["amortized_ess_fraction"].judgement
    assert "0.4 combined standard errors" in lines["amortized_log_evidence"].judgement


@pytest.mark.parametrize(
    ("name", "value", "failing"),
    [
        ("ess_fraction", 0.001, "ess_fraction"),
        ("pareto_k", 1.1, "pareto_k"),
        ("pareto_k", 1.1, "log_evidence"),
        ("elbo", -100.0, "elbo"),
        ("elbo", math.nan, "elbo"),
        ("log_evidence", -math.inf, "log_evidence"),
    ],
)
def test_bad_numbers_fail(name, value, failing, good):
    assert by_name(good | {name: value})[failing].mark == "fail"


@pytest.mark.parametrize(
    ("name", "value", "mark"),
    [
        ("surrogate_check", 0.001, "pass"),
        ("surrogate_check", 0.0009, "fail"),
        ("surrogate_outside", 0.04, "pass"),
        ("surrogate_outside", 0.06, "fail"),
        ("surrogate_error", 0.5, "info"),
        ("surrogate_spread", 0.5, "info"),
    ],
)
def test_a_learned_likelihood_is_judged_by_where_the_draws_lie(name, value, mark, good):
    line = by_name(good | {name: value})[name]
    assert line.mark == mark
    assert ("no better than this" in line.judgement) == (name == "surrogate_error")


@pytest.mark.parametrize(
    ("name", "value", "mark"),
    [
        ("rounding", 0.009, "pass"),
        ("rounding", 0.02, "fail"),
        ("distinct_draws", 18_200, "pass"),
        ("distinct_draws", 18_199, "fail"),  # 91 % of 20,000 are said to be effective
        ("search_uncovered", 0.0, "pass"),
        ("search_uncovered", 0.05, "fail"),
        ("inputs_held", 3, "info"),
    ],
)
def test_arithmetic_and_search_are_judged(name, value, mark, good):
    assert by_name(good | {name: value})[name].mark == mark


def test_a_bad_amortized_q_is_information_and_no_failure(good):
    lines = by_name(good | {"amortized_ess_fraction": 0.001, "amortized_pareto_k": 2.0})
    assert lines["amortized_ess_fraction"].mark == lines["amortized_pareto_k"].mark == "info"


def test_thresholds_are_the_settings(good):
    line = certificate_lines(good, InferSettings(exact_ess_fraction=0.95))
    assert "asks for 400" in next(li for li in line if li.name == "ess_fraction").judgement


def test_missing_numbers_are_left_out():
    assert set(by_name({"elbo": -1.0})) == {"elbo"}
