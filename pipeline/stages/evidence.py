"""`elboscope evidence`: which model do the data prefer? Log evidences and Bayes factors of several inference files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.plots.numbers import with_error
from pipeline.progress import console
from pipeline.stages.export import write_table
from pipeline.tables.bayes_factors import bayes_factors, total_log_bayes_factor

if TYPE_CHECKING:
    from astropy.table import QTable

SHOWN = 20
"""Observations in the printed table: all up to so many, else the most decisive ones."""
NAMED = 10


def evidence(paths: Sequence[Path], *, names: Sequence[str] | None = None, output: Path | None = None) -> QTable:
    """Print evidences and Bayes factors of the observations that all files share; write the whole table if asked.

    Raises:
        InputError: files that cannot be compared, or an output whose suffix names no format.
    """
    table = bayes_factors(paths, names=names)
    meta: Any = table.meta
    if output is not None:
        write_table(table, output)
    # so wide that no figure is cut short: a table is only as wide as it needs to be
    answer = Console(highlight=False, soft_wrap=True, markup=False, width=10_000)
    models = list(meta["models"])
    for model in models:
        answer.print(f"{model}: {meta['models'][model]['path']}")
    if meta["likelihood"] == "learned":
        answer.print("evidences and Bayes factors are those of the learned likelihood, of a summary of the data")
    for model, ids in meta["only_in"].items():
        if ids:
            more = ", ..." if len(ids) > NAMED else ""
            console.print(f"not in every file, left out: {len(ids)} of {model}: {', '.join(ids[:NAMED])}{more}")
    rows = most_decisive(table, SHOWN)
    if len(table) > len(rows):
        answer.print(f"the {len(rows)} most decisive of {len(table)} observations:")
    answer.print(_printed(table, models, rows))
    if len(table) > 1:
        for model in models[1:]:
            answer.print(_total_line(table, model, models[0]))
    flagged = int((np.asarray(table["warning"]) != "").sum())
    if flagged:
        answer.print(
            f"{flagged} of {len(table)} observations have a warning: their evidence, or the model itself, is in doubt"
        )
    if output is not None:
        console.print(f"evidence: {output} {len(table)} rows")
    return table


def most_decisive(table: QTable, count: int) -> Any:
    """Rows of the largest |log Bayes factor| of any model, descending; all in their order where there are no more."""
    if len(table) <= count:
        return np.arange(len(table))
    names = [n for n in table.colnames if n.startswith("log_bayes_factor_") and "_error_" not in n]
    largest = np.max([np.abs(np.asarray(table[n], dtype=np.float64)) for n in names], axis=0)
    return np.argsort(-np.nan_to_num(largest, nan=-1.0), kind="stable")[:count]


def _printed(table: Any, models: Sequence[str], rows: Any) -> Table:
    printed = Table(box=None, pad_edge=False)
    warned = any(table["warning"][n] for n in rows)
    printed.add_column("observation", no_wrap=True)
    for model in models:
        printed.add_column(f"log evidence {model}", justify="right", no_wrap=True)
    for model in models[1:]:
        printed.add_column(f"log B {model}/{models[0]}", justify="right", no_wrap=True)
    printed.add_column("verdicts", no_wrap=True)
    if warned:
        printed.add_column("warning")
    for n in rows:
        cells = [str(table["id"][n])]
        cells += [_figure(table, "log_evidence", model, n) for model in models]
        cells += [_figure(table, "log_bayes_factor", model, n) for model in models[1:]]
        cells.append(", ".join(str(table[f"verdict_{model}"][n]) for model in models))
        printed.add_row(*cells, *([str(table["warning"][n])] if warned else []))
    return printed


def _figure(table: Any, name: str, model: str, row: int) -> str:
    return with_error(float(table[f"{name}_{model}"][row]), float(table[f"{name}_error_{model}"][row]))


def _total_line(table: QTable, model: str, first: str) -> str:
    value, error, count = total_log_bayes_factor(table, model)
    line = f"total log B {model}/{first}: {with_error(value, error)} nats over {count} observations"
    trusted, trusted_error, left = total_log_bayes_factor(table, model, trusted=True)
    return line if left == count else f"{line}; {with_error(trusted, trusted_error)} over the {left} without a warning"
