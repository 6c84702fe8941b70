"""`elboscope ingest --list`: what foreign files have, what the simulator wants, and how far they fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.errors import InputError
from pipeline.foreign.fields import Field, ForeignFile
from pipeline.foreign.missing import mask_names
from pipeline.foreign.numbers import wanted
from pipeline.ingest_settings import IngestSettings
from pipeline.settings import CaseSettings
from pipeline.stages.ingest import by_its_reader, check_paths, foreign_file, read_observations
from pipeline.stages.ingest_design import simulator_for
from simulators.protocol import Observable, Simulator


def list_inputs(case: CaseSettings | None, inputs: Sequence[Path], *, settings: IngestSettings) -> None:
    """Print the arrays of every file, the observables of the simulator, and what would be written, or why nothing.

    Raises:
        InputError: a file that cannot be read.
    """
    terminal = Console(highlight=False, soft_wrap=True, markup=False, width=10_000)
    check_paths(inputs)
    files = {path: foreign_file(path) for path in inputs if path.is_file()}
    for path, file in files.items():
        terminal.print(f"{path}: {file.kind}{f'; {file.note}' if file.note else ''}")
        terminal.print(_arrays(file))
    simulator = None if case is None else simulator_for(case, inputs, settings, out=None)
    if simulator is not None:
        own = by_its_reader(simulator, inputs, settings, dict(files))
        terminal.print(f"simulator {simulator.name} wants{', and reads these files itself' if own else ''}")
        terminal.print(_wants(simulator, [] if own else list(files.values()), settings, own=own))
    try:
        made = read_observations(simulator, inputs, settings)
    except InputError as error:
        terminal.print(f"as it is: {error}")
        return
    shapes = ", ".join(f"{o.name} {o.shape} [{o.unit}]" for o in made.observables)
    terminal.print(
        f"would write {len(made.ids)} observation(s): {', '.join(made.ids[:5])}{' ...' if len(made.ids) > 5 else ''}: {shapes}"
    )


def _arrays(file: ForeignFile) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("  name", "shape", "type", "unit", "missing", "range"):
        table.add_column(title)
    for field in file.fields:
        table.add_row(
            f"  {field.name}",
            _shape(field),
            "text" if field.is_text else "array" if field.ragged else field.values.dtype.name,
            "(none)" if field.unit is None else field.unit or "dimensionless",
            str(_missing(field) or ""),
            _range(field) + (f"  {field.note}" if field.note else ""),
        )
    return table


def _shape(field: Field) -> str:
    if field.values.ndim == 0:
        return "one value"
    rows = f"{len(field.values)} rows"
    if field.ragged:
        return f"{rows} of {min(map(len, field.values))} to {max(map(len, field.values))}"
    if not field.by_row:
        return str(field.values.shape)
    return rows if field.values.ndim == 1 else f"{rows} of {field.values.shape[1:]}"


def _missing(field: Field) -> int:
    if field.ragged:
        return int(sum(np.isnan(row).sum() for row in field.values if row.dtype.kind == "f"))
    marked = np.zeros(field.values.shape, dtype=bool) if field.masked is None else field.masked
    if field.values.dtype.kind == "f":
        marked = marked | ~np.isfinite(field.values)
    return int(marked.sum())


def _range(field: Field) -> str:
    if field.is_text:
        words = sorted(set(field.values.astype(str).ravel().tolist()))
        return ", ".join(words[:3]) + (f" ... ({len(words)} different)" if len(words) > 3 else "")
    values = np.concatenate(list(field.values)) if field.ragged else field.values
    good = np.isfinite(values) if field.masked is None else np.isfinite(values) & ~field.masked
    return f"{values[good].min():g} to {values[good].max():g}" if good.any() else ""


def _wants(simulator: Simulator, files: Sequence[ForeignFile], settings: IngestSettings, *, own: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("  observable", "shape", "unit", "role", "" if own else "from"):
        table.add_column(title)
    for o in simulator.observables:
        origin = "" if own else _origin(o, files, settings, mask_names(simulator.observables))
        table.add_row(f"  {o.name}", str(o.shape), o.unit or "dimensionless", o.role, origin)
    return table


def _origin(
    observable: Observable, files: Sequence[ForeignFile], settings: IngestSettings, masks: frozenset[str]
) -> str:
    """Where an observable would come from."""
    name = observable.name
    diagonal = f", with squares of {settings.diagonal[name]} on the diagonal" if name in settings.diagonal else ""
    if name in settings.arrays:
        return settings.arrays[name] + diagonal
    given = settings.columns.get(name)
    try:
        column = name if given is None else wanted(given, name).name
        found = next((f for file in files if (f := file.find(column)) is not None), None)
    except InputError as error:
        return str(error)
    if given is not None and (found is None or found.unit is None or "[" in given):
        return given + diagonal
    if found is not None:
        return f"{found.name} [{found.unit if found.unit is not None else '?'}]{diagonal}"
    if diagonal:
        return diagonal.removeprefix(", with ")
    return "(points that are there)" if name in masks else f"(nothing yet: --column '{name}=COLUMN[{observable.unit}]')"
