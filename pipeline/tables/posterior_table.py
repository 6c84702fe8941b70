"""Posteriors as astropy tables: one row an observation, or one row a draw, with units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError
from pipeline.progress import progress_bar
from pipeline.tables.inference_reader import ATYPICAL, NOTE, VERDICT, InferenceFile, ParameterColumn, open_inference

if TYPE_CHECKING:
    from astropy.table import QTable

QUANTILES: dict[str, float] = {"q025": 0.025, "q16": 0.16, "q50": 0.5, "q84": 0.84, "q975": 0.975}
"""Suffix of a column and its quantile: the digits are those after the point."""
MOST_DRAW_ROWS = 5_000_000


def posterior_table(path: str | Path, *, observations: Sequence[str] | None = None) -> QTable:
    r"""Summaries of the delivered draws and the certificate, one row an observation.

    Columns: `id`, `verdict`; for each parameter mean (`logk1`), standard deviation with S - 1 (`logk1_std`) and
    quantiles (`logk1_q025`, `_q16`, `_q50`, `_q84`, `_q975`) in the parameter's unit; then every number of the
    certificate; `atypical` and `note` where the file has them. Nats are dimensionless columns: 1 nat is the number 1,
    and neither astropy nor FITS knows the unit; the column's description says where a number is in nats. Of a periodic
    parameter these are the summaries on its interval, not on the circle.

    Args:
        path: an `inference.h5`.
        observations: identifiers, in this order; default: all.

    Returns:
        `meta` says what made the file: `content_key`, `inputs` (digests), `settings`, `parameters`.

    Raises:
        InputError: a file or an identifier that does not fit, or a parameter's name that collides with a column's.
    """
    with open_inference(Path(path)) as inference:
        rows = inference.rows(observations)
        columns: dict[str, Any] = {
            "id": np.asarray(inference.ids, dtype=np.str_)[rows],
            VERDICT: inference.verdicts()[rows],
        }
        descriptions = {VERDICT: "what the checks found; see `elboscope show`"}
        for name, (values, parameter, meaning) in _summaries(inference, rows).items():
            _add(columns, name, _with_unit(values, parameter.unit), inference)
            descriptions[name] = meaning
        for name in inference.certificate_names():
            values = inference.certificate(name)
            assert values is not None
            _add(columns, name, values[rows], inference)
            descriptions[name] = inference.meaning(name)
        atypical, notes = inference.atypical(), inference.notes()
        if atypical is not None:
            _add(columns, ATYPICAL, atypical[rows], inference)
        if notes is not None:
            _add(columns, NOTE, notes[rows], inference)
        return _table(columns, descriptions, inference)


def draws_table(path: str | Path, *, observations: Sequence[str] | None = None) -> QTable:
    """Delivered draws, equally weighted, one row a draw: `id`, `draw`, and one column a parameter in its unit.

    Args:
        path: an `inference.h5`.
        observations: identifiers, in this order; default: all.

    Raises:
        InputError: a file or an identifier that does not fit, or more than five million rows.
    """
    with open_inference(Path(path)) as inference:
        rows = inference.rows(observations)
        if len(rows) == 0:
            raise InputError(f"{path}: expected at least one observation")
        first = inference.draws(int(rows[0]))
        if len(first) * len(rows) > MOST_DRAW_ROWS:
            raise InputError(
                f"{path}: {len(rows)} observations with {len(first)} draws are more than {MOST_DRAW_ROWS:,} rows; name fewer with --observation"
            )
        draws = np.empty((len(rows), *first.shape))
        for positions, block in inference.draw_blocks(rows):
            draws[positions] = block.transpose(2, 1, 0)
        columns: dict[str, Any] = {
            "id": np.repeat(np.asarray(inference.ids, dtype=np.str_)[rows], len(first)),
            "draw": np.tile(np.arange(len(first)), len(rows)),
        }
        for d, p in enumerate(inference.parameters):
            _add(columns, p.name, _with_unit(draws[:, :, d].reshape(-1), p.unit), inference)
        return _table(columns, {p.name: p.label for p in inference.parameters}, inference)


def _summaries(inference: InferenceFile, rows: Any) -> dict[str, tuple[Any, ParameterColumn, str]]:
    """Mean, standard deviation and quantiles of each parameter, (n,) each, by the name of the column."""
    count, parameters = len(rows), inference.parameters
    mean, std = np.empty((len(parameters), count)), np.empty((len(parameters), count))
    quantiles = np.empty((len(QUANTILES), len(parameters), count))
    with progress_bar("summarise", count) as advance:
        for positions, draws in inference.draw_blocks(rows):
            mean[:, positions] = draws.mean(axis=1)
            std[:, positions] = draws.std(axis=1, ddof=1) if draws.shape[1] > 1 else np.nan
            quantiles[:, :, positions] = np.quantile(draws, list(QUANTILES.values()), axis=1)
            advance(len(positions))
    columns: dict[str, tuple[Any, ParameterColumn, str]] = {}
    for d, p in enumerate(parameters):
        columns[p.name] = (mean[d], p, f"mean of {p.label}")
        columns[f"{p.name}_std"] = (std[d], p, f"standard deviation of {p.label}")
        for q, (suffix, level) in enumerate(QUANTILES.items()):
            columns[f"{p.name}_{suffix}"] = (quantiles[q, d], p, f"{level:g} quantile of {p.label}")
    return columns


def _add(columns: dict[str, Any], name: str, values: Any, inference: InferenceFile) -> None:
    if name in columns:
        raise InputError(
            f"{inference.path}: two columns would be called {name!r}; rename the parameter of that name in the simulator"
        )
    columns[name] = values


def _with_unit(values: Any, unit: str) -> Any:
    """A Quantity where there is a unit; plain numbers where there is none, as they come back from a file."""
    if not unit:
        return values
    from astropy import units

    return values << units.Unit(unit)  # not Quantity(): logarithmic units have classes of their own


def _table(columns: dict[str, Any], descriptions: dict[str, str], inference: InferenceFile) -> QTable:
    from astropy.table import QTable

    meta = inference.origin() | {"parameters": [p.name for p in inference.parameters]}
    return QTable(columns, descriptions={k: v for k, v in descriptions.items() if v}, meta=meta, copy=False)
