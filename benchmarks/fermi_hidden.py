r"""The Fermi map without point sources: a learned likelihood's posterior beside MCMC on the exact likelihood.

    elboscope run configs/fermi_poisson.yaml
    elboscope run configs/fermi_poisson_hidden.yaml
    python -m benchmarks.fermi_hidden [EXACT_RUN] [HIDDEN_RUN] [--draws 2000]

Prints C2ST of the delivered draws of each run against emcee's draws of the first one, and how far means and widths lie from
emcee's, in its standard deviations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.diagnostics.c2st import c2st
from pipeline.stages.run import OUTPUTS
from pipeline.store import open_hdf5
from pipeline.tables.inference_reader import open_inference

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
    generator = np.random.default_rng(SEED)
    emcee = generator.permutation(emcee_draws(given.exact / OUTPUTS["compare"]))
    for words, folder in (("exact likelihood", given.exact), ("learned likelihood", given.hidden)):
        with open_inference(folder / OUTPUTS["infer"]) as inference:
            names, ours = [p.name for p in inference.parameters], generator.permutation(inference.draws(0))
        count = min(given.draws, len(ours), len(emcee))
        score = c2st(emcee[:count], ours[:count])
        shift = (ours.mean(0) - emcee.mean(0)) / emcee.std(0)
        width = ours.std(0) / emcee.std(0)
        sys.stdout.write(f"{words}: C2ST {score:.3f} with {count} draws a side\n")
        for name, s, w in zip(names, shift, width, strict=True):
            sys.stdout.write(f"  {name:12s} mean {s:+.2f} sd, width {w:.2f}\n")


def emcee_draws(comparison: Path) -> NDArray[np.float64]:
    """(K, D), of the one observation that was compared."""
    with open_hdf5(comparison) as file:
        group: Any = next(iter(file.values()))
        return np.asarray(group["emcee"]["draws"])


if __name__ == "__main__":
    main(sys.argv[1:])
