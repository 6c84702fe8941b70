"""Is the stated error of the evidence true? Weigh K2-24 with ten seeds, as it is delivered and refined.

    python benchmarks/evidence_scatter.py [RUN_FOLDER]

Uses the network of a finished run (default runs/k2_24). Prints each estimate, their scatter, and the stated error, and
the width of logk2, which is set by a tail of weight 5e-4: one run meets some 80 draws of it, ten runs together enough.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from pipeline.config import load_case
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.settings import InferSettings
from pipeline.stages.ladder import climb, one_row
from pipeline.stages.run import Run
from simulators.protocol import Data

REFERENCE = -103.349  # +- 0.001
REFERENCE_WIDTH = 0.324  # of logk2
SEEDS = 10


def main(folder: Path) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    run = Run(load_case(Path(__file__).parents[1] / "configs" / "k2_24.yaml"), folder)
    posterior = load_posterior(run.input("train"))
    x = one_row(run.observation().x, 0)
    for when in ("auto", "always"):
        refine = run.case.infer.refine.model_copy(update={"when": when})
        sys.stdout.write(f"refine: {when}\n")
        scatter(posterior, x, run.case.infer.model_copy(update={"refine": refine}))


def scatter(posterior: Posterior, x: Data, settings: InferSettings) -> None:
    """Ten climbs of the ladder."""
    rows, widths = [], []
    for seed in range(SEEDS):
        outcome = climb(posterior, x, settings=settings, seed=1000 + seed, index=0)
        e = outcome.evidence
        rows.append([float(v) for v in (e.log_evidence, e.log_evidence_error, e.ess_fraction, e.pareto_k, e.kl_gap)])
        theta, share = outcome.proposals.theta[:, 0, 1], torch.softmax(outcome.proposals.log_weight[:, 0], 0)
        widths.append(float((share * (theta - (share * theta).sum()).square()).sum().sqrt()))
        sys.stdout.write(f"seed {seed}: {outcome.verdict:9s} " + "  ".join(f"{v:.5f}" for v in rows[-1]) + "\n")
    table = np.array(rows)
    spread, stated = table[:, 0].std(ddof=1), np.sqrt(np.mean(table[:, 1] ** 2))
    sys.stdout.write(
        f"mean {table[:, 0].mean():.5f} (reference {REFERENCE}), scatter {spread:.5f}, stated error {stated:.5f}, "
        f"ratio {spread / stated:.2f}; ess_fraction {table[:, 2].min():.3f} to {table[:, 2].max():.3f}\n"
        f"width of logk2 {np.sqrt(np.mean(np.square(widths))):.3f} (reference {REFERENCE_WIDTH}), scatter {np.std(widths):.3f}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/k2_24"))
