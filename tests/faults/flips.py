r"""One flipped bit in every kind of file of a run: the next stage refuses it, and `verify` names the file.

    python -m tests.faults.flips --places 100

A flip is *harmless* where a shard of simulations, dataset by dataset, or a checkpoint, entry by entry, is bit for bit what
it was: HDF5 and ZIP files have bytes that nothing refers to. Everything else must be caught: by what reads the file next, where anything does,
and by `verify`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.progress import console
from pipeline.stages.compare import compare
from pipeline.stages.infer import infer
from pipeline.stages.likelihood import likelihood
from pipeline.stages.report import report
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import load_simulations, train
from pipeline.stages.validate import validate
from pipeline.stages.verify import check_run
from pipeline.store import check_zip, hdf5_content_digest
from pipeline.training import schedule
from pipeline.workflow.drive import saved_case, write_case
from pipeline.workflow.profile import load_profile, saved_profile, write_profile
from tests.pipeline.stages.conftest import write_case as write_config

SMALL = {
    "simulate": {"count": 1_000, "held_out": 400, "shard": 700},
    "train": {
        "flow": {"transforms": 1, "hidden": 8, "blocks": 1, "bins": 4},
        "embedding": {"kind": "none"},
        "phases": [
            {"objective": "forward_kl", "steps": 20, "batch": 64},
            {"objective": "elbo", "steps": 20, "batch": 64},
        ],
        "check_every": 10,
        "checkpoint_every": 10,
    },
    "infer": {"refine": {"when": "never"}, "sample": {"when": "never"}, "draws": 200, "proposals": 2_000},
    "validate": {"simulations": 200, "draws": 50, "weighted": False},
    "compare": {
        "emcee": {"walkers": 12, "steps": 60, "burn_in": 20},
        "nautilus": {"enabled": False},
        "draws": 100,
    },
}
LEARNED = {
    "likelihood": {
        "when": "always",
        "steps": 20,
        "members": 2,
        "flow": {"transforms": 1, "hidden": 8, "blocks": 1, "bins": 2},
    },
}


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        pattern: of its path in the run folder.
        reads: what reads it next, and must raise InputError; None: nothing does.
        undo: outputs without which that stage begins anew.
    """

    pattern: str
    reads: Callable[[Run], Any] | None
    undo: str = ""


@dataclass
class Tally:
    """Of one kind: flips, those that the next reader caught, those that `verify` caught, harmless ones, missed ones."""

    kind: str
    flips: int = 0
    next: int = 0
    verify: int = 0
    harmless: int = 0
    missed: int = 0


def make_runs(folder: Path, *, whole: bool = True) -> Mapping[str, Run]:
    """A finished run, or without `whole` one up to `train`; one whose training was killed; one with a learned likelihood."""
    changes = {"own": SMALL, "stopped": SMALL} | ({"learned": SMALL | LEARNED} if whole else {})
    runs = {}
    for name, settings in changes.items():
        (folder / name).mkdir()
        runs[name] = Run(load_case(write_config(folder / name, settings)), folder / name / "run")
    write_profile(load_profile("slurm"), runs["own"].folder)
    write_case(runs["own"].case, runs["own"].folder)
    for stage in (simulate, train, infer, validate, compare, report) if whole else (simulate, train):
        stage(runs["own"])
    shutil.copytree(runs["own"].folder / "simulations", runs["stopped"].folder / "simulations")
    simulate(runs["stopped"])
    with killed_in_phase(1), suppress(KeyboardInterrupt):
        train(runs["stopped"])
    for stage in (simulate, likelihood, train) if whole else ():
        stage(runs["learned"])
    return runs


@contextmanager
def killed_in_phase(number: int) -> Iterator[None]:
    """Training that ends before a phase is noted as finished: its last state is there, as after a SIGKILL."""
    write = schedule.write_safetensors

    def until_then(path: Path, *rest: Any) -> None:
        if path.stem == f"phase-{number}":
            raise KeyboardInterrupt
        write(path, *rest)

    schedule.write_safetensors = until_then
    try:
        yield
    finally:
        schedule.write_safetensors = write


KINDS: Mapping[str, Sequence[Kind]] = {
    "own": (
        Kind("simulations.h5", train, "posterior.safetensors"),
        Kind("simulations/shard-*.h5", lambda run: load_simulations(run, run.model)),
        Kind("posterior.safetensors", infer, "inference.h5"),
        Kind("inference.h5", compare, "comparison.h5"),
        Kind("validation.h5", report, "report.html"),
        Kind("comparison.h5", report, "report.html"),
        Kind("report.html", None),
        Kind("training.csv", None),
        Kind("figures/*.png", None),
        Kind("checkpoints/tensorboard/*/*", None),
        Kind("settings/*.yaml", None),
        Kind("settings/*.sha256", infer, "inference.h5"),
        Kind("workflow/case.yaml", lambda run: saved_case(run.folder)),
        Kind("workflow/profile.yaml", lambda run: saved_profile(run.folder)),
    ),
    "stopped": (
        Kind("checkpoints/phase-0.safetensors", train),
        Kind("checkpoints/phase-1.ckpt", train),
    ),
    "learned": (Kind("likelihood.safetensors", train, "posterior.safetensors"),),
}


def flip_all(runs: Mapping[str, Run], folder: Path, *, places: int, seed: int) -> list[Tally]:
    """Flip single bits, at random places of the files of each kind, one at a time in a fresh copy of the run."""
    chance = random.Random(seed)
    tallies = []
    for name in runs:
        for kind in KINDS[name]:
            tally = Tally(kind.pattern)
            files = sorted(p.relative_to(runs[name].folder) for p in runs[name].folder.glob(kind.pattern))
            if not files:  # of a run that is not whole
                continue
            for _ in range(places):
                file = chance.choice(files)
                bit = chance.randrange(8 * (runs[name].folder / file).stat().st_size)
                flip_one(runs[name], file, bit, kind, folder / "copy", tally)
            tallies.append(tally)
    return tallies


def flip_one(run: Run, file: Path, bit: int, kind: Kind, folder: Path, tally: Tally) -> None:
    """One bit of one file: what `verify` says, then what reads it next."""
    copy = copy_of(run, folder)
    path = copy.folder / file
    before, harmless = path.read_bytes(), content(copy, path)
    path.write_bytes(flipped(before, bit))
    same = harmless is not None and content(copy, path) == harmless
    named = {f.path for f in check_run(copy.folder)}
    if kind.undo:
        (copy.folder / kind.undo).unlink(missing_ok=True)
    refused = False
    if kind.reads is not None:
        try:
            kind.reads(copy)
        except InputError:
            refused = True
    tally.flips += 1
    tally.next += refused
    tally.verify += path in named
    tally.harmless += same
    caught = path in named and (refused or kind.reads is None)
    if not (caught or same):
        tally.missed += 1
        sys.stderr.write(f"missed: {file}, bit {bit}: verify {path in named}, next {refused}\n")


def copy_of(run: Run, folder: Path) -> Run:
    """A fresh copy of a run; its config stays where it is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run.folder, folder)
    return replace(run, folder=folder)


def content(run: Run, path: Path) -> Any:
    """All that a shard of simulations or a checkpoint says, where it can be read; None: every bit of this kind counts."""
    try:
        if path.suffix == ".ckpt":
            check_zip(path)
            with zipfile.ZipFile(path) as file:
                return {name: file.read(name) for name in file.namelist()}
        if path.name.startswith("shard-"):
            return hdf5_content_digest(path), check_run(run.folder) == []
    except InputError:
        pass
    return None


def flipped(raw: bytes, bit: int) -> bytes:
    """`raw` with one bit the other way."""
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    console.quiet = True
    with tempfile.TemporaryDirectory() as name:
        runs = make_runs(Path(name))
        tallies = flip_all(runs, Path(name), places=given.places, seed=given.seed)
    for t in tallies:
        sys.stdout.write(
            f"{t.kind:<36} {t.flips} flips: next reader {t.next}, verify {t.verify}, harmless {t.harmless}, missed {t.missed}\n"
        )
    if any(t.missed for t in tallies):
        raise SystemExit("a flipped bit was not caught")


if __name__ == "__main__":
    main()
