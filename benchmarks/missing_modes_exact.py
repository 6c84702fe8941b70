"""The search beside a q that is exact but for a mode: how often is the mode found, and how often is nothing invented?

    python -m benchmarks.missing_modes_exact --seeds 100

q is a mixture of Student t components at the known modes of `problems.two_modes`: all of them, or all but the lesser one. Each
seed is an observation. `missing_modes` does the same with trained networks.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.problems.two_modes import TwoModes
from benchmarks.table import append
from pipeline.baselines.evidence_check import StudentMixture
from pipeline.diagnostics.landscape import Landscape
from pipeline.estimators.importance import summarize
from pipeline.estimators.network import Condition
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import weigh
from pipeline.settings import InferSettings
from pipeline.stages.search import Fitted
from pipeline.stages.searched_rung import Standing, search_one
from pipeline.stages.verdicts import verdict_of
from simulators.priors import prior_of

RESULTS = Path(__file__).parent / "results" / "missing_modes_exact.csv"
SETTINGS = InferSettings(draws=1_000)
FIVE = 5.0
"""Stated errors within which a log evidence must lie."""
PROBLEMS: dict[str, dict[str, Any]] = {
    "20 %, 4 parameters": {"share": 0.2, "dimension": 4},
    "5 %, 4 parameters": {"share": 0.05, "dimension": 4},
    "1 %, 4 parameters": {"share": 0.01, "dimension": 4},
    "20 %, 10 parameters": {"share": 0.2, "dimension": 10},
    "5 %, 10 parameters": {"share": 0.05, "dimension": 10},
    "20 %, 4 parameters, no gradient": {"share": 0.2, "dimension": 4, "gradient": False},
    "5 %, 4 parameters, no gradient": {"share": 0.05, "dimension": 4, "gradient": False},
    "20 % in a spike a tenth as wide, 2 parameters": {"share": 0.2, "dimension": 2, "width": 0.3, "second_width": 0.03},
}


class Unrefined:
    """What a search asks of a posterior: its network cannot be refined."""

    class network:  # noqa: N801
        """Of which the search asks this alone."""

        refinable = False

    device = torch.device("cpu")

    def __init__(self, simulator: TwoModes) -> None:
        self.simulator, self.prior = simulator, prior_of(simulator)


def modes_of(simulator: TwoModes, landscape: Landscape, theta: Tensor, *, complete: bool) -> Fitted:
    """q: t components at theta, and at -theta where it is complete, of the widths that they have."""
    places = [(theta, simulator.width)] + ([(-theta, simulator.second_width)] if complete else [])
    factors = []
    for place, width in places:
        slope = (landscape.to_real(place + 1e-5) - landscape.to_real(place - 1e-5))[0] / 2e-5
        factors.append(torch.diag(width * slope))
    w = torch.cat([landscape.to_real(place) for place, _ in places])
    weight = np.array([1 - simulator.share, simulator.share] if complete else [1.0])
    return Fitted(StudentMixture(weight, w.numpy(), torch.stack(factors).numpy()), landscape)


def one(options: dict[str, Any], seed: int, *, complete: bool) -> dict[str, Any]:
    """A row of figures of one observation."""
    simulator = TwoModes(**options)
    posterior = Unrefined(simulator)
    stream = torch.Generator().manual_seed(seed)
    theta = 0.6 + 1.6 * torch.rand(1, simulator.dimension, generator=stream, dtype=torch.float64)
    x = {"x": theta}
    landscape = Landscape(simulator, posterior.prior, x, generator=stream)
    q = modes_of(simulator, landscape, theta, complete=complete)
    draws = weigh(q, simulator, posterior.prior, x, draws=SETTINGS.most_proposals, generator=stream)
    evidence = summarize(draws)
    before = Standing(verdict_of(evidence, SETTINGS, SETTINGS.most_proposals), q, draws, evidence)
    condition = Condition(*(torch.zeros(1, 1) for _ in range(3)))
    started = time.process_time()
    after = search_one(cast(Posterior, posterior), x, condition, before, settings=SETTINGS, seed=seed, index=0)
    seconds = time.process_time() - started
    found = after.standing.evidence
    off = (float(found.log_evidence) - float(simulator.log_evidence(x))) / float(found.log_evidence_error)
    return {
        "seed": seed,
        "q": "complete" if complete else "lacks the mode",
        "before": before.verdict,
        "after": after.standing.verdict,
        "missed": round(after.missed, 5),
        "uncovered": round(after.uncovered, 5),
        "errors_off": round(off, 2),
        "calls": after.calls,
        "cpu_s": round(seconds, 3),
    }


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """What the rows of a problem say, as a row of a Markdown table."""
    lacks, complete = ([r for r in rows if (r["q"] == "complete") is c] for c in (False, True))
    found = sum(r["missed"] > 0 or r["after"] == "failed" for r in lacks)
    alarms = sum(r["missed"] > 0 or (r["after"] == "failed" and r["before"] != "failed") for r in complete)
    wrong = sum(r["after"] != "failed" and abs(r["errors_off"]) > FIVE for r in rows)
    verdicts = ", ".join(f"{n} {v}" for v, n in Counter(r["after"] for r in lacks).most_common())
    cpu = [float(np.median([r["cpu_s"] for r in some])) for some in (lacks, complete)]
    return f"| {name} | {found} of {len(lacks)} | {verdicts} | {alarms} of {len(complete)} | {wrong} | {cpu[0]:.2f}, {cpu[1]:.2f} |"


def main() -> None:
    """Run problems, append their rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", nargs="*", help=f"default: all of {', '.join(PROBLEMS)}")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.problem or PROBLEMS:
        rows = [one(PROBLEMS[name], s, complete=c) for s in range(arguments.seeds) for c in (False, True)]
        append(arguments.out, [{"problem": name} | r for r in rows])
        sys.stdout.write(line(name, rows) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
