"""Calibration of delivered posteriors by sbi's own `run_sbc` and `run_tarp`: how long it takes, and whether it is flat.

    python -m benchmarks.calibration linear_gaussian k2_24 --simulations 1000

A network is trained briefly on each case. Then theta is drawn from the distribution that it was trained on (the prior,
or a proposal in its place, which is then the prior of the tested posterior as in stage `validate`), x is simulated, and
sbi's functions are given `Posterior.weighted`. Simulations with fewer than 100 effective draws are left out and counted;
which they are depends on x and q, not on the truth. Beside it stands `elboscope validate` on as many held-out
simulations, which finds the weighted draws once for all of its tests. Wall seconds, one thread. Rows go to benchmarks/results/calibration.csv.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from benchmarks.accuracy import ROOT, RUNS
from benchmarks.table import append
from pipeline.config import case_from_values, load_case
from pipeline.diagnostics.uniformity import simultaneous_band
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.settings import CaseSettings
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.stages.validate import validate
from simulators.priors import sample

RESULTS = ROOT / "benchmarks" / "results" / "calibration.csv"
DRAWS, PROPOSALS, LEAST_ESS = 250, 2_500, 100.0
LINEAR_GAUSSIAN: dict[str, Any] = {
    "name": "linear_gaussian",
    "simulator": {"name": "linear_gaussian"},
    "simulate": {"count": 8_000},
    "train": {
        "flow": {"transforms": 2, "hidden": 32, "blocks": 1, "bins": 6},
        "embedding": {"kind": "none"},
        "phases": [
            {"objective": "forward_kl", "steps": 200, "learning_rate": 3e-3, "batch": 256},
            {"objective": "elbo", "steps": 300, "learning_rate": 2e-3, "batch": 256},
        ],
    },
}


def case_named(name: str, simulations: int) -> CaseSettings:
    """The case with a short training and as many simulations to validate on."""
    changes = [f"validate.simulations={simulations}", f"simulate.held_out={simulations + 1000}", "threads=1"]
    if name == "linear_gaussian":
        return case_from_values(
            LINEAR_GAUSSIAN
            | {
                "threads": 1,
                "validate": {"simulations": simulations},
                "simulate": {"count": 8_000, "held_out": simulations + 1_000},
            },
            name,
        )
    return load_case(ROOT / "configs" / f"{name}.yaml", [*changes, "train.steps=600", "simulate.count=20000"])


def measure(name: str, simulations: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """The row of a case, theta from what the network was trained on."""
    run = Run(case_named(name, simulations), folder / f"calibration-{name}")
    run.pin_threads()
    simulate(run)
    started = time.perf_counter()
    posterior = load_posterior(train(run), case=run.case)
    train_s = time.perf_counter() - started

    started = time.perf_counter()
    path = validate(run)
    validate_s = time.perf_counter() - started
    with h5py.File(path, "r") as file:
        attributes = file["calibration"].attrs
        verdict = "calibrated" if attributes["passed"] else "not calibrated"
    specs = run.case.simulate.proposal
    first = tested_by_sbi(run, posterior, run.proposal if specs else None, simulations, seed)
    rows = [{"theta_from": "proposal" if specs else "prior"} | first | {"validate_s": round(validate_s, 1)}]
    rows[0]["validate"] = verdict
    common = {"case": name, "simulations": simulations, "draws": DRAWS, "proposals": PROPOSALS}
    end = {"seed": seed, "machine": f"{os.cpu_count()} cores {platform.machine()}", "date": time.strftime("%Y-%m-%d")}
    return [common | {"train_s": round(train_s, 1)} | row | end for row in rows]


def tested_by_sbi(
    run: Run, posterior: Posterior, distribution: Distribution | None, simulations: int, seed: int
) -> dict[str, Any]:
    """What `run_sbc` and `run_tarp` say of delivered posteriors, and how long they take.

    Args:
        distribution: of theta, in place of the prior.
    """
    from sbi.diagnostics import check_tarp, run_sbc, run_tarp

    stream = torch.Generator().manual_seed(seed)
    theta = sample(distribution or run.prior, simulations, stream)
    data = run.simulator.simulate(theta, None, generator=stream)
    x = torch.cat([data[o.name].double().flatten(1) for o in run.simulator.observables], 1)
    delivered = posterior.weighted(proposals=PROPOSALS, least_ess=LEAST_ESS, prior=distribution)
    started = time.perf_counter()
    tested = delivered.deliver(DRAWS, x, generator=stream).ess >= LEAST_ESS
    select_s = time.perf_counter() - started

    torch.manual_seed(seed)
    given: dict[str, Any] = {"num_posterior_samples": DRAWS, "show_progress_bar": False}
    started = time.perf_counter()
    ranks, _ = run_sbc(theta[tested], x[tested], delivered, **given)  # pyright: ignore[reportArgumentType]
    sbc_s = time.perf_counter() - started
    started = time.perf_counter()
    coverage, alpha = run_tarp(theta[tested], x[tested], delivered, **given)  # pyright: ignore[reportArgumentType]
    tarp_s = time.perf_counter() - started
    p, outside = flat(ranks, [parameter.name for parameter in run.simulator.parameters], seed)
    return {
        "tested": int(tested.sum()),
        "select_s": round(select_s, 1),
        "run_sbc_s": round(sbc_s, 1),
        "run_tarp_s": round(tarp_s, 1),
        "least_rank_p": round(p, 4),
        "outside_band": " ".join(outside) or "none",
        "most_lowest_ranks": int((ranks == 0).sum(0).max()),
        "most_highest_ranks": int((ranks == DRAWS).sum(0).max()),
        "expected_of_each": round(len(ranks) / (DRAWS + 1), 1),
        "tarp_area": round(check_tarp(coverage, alpha)[0], 4),
        "tarp_inside_band": within(alpha, coverage, len(ranks), seed),
    }


def flat(ranks: Tensor, names: Sequence[str], seed: int) -> tuple[float, list[str]]:
    """Least Kolmogorov-Smirnov p-value, and which parameters leave the 99 % band of their ranks."""
    from sbi.diagnostics.sbc import check_uniformity_frequentist

    p = float(check_uniformity_frequentist(ranks, DRAWS).min())
    cut = np.arange(1, DRAWS + 1)
    lower, upper = simultaneous_band(cut / (DRAWS + 1), len(ranks), seed=seed)
    ecdf = (ranks.numpy()[:, :, None] < cut).mean(0)
    return p, [name for name, row in zip(names, ecdf, strict=True) if not ((row >= lower) & (row <= upper)).all()]


def within(alpha: Tensor, coverage: Tensor, count: int, seed: int) -> bool:
    """Whether TARP's curve stays inside the 99 % band of an exact posterior."""
    level = alpha.double().numpy().clip(0.0, 1.0)
    lower, upper = simultaneous_band(level, count, seed=seed)
    curve = coverage.double().numpy().clip(0.0, 1.0)
    between = slice(
        1, -1
    )  # sbi's grid begins and ends at the extremes of f, where the curve is 0 and 1 by construction
    return bool(((curve >= lower) & (curve <= upper))[between].all())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    shown = [k for k in rows[0] if k not in ("draws", "proposals", "seed", "machine", "date")]
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    return "\n".join(lines + ["| " + " | ".join(str(row[k]) for k in shown) + " |" for row in rows])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=("linear_gaussian", "k2_24"))
    parser.add_argument("--simulations", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in given.cases:
        found = measure(name, given.simulations, given.seed, given.runs)
        append(RESULTS, found)
        rows += found
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
