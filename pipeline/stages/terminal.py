"""Certificates on the terminal: how many of each verdict, and a few observations one by one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.plots.certificate_sentences import badge, sentences
from pipeline.progress import console
from pipeline.schema import CERTIFICATE, PREDICTIVE, VERDICTS
from pipeline.store import open_hdf5

LISTED = 20
"""Observations that the terminal lists one by one."""


def print_certificates(path: Path) -> None:
    """How many of each verdict; a line for each of a few observations, those that need attention first."""
    with open_hdf5(path) as file:
        learned = file.attrs.get("likelihood") == "learned"
        group: Any = file["certificate"]
        verdicts = [v.decode() for v in group["verdict"][:]]
        atypical = group["atypical"][:].astype(bool)
        order = sorted(range(len(verdicts)), key=lambda n: (verdicts[n] != "failed", not atypical[n]))
        many = len(verdicts) > LISTED
        if many:
            order = [n for n in order if verdicts[n] == "failed" or atypical[n]]
            console.print(
                ", ".join(f"{n} {v}" for v, n in Counter(verdicts).most_common()) + f"; {atypical.sum()} atypical"
            )
        _print_rows(group, order[:LISTED], verdicts, learned)
        if len(order) > LISTED:
            console.print(f"... and {len(order) - LISTED} more that failed or are atypical: see group `certificate`")
        for n in order[:LISTED]:
            identifier, note = group["observation"][n].decode(), group["note"][n].decode()
            if not many:
                terms = (
                    f"reconstruction {group['reconstruction'][n]:.3f} - regularization {group['regularization'][n]:.3f}"
                )
                console.print(f"{identifier}: ELBO {group['elbo'][n]:.3f} = {terms} nats")
            if note or verdicts[n] == "failed":
                console.print(f"{identifier}: {verdicts[n]}: {VERDICTS[verdicts[n]]}. {note}")
            numbers = {name: float(group[name][n]) for name in CERTIFICATE if name in group}
            for sentence in sentences(numbers, learned=learned):
                console.print(f"{identifier}: {sentence}")
            if group["surrogate_spread"][n] == group["surrogate_spread"][n]:
                console.print(f"{identifier}: {_of_the_surrogate(group, n)}")
            if atypical[n]:
                console.print(f"{identifier}: atypical: {_why_atypical(group, n)}")


def _of_the_surrogate(group: Any, n: int) -> str:
    """How far the learned likelihood is to be trusted."""
    names = ("surrogate_error", "surrogate_spread", "surrogate_outside")
    error, spread, outside = (float(group[name][n]) for name in names)
    return f"learned likelihood: its networks differ by {error:.3f} nats in log evidence, {spread:.3f} nats a draw; {100 * outside:.1f} % of draws outside what was simulated"


def _why_atypical(group: Any, n: int) -> str:
    """The p-values of its checks."""
    names = ["typicality", "predictive", *(name for name in group if name.startswith(PREDICTIVE))]
    values = ", ".join(f"{name} {group[name][n]:.2g}" for name in names if group[name][n] == group[name][n])
    return f"unlike what was simulated, or what its posterior predicts (p-values: {values})"


def _print_rows(group: Any, rows: list[int], verdicts: list[str], learned: bool) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("observation", "verdict", "log evidence", "gap", "ESS fraction", "pareto k"):
        table.add_column(column, justify="left" if column in ("observation", "verdict") else "right", no_wrap=True)
    for n in rows:
        shown = badge(verdicts[n], learned=learned)
        lines = [(group["observation"][n].decode(), Text(shown.text, style=shown.color), "")]
        if verdicts[n] in ("refined", "sampled"):
            lines.append(("", Text("amortized"), "amortized_"))
        for name, label, which in lines:
            table.add_row(
                name,
                label,
                f"{group[f'{which}log_evidence'][n]:.3f} ± {group[f'{which}log_evidence_error'][n]:.4f}",
                f"{group[f'{which}kl_gap'][n]:.4f}",
                f"{group[f'{which}ess_fraction'][n]:.3f}",
                f"{group[f'{which}pareto_k'][n]:.2f}",
            )
    console.print(table)
