"""Inference files with known content, in the layout of `pipeline.schema`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import pytest

DRAWS = 500
NAMES = ("logk1", "tp")
UNITS = ("", "d")


def known_draws(count: int, *, seed: int = 0) -> np.ndarray:
    """Draws of `count` observations, (2, DRAWS, count); observation n is centred on n."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, DRAWS, count)) * np.array([1.0, 3.0])[:, None, None] + np.arange(count)


def write_inference_file(
    path: Path,
    ids: Sequence[str],
    *,
    log_evidence: Sequence[float] | None = None,
    error: float = 0.3,
    verdicts: Sequence[str] | None = None,
    data: np.ndarray | None = None,
    data_unit: str = "m / s",
    extra: dict[str, np.ndarray] | None = None,
    proposals: bool = False,
    units: Sequence[str] = UNITS,
    settings: dict[str, Any] | None = None,
    attributes: dict[str, str] | None = None,
    names: Sequence[str] = NAMES,
    chunk: int = 3,
) -> np.ndarray:
    """Write a file and return its draws."""
    count = len(ids)
    draws = known_draws(count)
    evidence = np.arange(count, dtype=float) if log_evidence is None else np.asarray(log_evidence, dtype=float)
    with h5netcdf.File(path, "w") as file:
        file.attrs.update(
            {
                "stage": "infer",
                "content_key": "ab" * 32,
                "inputs": json.dumps({"posterior": "cd" * 32, "observation": "ef" * 32}),
                "settings": json.dumps(settings or {"seed": 1}),
                "parameters": json.dumps(list(names)),
            }
            | (attributes or {})
        )

        def group(name: str, **sizes: int) -> Any:
            made = file.create_group(name)
            made.dimensions = {**sizes, "observation": count}
            made.create_variable("observation", ("observation",), dtype=h5py.string_dtype())[...] = np.array(
                ids, dtype=object
            )
            return made

        posterior = group("posterior", chain=1, draw=DRAWS)
        for name, unit, values in zip(names, units, draws, strict=True):
            chunks = (1, DRAWS, min(chunk, count))
            v = posterior.create_variable(name, ("chain", "draw", "observation"), data=values[None], chunks=chunks)
            v.attrs.update({"long_name": f"${name}$"} | ({"units": unit} if unit else {}))
        certificate = group("certificate")
        numbers = {"log_evidence": evidence, "log_evidence_error": np.full(count, error)}
        for name, values in (numbers | (extra or {})).items():
            certificate.create_variable(name, ("observation",), data=values)
        words = ["exact"] * count if verdicts is None else verdicts
        certificate.create_variable("verdict", ("observation",), dtype=h5py.string_dtype())[...] = np.array(
            words, dtype=object
        )
        if proposals:
            weighted = group("proposal", proposal_draw=DRAWS + 100)
            for d, name in enumerate(names):
                padded = np.concatenate([draws[d][::-1], np.full((100, count), np.nan)])
                weighted.create_variable(name, ("proposal_draw", "observation"), data=padded)
            # a log joint by which every draw is known again
            log_joint = np.concatenate([-draws[0][::-1], np.full((100, count), np.nan)])
            for name, values in (("log_joint", log_joint), ("log_weight", 0 * log_joint)):
                weighted.create_variable(name, ("proposal_draw", "observation"), data=values)
        observed = group("observed_data", velocity_dim_0=4)
        values = np.arange(4.0 * count).reshape(count, 4) if data is None else data
        v = observed.create_variable("velocity", ("observation", "velocity_dim_0"), data=values)
        v.attrs.update({"units": data_unit, "role": "data"})
    return draws


@pytest.fixture
def write_file() -> Callable[..., np.ndarray]:
    """`write_inference_file`, for tests in this folder."""
    return write_inference_file
