"""A simulator whose design is the observation that is still to be made: what is read stands in for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.foreign.observations import gather, plan
from pipeline.foreign.read import read_foreign
from pipeline.foreign.undeclared import MASK, observables_of
from pipeline.ingest_settings import IngestSettings
from pipeline.settings import CaseSettings
from pipeline.stages.run import Run
from pipeline.store import write_data
from simulators.protocol import Simulator


def simulator_for(
    case: CaseSettings, inputs: Sequence[Path], settings: IngestSettings, *, out: Path | None
) -> Simulator:
    """The simulator of a case. Where its options name `out`, the first of `inputs` takes that file's place.

    Args:
        out: the file that is to be made; None, where nothing is to be written: any file that is not there yet.

    Raises:
        InputError: an option, or an input that is no observation.
    """
    made = _is_made(out)
    if not inputs or not any(map(made, _texts(case.simulator.options))):
        return Run(case, Path()).simulator
    with TemporaryDirectory() as folder:
        given = str(_stand_in(inputs[0], settings, Path(folder)))
        options = _replaced(case.simulator.options, made, given)
        stands = case.model_copy(update={"simulator": case.simulator.model_copy(update={"options": options})})
        return Run(stands, Path()).simulator


def settings_without(values: Any, out: Path) -> Any:
    """Settings of a simulator with the file that is to be made by a name: what makes it cannot depend on it."""
    return _replaced(values, _is_made(out), "the file that is made")


def _is_made(out: Path | None) -> Callable[[str], bool]:
    """Whether an option is the path of the file that is to be made."""

    def made(text: str) -> bool:
        if "\0" in text or not Path(text).is_absolute():  # `load_case` makes paths of files absolute
            return False
        return not Path(text).exists() if out is None else Path(text) == out.resolve()

    return made


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def _replaced(value: Any, made: Callable[[str], bool], by: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, made, by) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, made, by) for inner in value]
    return by if isinstance(value, str) and made(value) else value


def _stand_in(path: Path, settings: IngestSettings, folder: Path) -> Path:
    """The first observation of a file in our layout; the file itself where only the simulator's reader knows its units."""
    try:
        file = read_foreign(path)
    except InputError:
        return path
    if settings == IngestSettings() and not file.declares_units:
        return path
    rows = "auto" if settings.group is not None else "points"
    chosen = settings.model_copy(update={"arrays": {}, "diagonal": {}, "id": None, "rows": rows})
    observables, chosen = observables_of([file], chosen)
    x = gather([path], plan(observables, chosen), lambda _: file).x
    there = x[MASK][0] > 0 if MASK in x else slice(None)
    one = {o.name: torch.from_numpy(x[o.name][:1, there] if o.shape else x[o.name][:1]) for o in observables}
    names = {str(code): name for code, name in enumerate(chosen.codes.get("instrument", ()))}
    target = folder / f"{path.stem}.h5"
    write_data(target, observables=observables, x=one, attributes={"instruments": json.dumps(names)})
    return target
