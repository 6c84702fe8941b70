"""`elboscope ingest`: foreign files become a file of observations, units converted, nothing guessed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.cost import Meter
from pipeline.datasets.cache import fetch_hint
from pipeline.errors import InputError
from pipeline.foreign.fields import ForeignFile
from pipeline.foreign.observations import array_files, gather, plan
from pipeline.foreign.read import read_foreign
from pipeline.foreign.undeclared import observables_of
from pipeline.ingest_settings import IngestSettings
from pipeline.progress import console, progress_bar
from pipeline.settings import CaseSettings
from pipeline.stages.ingest_design import settings_without, simulator_for
from pipeline.stages.observed import load_observation
from pipeline.stages.run import with_digests
from pipeline.store import content_key, file_sha256, is_data_file, read_key, reading, stamp, write_data
from simulators.protocol import Observable, Simulator

VERSION = 2


@dataclass(frozen=True)
class Observations:
    """What is written: N observations, and what there is to say about them.

    Attributes:
        observables: names, shapes and units of what follows.
        x: (N, *shape) of each.
        ids: of the N observations.
        remarks: counts of what was left out.
    """

    observables: tuple[Observable, ...]
    x: Mapping[str, torch.Tensor]
    ids: tuple[str, ...]
    remarks: Mapping[str, Any]


def ingest(case: CaseSettings | None, inputs: Sequence[Path], out: Path, *, settings: IngestSettings) -> Path:
    """Write the observations of `inputs` into `out`, in the layout of `pipeline.schema`.

    Files that declare units, and all files where `settings` names columns, are read by their columns; others by the
    simulator's own `read_observation`, where it has one.

    Args:
        case: names the simulator; None: every array of numbers becomes an observable of its own.
        inputs: foreign files, or observation files of ours, which are joined.
        out: file to write; what is there already for the same settings and inputs stays.
        settings: columns, units, identifiers.

    Raises:
        InputError: whatever does not fit, in one line.
    """
    meter = Meter()
    check_paths(inputs, out)
    simulator = None if case is None else simulator_for(case, inputs, settings, out=out)
    arrays = array_files(settings)
    digests = _digests([*inputs, *(path for path, _ in arrays.values())])
    described = {
        "simulator": {} if case is None else with_digests(settings_without(case.dump("simulator")["simulator"], out)),
        "observables": [] if simulator is None else [asdict(o) for o in simulator.observables],
        "ingest": settings.model_dump(mode="json")
        | {"arrays": {name: [path.name, want.name, want.unit] for name, (path, want) in arrays.items()}},
        "names": [path.name for path in inputs],
    }
    key = content_key("ingest", VERSION, described, digests)
    if read_key(out) == key:
        console.print(f"ingest: {out} is up to date")
        return out
    observations = read_observations(simulator, inputs, settings)
    attributes = stamp(stage="ingest", key=key, settings=described, inputs=digests, cost=meter.lap())
    write_data(
        out,
        observables=observations.observables,
        x=observations.x,
        ids=observations.ids,
        attributes=attributes | {name: json.dumps(value) for name, value in observations.remarks.items() if value},
    )
    console.print(f"ingest: {out}: {_summary(observations)}")
    return out


def read_observations(simulator: Simulator | None, inputs: Sequence[Path], settings: IngestSettings) -> Observations:
    """The observations of foreign files, in memory.

    Raises:
        InputError: whatever does not fit, in one line.
    """
    cache: dict[Path, ForeignFile] = {}
    if simulator is not None and by_its_reader(simulator, inputs, settings, cache):
        return _through_reader(simulator, inputs)
    if simulator is None:
        if not inputs:
            raise InputError(
                "ingest: without a simulator there is nothing but INPUT files to say what is wanted: give some"
            )
        files = [_read(path, cache) for path in inputs]
        with reading(inputs[0]):
            observables, settings = observables_of(files, settings)
    else:
        observables = tuple(simulator.observables)
    with progress_bar("ingest", len(inputs)) as advance:
        settled = gather(
            inputs, plan(observables, settings), lambda path: cache.pop(path, None) or foreign_file(path), done=advance
        )
    remarks = {
        "points_absent": settled.points_absent,
        "left_out": list(settled.left_out),
        "codes": {name: dict(enumerate(texts)) for name, texts in settings.codes.items()},
    }
    x = {name: torch.from_numpy(values) for name, values in settled.x.items()}
    return Observations(observables, x, settled.ids, remarks)


def _read(path: Path, cache: dict[Path, ForeignFile]) -> ForeignFile:
    if path not in cache:
        cache[path] = foreign_file(path)
    return cache[path]


def foreign_file(path: Path) -> ForeignFile:
    """A foreign file; whatever is wrong with it is one line that names it."""
    with reading(path):
        return read_foreign(path)


def by_its_reader(
    simulator: Simulator, inputs: Sequence[Path], settings: IngestSettings, cache: dict[Path, ForeignFile]
) -> bool:
    """Whether the simulator's own reader takes these files: no columns are named, and no file declares units."""
    if not callable(getattr(simulator, "read_observation", None)) or settings != IngestSettings() or not inputs:
        return False
    for path in (path for path in inputs if path.is_file()):
        if is_data_file(path):
            return False
        try:
            if _read(path, cache).declares_units:
                return False
        except InputError:  # what only the simulator can read
            continue
    return True


def _through_reader(simulator: Simulator, inputs: Sequence[Path]) -> Observations:
    parts = []
    with progress_bar("ingest", len(inputs)) as advance:
        for path in inputs:
            parts.append(load_observation(simulator, path))
            advance()
    ids = tuple(i for part in parts for i in part.ids)
    repeated = [i for i, count in Counter(ids).items() if count > 1]
    if repeated:
        raise InputError(f"ingest: identifier {repeated[0]!r} stands for more than one observation")
    observables = tuple(simulator.observables)
    x = {o.name: torch.cat([part.x[o.name] for part in parts]) for o in observables}
    return Observations(observables, x, ids, {})


def check_paths(inputs: Sequence[Path], out: Path | None = None) -> None:
    """Raise InputError for an input that is missing, given twice, or to be overwritten."""
    for path in inputs:
        if hint := fetch_hint(path):
            raise InputError(f"{path}: no such file{hint}")
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if out is not None and path.resolve() == out.resolve():
            raise InputError(f"ingest: --out {out} is a file that is to be read; choose another name")
    repeated = [p for p, count in Counter(path.resolve() for path in inputs).items() if count > 1]
    if repeated:
        raise InputError(f"ingest: {repeated[0]} is given twice")


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of every file, those of folders too, by its name; of files with the same name, by the number of each."""
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    digests: dict[str, str] = {}
    for path in (file for file in files if file.is_file()):
        name, number = path.name, 2
        while name in digests:
            name, number = f"{path.name} ({number})", number + 1
        digests[name] = file_sha256(path)
    return digests


def _summary(observations: Observations) -> str:
    named = ", ".join(f"{o.name} {o.shape}{f' [{o.unit}]' if o.unit else ''}" for o in observations.observables)
    lost = observations.remarks.get("left_out", [])
    absent = observations.remarks.get("points_absent", 0)
    return (
        f"{len(observations.ids)} observation(s) of {named}"
        + (
            f"; left out for missing values: {len(lost)} ({', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''})"
            if lost
            else ""
        )
        + (f"; {absent} points with missing values are absent" if absent else "")
    )
