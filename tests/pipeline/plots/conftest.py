"""A certificate that passes everything."""

from __future__ import annotations

import pytest

GOOD = {
    "log_evidence": -103.34911,
    "log_evidence_error": 0.00112,
    "elbo": -103.3921,
    "reconstruction": -88.5133,
    "regularization": 14.8788,
    "kl_gap": 0.04299,
    "ess_fraction": 0.91,
    "pareto_k": 0.21,
    "refused": 0.0,
    "likelihood_calls": 176800.0,
    "repeated_fraction": 0.012,
    "amortized_elbo": -104.02,
    "amortized_kl_gap": 0.671,
    "amortized_log_evidence": -103.3522,
    "amortized_log_evidence_error": 0.0084,
    "amortized_ess_fraction": 0.47,
    "amortized_pareto_k": 0.55,
    "proposals": 20_000,
    "r_hat": 1.004,
    "typicality": 0.4,
    "predictive": 0.7,
}


@pytest.fixture
def good() -> dict[str, float]:
    return dict(GOOD)
