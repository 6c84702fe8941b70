r"""The Fermi map without point sources: a learned likelihood's posterior beside MCMC on the exact likelihood.

    elboscope run configs/fermi_poisson.yaml
    elboscope run configs/fermi_poisson_hidden.yaml
    python -m benchmarks.fermi_hidden [EXACT_RUN] [HIDDEN_RUN] [--draws 2000]

Prints C2ST of the delivered draws of each run against emcee's draws of the first one, and how far means and widths lie from
emcee's, in its standard deviations.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.diagnostics.c2st import c2st
from pipeline.stages.run import OUTPUTS

ROOT = Path(__file__).parents[1]
SEED = 1
"""Of the choice of draws, where more are there than are asked for."""


def main(arguments: list[str]) -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exact", nargs="?", type=Path, default=ROOT / "runs" / "fermi_poisson")
    parser.add_argument("hidden", nargs="?", type=Path, default=ROOT / "runs" / "fermi_poisson_hidden")
    parser.add_argument("--draws", type=int, default=2_000, help="of each side in C2ST")
    given = parser.parse_args(arguments)
    names, emcee = baseline(given.exact / OUTPUTS["compare"], given.exact / OUTPUTS["infer"])
    generator = np.random.default_rng(SEED)
    emcee = emcee[generator.permutation(len(emcee))]
    for words, folder in (("exact likelihood", given.exact), ("learned likelihood", given.hidden)):
        ours = delivered(folder / OUTPUTS["infer"], names)
        count = min(given.draws, len(ours), len(emcee))
        score = c2st(emcee[:count], ours[generator.permutation(len(ours))[:count]])
        shift = (ours.mean(0) - emcee.mean(0)) / emcee.std(0)
        width = ours.std(0) / emcee.std(0)
        sys.stdout.write(f"{words}: C2ST {score:.3f} with {count} draws a side\n")
        for name, s, w in zip(names, shift, width, strict=True):
            sys.stdout.write(f"  {name:12s} mean {s:+.2f} sd, width {w:.2f}\n")


def baseline(comparison: Path, inference: Path) -> tuple[list[str], np.ndarray]:
    """Names of the parameters, and emcee's draws (K, D)."""
    with h5py.File(comparison) as file:
        group: Any = next(iter(file.values()))
        draws = np.asarray(group["emcee"]["draws"])
    with h5py.File(inference) as file:
        return json.loads(str(file.attrs["parameters"])), draws


def delivered(inference: Path, names: list[str]) -> np.ndarray:
    """Equally weighted draws, (L, D)."""
    with h5py.File(inference) as file:
        group: Any = file["posterior"]
        return np.stack([np.asarray(group[name])[0, :, 0] for name in names], axis=1)


if __name__ == "__main__":
    main(sys.argv[1:])
