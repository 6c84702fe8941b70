"""Elboscope: amortized posteriors trained on the evidence lower bound, each with its gap to the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.estimators.posterior import Posterior, load_posterior

__all__ = ["Posterior", "load_posterior"]


def __getattr__(name: str) -> Any:
    """Import torch and the flows only when they are asked for."""
    if name in __all__:
        from pipeline.estimators import posterior

        return getattr(posterior, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
