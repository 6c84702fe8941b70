"""An unguarded learned likelihood is wrong where no simulation was; a guarded one is not, and says where it was asked."""

from __future__ import annotations

from benchmarks.guard import measure


def test_without_the_guard_a_posterior_goes_where_nothing_was_simulated() -> None:
    plain, guarded = measure(1)
    assert plain.impossible.mean() > 0.1
    assert guarded.impossible.mean() < 0.03
    assert plain.evidence.mean() > 0.2  # what is not there counts as evidence
    assert abs(guarded.evidence.mean()) < 0.2
    assert (plain.outside > 0.05).all()  # and the certificate would have said so
