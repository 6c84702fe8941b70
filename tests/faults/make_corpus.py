"""Make the binary seeds of the corpus again: python -m tests.faults.make_corpus. Text seeds are written by hand."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import h5py

from pipeline.config import load_case
from pipeline.stages.infer import infer
from pipeline.stages.likelihood import likelihood
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from tests.faults.flips import LEARNED, SMALL
from tests.faults.targets import CORPUS
from tests.pipeline.stages.conftest import write_case

TINY = {
    "simulate": {"count": 700, "held_out": 300, "shard": 1_000},
    "infer": {"refine": {"when": "never"}, "sample": {"when": "never"}, "draws": 12, "proposals": 200},
}
NARROW = {"hidden": 4, "blocks": 1}


def as_it_was(source: Path, target: Path) -> None:
    """The same groups, datasets and attributes in the oldest format, which has no checksums: flips reach our code."""
    with h5py.File(source) as old, h5py.File(target, "w", libver="earliest") as new:
        new.attrs.update(old.attrs)
        for name in old:
            old.copy(old[name], new, name)


def main() -> None:
    """Write into `corpus/`."""
    with tempfile.TemporaryDirectory() as name:
        for kind, settings in (("own", SMALL | TINY), ("learned", SMALL | TINY | LEARNED)):
            folder = Path(name) / kind
            folder.mkdir()
            settings = settings | {"train": settings["train"] | {"flow": {"transforms": 1, **NARROW, "bins": 2}}}
            run = Run(load_case(write_case(folder, settings)), folder / "run")
            simulate(run)
            if kind == "learned":
                likelihood(run)
                shutil.copy(run.output("likelihood"), CORPUS / "likelihood.safetensors")
                continue
            train(run)
            shutil.copy(run.output("train"), CORPUS / "posterior.safetensors")
            infer(run)
            shutil.copy(run.output("infer"), CORPUS / "inference.h5")
            shutil.copy(folder / "observed.h5", CORPUS / "observation.h5")
        as_it_was(CORPUS / "inference.h5", CORPUS / "inference_old.h5")
        as_it_was(CORPUS / "observation.h5", CORPUS / "observation_old.h5")


if __name__ == "__main__":
    main()
