"""Elboscope: amortized posteriors trained on the evidence lower bound, each with its gap to the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.estimators.posterior import Posterior, load_posterior
    from pipeline.estimators.sbi_posterior import from_sbi, save_sbi
    from pipeline.estimators.weighted_posterior import WeightedPosterior
    from pipeline.tables.bayes_factors import bayes_factors
    from pipeline.tables.posterior_table import posterior_table

__all__ = [
    "Posterior",
    "WeightedPosterior",
    "bayes_factors",
    "from_sbi",
    "load_posterior",
    "posterior_table",
    "save_sbi",
]

_MODULES = {
    "Posterior": "pipeline.estimators.posterior",
    "WeightedPosterior": "pipeline.estimators.weighted_posterior",
    "from_sbi": "pipeline.estimators.sbi_posterior",
    "load_posterior": "pipeline.estimators.posterior",
    "save_sbi": "pipeline.estimators.sbi_posterior",
    "bayes_factors": "pipeline.tables.bayes_factors",
    "posterior_table": "pipeline.tables.posterior_table",
}


def __getattr__(name: str) -> Any:
    """Import torch, the flows and astropy only when they are asked for."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
