"""Catalogues: observations a second, peak memory, and cost of an observation against a loop of emcee.

    python -m benchmarks.catalogue runs/k2_24/posterior.safetensors --counts 1000 10000 --emcee 20

Stars like K2-24 from the training proposal, 1,000 delivered draws each, by the command that a user has. Two ladders:
`weights` certifies by weights alone and flags what they do not; `auto` repairs those as far as needed. emcee runs as
`elboscope compare` runs it (same likelihood, vectorised walkers, started from our draws, which is more than a user has),
for as many steps as give it 1,000 effective draws: steps and burn-in are in the table. Rows go to
benchmarks/results/catalogue.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.table import append
from pipeline.baselines.emcee_sampler import run_emcee
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.rng import derived_seed, generator
from pipeline.stages.compare import densities
from pipeline.stages.ladder import one_row
from pipeline.store import write_data
from simulators.priors import sample
from simulators.proposals import proposal_of

RESULTS = Path(__file__).parent / "results" / "catalogue.csv"
DRAWS = 1_000
WALKERS, BURN_IN = 64, 500
LADDERS = {
    "weights": ["infer.refine.when=never", "infer.sample.when=never"],
    "auto": ["infer.refine.when=auto"],
}  # a case may say `always`
CHILD = """
import json, resource, subprocess, sys
code = subprocess.run(json.loads(sys.argv[1])).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(code)
"""


def write_stars(posterior: Posterior, count: int, path: Path) -> None:
    """Observations drawn from the posterior's training proposal."""
    stream = generator(7, "benchmark-stars")
    proposal = proposal_of(posterior.simulator, posterior.case.simulate.proposal)
    theta = sample(proposal, count, stream)
    x = posterior.simulator.simulate(theta, generator=stream)
    write_data(path, observables=posterior.simulator.observables, x=x, ids=[f"star {n}" for n in range(count)])


def infer(path: Path, stars: Path, out: Path, ladder: str) -> tuple[float, float]:
    """Seconds, start of the program included, and peak resident memory in MB of the command."""
    common = [f"infer.draws={DRAWS}", "infer.proposals=null", "infer.equal_proposals=null", "threads=1"]
    command = [sys.executable, "-m", "pipeline.cli", "infer", str(path), str(stars), "--out", str(out)]
    for setting in [*common, *LADDERS[ladder]]:
        command += ["--set", setting]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(command)], check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - started, float(done.stdout.split()[-1])


def emcee_seconds(posterior: Posterior, stars: Path, out: Path, count: int) -> tuple[float, float, int]:
    """Mean seconds of emcee for 1,000 effective draws of an observation, mean likelihood calls, and how many converged.

    A run of 3,000 steps tells the effective sample size of a step; burn-in is added in full.
    """
    with h5py.File(stars) as file, h5py.File(out) as inferred:
        x = {o.name: torch.from_numpy(file[f"x/{o.name}"][:count]) for o in posterior.simulator.observables}  # pyright: ignore
        draws = np.stack([inferred[f"posterior/{p}"][0, :, :count] for p in posterior.parameters], -1)  # pyright: ignore
    seconds, calls, converged = [], [], 0
    for n in range(count):
        _, joint = densities(posterior.simulator, posterior.prior, one_row(x, n))
        start = draws[np.linspace(0, DRAWS - 1, WALKERS).astype(int), n]
        result = run_emcee(joint, start, steps=3_000, burn_in=BURN_IN, seed=derived_seed(1, "benchmark-emcee", n))
        needed = min(1.0, DRAWS / result.checks["ess_bulk"]) * 3_000 + BURN_IN
        seconds.append(result.wall_time_s * needed / (3_000 + BURN_IN))
        calls.append(result.likelihood_calls * needed / (3_000 + BURN_IN))
        converged += result.converged
    return float(np.mean(seconds)), float(np.mean(calls)), converged


def record(row: dict[str, object]) -> None:
    """Add a row to the table and print it."""
    row |= {"machine": f"{os.cpu_count()} cores {platform.machine()}, 1 thread", "date": time.strftime("%Y-%m-%d")}
    append(RESULTS, [row])
    sys.stdout.write(f"{row}\n")
    sys.stdout.flush()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("posterior", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--ladder", choices=LADDERS, default="weights")
    parser.add_argument("--emcee", type=int, default=20, help="stars that emcee samples")
    parser.add_argument("--training", type=float, default=120.0, help="seconds that training took, for the ratio")
    given = parser.parse_args()
    torch.set_num_threads(1)
    posterior = load_posterior(given.posterior)
    with tempfile.TemporaryDirectory() as name:
        for count in given.counts:
            stars, out = Path(name) / f"stars-{count}.h5", Path(name) / f"inference-{count}.h5"
            write_stars(posterior, count, stars)
            seconds, memory = infer(given.posterior, stars, out, given.ladder)
            baseline, calls, converged = emcee_seconds(posterior, stars, out, given.emcee)
            with h5py.File(out) as file:
                verdicts = Counter(v.decode() for v in file["certificate/verdict"][:])  # pyright: ignore
                made = float(np.mean(file["certificate/likelihood_calls"][:]))  # pyright: ignore
            record(
                {
                    "ladder": given.ladder,
                    "observations": count,
                    "seconds": round(seconds, 1),
                    "per_second": round(count / seconds, 1),
                    "peak_memory_mb": round(memory),
                    "verdicts": " ".join(f"{v}:{n}" for v, n in verdicts.most_common()),
                    "likelihood_calls": round(made),
                    "emcee_stars": given.emcee,
                    "emcee_converged": converged,
                    "emcee_seconds": round(baseline, 2),
                    "emcee_calls": round(calls),
                    "ratio": round(baseline / (seconds / count), 1),
                    "ratio_with_training": round(baseline / ((seconds + given.training) / count), 1),
                }
            )


if __name__ == "__main__":
    main()
