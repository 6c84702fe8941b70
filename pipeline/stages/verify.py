"""`elboscope verify`: read every byte of a run folder, say what is bad, and make it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.config import case_from_values
from pipeline.errors import InputError, one_line
from pipeline.progress import console, progress_bar
from pipeline.schema import CONTENT_KEY, INPUTS, SETTINGS
from pipeline.settings import CaseSettings
from pipeline.stages.link import SHARD_KEY, SHARDS, linked_shards
from pipeline.stages.run import OUTPUTS, Run, hold
from pipeline.stages.shard import FAILED_COUNT, FOLDER, SHARD, shard_key
from pipeline.stages.simulate import ADDED, simulate
from pipeline.store import (
    as_text,
    check_zip,
    file_sha256,
    input_digest,
    open_hdf5,
    read_attribute,
    read_record,
    read_safetensors,
    read_sums,
    reading,
    refuse_own_code,
    sums_of,
)
from simulators.reading.yaml_text import read_yaml

UNFINISHED = (
    "checkpoints/*.ckpt",
    "checkpoints/*.safetensors",
    "*.parts/*.h5",
    "rounds/*/*.h5",
    "rounds/*/*.safetensors",
)
"""What a run is made from, and what a stage leaves that is not done: recorded nowhere, or not yet."""
READ_ROWS_BYTES = 1 << 26
"""Read at once."""


@dataclass(frozen=True)
class Finding:
    """One thing that is bad.

    Attributes:
        path: the file.
        problem: in words.
    """

    path: Path
    problem: str


def verify(folder: Path, *, repair: bool = False, case: CaseSettings | None = None) -> None:
    """Check all files of a run; with `repair`, simulate bad shards again and set other bad files aside.

    Args:
        folder: of the run.
        case: its settings; default: those that are stored there.

    Raises:
        InputError: something is bad (and has not been repaired), or cannot be repaired.
    """
    if not any((folder / name).exists() for name in (*OUTPUTS.values(), FOLDER)):
        raise InputError(
            f"{folder}: not a run folder: expected one of {', '.join(OUTPUTS.values())} or {FOLDER}/ in it"
        )
    bad = check_run(folder)
    for finding in bad:
        console.print(f"bad: {one_line(f'{finding.path}: {finding.problem}')}")
    for line in (*_stale(folder), *_unrecorded(folder, bad)):
        console.print(f"note: {one_line(line)}")
    if not bad:
        console.print(f"verify: {folder}: all is well")
        return
    if not repair:
        raise InputError(
            f"{folder}: {_counted(len(bad), 'file')} bad, see above; `elboscope verify {folder} --repair` makes simulations again"
        )
    _repair(folder, {f.path for f in bad}, case)
    left = check_run(folder)
    if left:
        raise InputError(f"{left[0].path}: still bad after the repair: {left[0].problem}")
    console.print(f"verify: {folder}: repaired, all that is left is well")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun} is" if count == 1 else f"{count} {noun}s are"


def check_run(folder: Path) -> list[Finding]:
    """What is bad in a run folder; at most one finding a file."""
    found: list[Finding] = []
    link = folder / OUTPUTS["simulate"]
    shards = sorted((folder / FOLDER).glob("shard-*.h5"))
    others = [p for stage, name in OUTPUTS.items() if stage != "simulate" and (p := folder / name).is_file()]
    others += [p for pattern in UNFINISHED for p in sorted(folder.glob(pattern))]
    recorded = sums_of(folder)
    with progress_bar("verify", len(shards) + len(others) + len(recorded) + 1) as advance:
        key = _any_key(link, shards)
        for path in shards:
            found += _tried(path, lambda p: _check_shard(p, key))
            advance(1)
        if link.is_file():
            bad = {f.path for f in found}
            found += _tried(link, lambda p: _check_link(p, bad))
        advance(1)
        for path in others:
            found += _tried(path, _check_file)
            advance(1)
        for path in recorded:
            found += _check_recorded(folder, path)
            advance(1)
    return list({f.path: f for f in reversed(found)}.values())[::-1]


def _tried(path: Path, check: Callable[[Path], None]) -> Iterator[Finding]:
    """A check that raises has found something."""
    try:
        with reading(path):
            check(path)
    except (InputError, OSError) as error:
        yield Finding(path, str(error).removeprefix(f"{path}: "))


def _check_recorded(folder: Path, sums: Path) -> Iterator[Finding]:
    """A file of checksums, and every file of the run that it lists and that is still there."""
    try:
        recorded = read_sums(sums)
    except InputError as error:
        yield Finding(sums, str(error).removeprefix(f"{sums}: "))
        return
    for name, digest in recorded.items():
        path = folder / name
        if path.is_file() and file_sha256(path) != digest:
            yield Finding(path, f"SHA-256 is not that in {sums}")


def _unrecorded(folder: Path, bad: list[Finding]) -> Iterator[str]:
    """What is gone of what was recorded, and outputs whose stage has recorded no checksum."""
    damaged, listed = {f.path for f in bad}, set[str]()
    for sums in (s for s in sums_of(folder) if s not in damaged):
        names = read_sums(sums)
        listed |= names.keys()
        for name in sorted(n for n in names if not (folder / n).is_file()):
            yield f"{name} is not there any more; {sums.name} lists it"
    for name in OUTPUTS.values():
        if (folder / name).is_file() and name not in listed:
            yield f"{name} has no checksum in {folder / 'settings'}: only its own were compared"


def _any_key(link: Path, shards: list[Path]) -> str | None:
    """The key that shards should have: that in the file over them, else that of most of them."""
    key = read_attribute(link, SHARD_KEY)
    if key is not None:
        return key
    keys = [k for p in shards if (k := read_attribute(p, CONTENT_KEY)) is not None]
    return max(set(keys), key=keys.count) if keys else None


def _check_shard(path: Path, key: str | None) -> None:
    with open_hdf5(path) as file:
        rows = {name: len(d) for name, d in _datasets(file) if not name.startswith("failures/")}
        for name, dataset in _datasets(file):
            _read_all(name, dataset)
        if len(set(rows.values())) != 1 or "theta" not in rows or "failed" not in rows:
            raise InputError(f"datasets disagree on the number of rows, or are missing: {rows}")
        if as_text(file.attrs[CONTENT_KEY]) != key:
            raise InputError("content key is not that of the set")
        if path.name != f"shard-{int(np.asarray(file.attrs[SHARD])):05d}.h5":
            raise InputError(f"is shard {file.attrs[SHARD]}, by its name another")
        failed: Any = file["failed"]
        codes = failed[...]
        if int((codes != 0).sum()) != int(np.asarray(file.attrs[FAILED_COUNT])):
            raise InputError("the number of failed simulations is not that of its attribute")


def _check_link(path: Path, bad: set[Path]) -> None:
    """Every dataset covers all rows, in the order of the shards, by shards that are there and have as many rows."""
    folder = path.parent
    with open_hdf5(path, layout_only=True) as file:
        count, failed = int(np.asarray(file.attrs[SHARDS])), int(np.asarray(file.attrs[FAILED_COUNT]))
        lengths = {name: len(d) for name, d in _datasets(file)}
    failed_there = 0
    sources = linked_shards(path)
    for name, entries in sources.items():
        expected = 0
        if [Path(e[0]).name for e in entries] != [f"shard-{i:05d}.h5" for i in range(count)]:
            raise InputError(f"/{name} does not point at the {count} shards in their order")
        for shard, first, rows in entries:
            if first != expected:
                raise InputError(f"/{name}: rows {expected} to {first - 1} come from no shard")
            expected += rows
            if not (folder / shard).is_file():
                raise InputError(f"{shard} is missing")
            if folder / shard in bad:
                continue
            with open_hdf5(folder / shard) as file:
                there: Any = file[name]
                if len(there) != rows:
                    raise InputError(f"/{name}: {shard} has {len(there)} rows, {rows} are linked")
                failed_there += int(np.asarray(file.attrs[FAILED_COUNT])) if name == "failed" else 0
        if expected != lengths[name]:
            raise InputError(f"/{name}: {expected} of {lengths[name]} rows come from shards")
    if not bad and failed_there != failed:
        raise InputError(f"attribute {FAILED_COUNT} is {failed}, the shards have {failed_there}")


def _check_file(path: Path) -> None:
    """Any other file: readable to the end, and against checksums of its own."""
    if path.suffix == ".safetensors":
        read_safetensors(path)
    elif path.suffix == ".h5":
        with open_hdf5(path) as file:
            for name, dataset in _datasets(file):
                _read_all(name, dataset)
    elif path.suffix == ".ckpt":
        check_zip(path)  # torch's format, with a CRC-32 on every entry
    elif path.suffix == ".html" and not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise InputError("ends early")


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    found: list[tuple[str, h5py.Dataset]] = []
    file.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    return found


def _read_all(name: str, dataset: h5py.Dataset) -> None:
    """Every chunk, a part at a time: HDF5 compares its checksum."""
    try:
        if dataset.ndim == 0 or dataset.size == 0:
            dataset[()]
            return
        rows = max(1, READ_ROWS_BYTES * len(dataset) // max(1, dataset.nbytes))
        for start in range(0, len(dataset), rows):
            dataset[start : start + rows]
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"/{name}: a checksum or a read failed ({error})") from None


def _stale(folder: Path) -> Iterator[str]:
    """Outputs made from other inputs than those that lie there now."""
    names = {
        "simulations": "simulate",
        "posterior": "train",
        "inference": "infer",
        "validate": "validate",
        "compare": "compare",
    }
    for stage, output in OUTPUTS.items():
        try:
            recorded = read_record(folder / output, INPUTS)
        except InputError:
            continue
        for name, digest in recorded.items():
            path = folder / OUTPUTS[names[name]] if name in names else None
            if path is not None and path.is_file() and input_digest(path) != digest:
                yield f"{output} was made from another {path.name} than the one there: run `elboscope {stage}`"


def _repair(folder: Path, bad: set[Path], case: CaseSettings | None) -> None:
    """Simulations are made again, bit for bit; what is neither shard nor link is set aside, for its stage to make again."""
    stages = {name: stage for stage, name in OUTPUTS.items()}
    link = folder / OUTPUTS["simulate"]
    if (added := folder / FOLDER / ADDED) in bad:
        raise InputError(
            f"{added}: damaged, and nothing else knows it: write the rows of each `simulate --add` into it, such as "
            "[100000]; nothing was changed"
        )
    simulations = {p for p in bad if p.parent == folder / FOLDER or p == link}
    for path in sorted(bad - simulations):
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        again = f": run `elboscope {stages[path.name]}` again" if path.name in stages else ""
        console.print(f"repair: {path} is now {aside.name}{again}")
    if not simulations:
        return
    run = Run(case or _stored_case(folder), folder)
    good = [p for p in sorted((folder / FOLDER).glob("shard-*.h5")) if p not in bad]
    key = read_attribute(link, SHARD_KEY) if link not in bad else None
    key = key or (read_attribute(good[0], CONTENT_KEY) if good else None)
    if key is not None and key != shard_key(run):
        raise InputError(
            f"{folder}: its simulations are not those of these settings, simulator files and version: nothing was changed; "
            "give the right --config, or run `elboscope simulate`, which makes all of them"
        )
    with hold(run, "simulate"):
        for path in simulations:
            path.unlink(missing_ok=True)
        simulate(run)


def _stored_case(folder: Path) -> CaseSettings:
    """Settings of the simulations, from beside the file over the shards or from it; a user's own simulator is never loaded so.

    Raises:
        InputError: they are not there, or name a simulator file.
    """
    beside = folder / "settings" / "simulate.yaml"
    texts = [
        beside.read_text(encoding="utf-8") if beside.is_file() else None,
        read_attribute(folder / OUTPUTS["simulate"], SETTINGS),
    ]
    case = next((c for c in map(_case_in, texts) if c is not None), None)  # a flipped bit may be in either
    if case is None:
        raise InputError(f"{folder}: no readable settings of its simulations: give --config CONFIG")
    refuse_own_code(case, folder)
    return case


def _case_in(text: str | None) -> CaseSettings | None:
    """The case that settings spell out; None if they do not."""
    try:
        values = read_yaml(text, "settings") if text else None
        return case_from_values(values, "settings") if isinstance(values, dict) else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
