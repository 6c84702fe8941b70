"""The layout of files is written down once, and agrees with the code that fills it."""

from __future__ import annotations

from dataclasses import fields

from pipeline import schema
from pipeline.estimators.importance import Evidence


def test_certificate_has_every_figure_of_the_weights_and_the_amortized_ones() -> None:
    figures = {f.name for f in fields(Evidence)}
    assert figures <= set(schema.CERTIFICATE)
    amortized = {name.removeprefix("amortized_") for name in schema.CERTIFICATE if name.startswith("amortized_")}
    assert {"elbo", "kl_gap", "ess_fraction", "pareto_k"} <= amortized <= figures


def test_every_name_is_explained() -> None:
    for names in (schema.CERTIFICATE, schema.VERDICTS):
        assert all(name.isidentifier() and meaning for name, meaning in names.items())


def test_verdicts_are_the_ladder_in_order() -> None:
    assert list(schema.VERDICTS) == ["exact", "corrected", "refined", "sampled", "failed"]


def test_only_provenance_may_differ_between_equal_runs() -> None:
    names = [schema.PROVENANCE, schema.CONTENT_KEY, schema.SETTINGS, schema.STAGE]
    assert len(set(names)) == 4
    assert schema.PROVENANCE == "provenance"
    assert isinstance(schema.SCHEMA_VERSION, int)
