"""Side by side in one run: this engine, sbi's NPE and sbi's amortized VIPosterior, on the same task and budget.

    python -m benchmarks.peers bernoulli_glm slcp --budget 120

NPE as sbi has it by default, on 20,000 stored simulations, for as many epochs as fit into the budget or until it stops
by itself. VIPosterior.train_amortized with the same likelihood, its early stopping (20 noisy validations) off so that it
uses the budget. Ours on fresh simulations, with budgets that double, until it is as accurate as the better of the two
at its end: the ratio of the times is the result. Accuracy is the mean ESS fraction of raw q against the exact posterior
on 200 simulations that nobody trained on: it needs no normalisation of q, and prior support that q leaks out of counts
as draws lost. Seconds of one core. Rows go to benchmarks/results/peers.csv.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import torch
from torch import Tensor

from benchmarks.accuracy import MARGIN, ROOT, RUNS, case_of, train_for
from benchmarks.table import append
from pipeline.estimators.importance import ess_fraction
from pipeline.estimators.posterior import load_posterior
from pipeline.stages.run import Run
from simulators.priors import sample
from simulators.protocol import log_likelihood

RESULTS = ROOT / "benchmarks" / "results" / "peers.csv"
STORED = 20_000
HELD_OUT, DRAWS = 200, 500
FIRST_BUDGET = 4.0


class Task:
    """A benchmark task with simulations for the peers and held-out ones for all.

    Attributes:
        theta, x: stored simulations, float32 as sbi wants them.
        held_out: x of simulations that nobody trains on.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self.run = Run(case_of(name, "default", 0, seed), RUNS / "peers")
        stream = torch.Generator().manual_seed(1000 + seed)
        self.theta = sample(self.run.prior, STORED, stream)
        self.x = self.run.simulator.simulate(self.theta, None, generator=stream)["x"].float()
        self.theta = self.theta.float()
        theta = sample(self.run.prior, HELD_OUT, stream)
        self.held_out = self.run.simulator.simulate(theta, None, generator=stream)["x"]

    def log_joint(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x given theta) + log p(theta), (..., N, D) and (N, M) -> (..., N); -inf outside the prior."""
        log_prior = self.run.prior.log_prob(theta)
        inside = log_prior.isfinite()
        safe = torch.where(inside[..., None], theta, 0.5)
        return torch.where(inside, log_likelihood(self.run.simulator, safe, {"x": x}) + log_prior, -torch.inf)

    def accuracy(self, theta: Tensor, log_q: Tensor) -> float:
        """Mean ESS fraction of draws (K, N, D) of the held-out simulations."""
        return float(ess_fraction(self.log_joint(theta.double(), self.held_out) - log_q.double()).mean())


def ours(task: Task, budget_s: float) -> tuple[float, float]:
    """(seconds of one core spent on training, accuracy)."""
    folder = RUNS / f"peers-{task.name}-{budget_s:g}"
    run, (_, seconds, _) = train_for(task.name, "default", 0, budget_s, task.seed, folder)
    posterior = load_posterior(run.output("train"), case=run.case)
    theta, log_q = posterior.sample_and_log_prob(
        (DRAWS,), {"x": task.held_out}, generator=torch.Generator().manual_seed(1)
    )
    shutil.rmtree(folder)
    return seconds, task.accuracy(theta, log_q)


def npe(task: Task, budget_s: float) -> tuple[float, float]:
    """sbi's NPE, its defaults throughout but for the number of epochs."""
    from sbi.inference import NPE

    torch.manual_seed(task.seed)
    inference = NPE(prior=task.run.prior, show_progress_bars=False)
    inference.append_simulations(task.theta, task.x)
    started = time.process_time()
    inference.train(max_num_epochs=2)
    epoch = (time.process_time() - started) / 2
    rest = max(1, int(MARGIN * budget_s / epoch) - 2)
    estimator = inference.train(max_num_epochs=rest, resume_training=True)
    seconds = time.process_time() - started
    posterior = inference.build_posterior(estimator)
    with torch.no_grad():
        theta = posterior.sample_batched(torch.Size((DRAWS,)), task.held_out.float(), show_progress_bars=False)
        log_q = estimator.log_prob(theta, task.held_out.float())
    return seconds, task.accuracy(theta, log_q)


def variational(task: Task, budget_s: float) -> tuple[float, float]:
    """sbi's amortized ELBO with the task's own likelihood; accuracy NaN where it does not run."""
    from sbi.inference.posteriors import VIPosterior
    from sbi.inference.potentials.base_potential import BasePotential

    class Joint(BasePotential):
        """log joint density with gradients, rows of theta against rows of x."""

        def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:
            with torch.set_grad_enabled(track_gradients):
                return task.log_joint(theta, self.x_o)

    def trained(iterations: int) -> tuple[Any, float]:
        torch.manual_seed(task.seed)
        posterior = VIPosterior(Joint(task.run.prior), prior=task.run.prior)
        started = time.process_time()
        posterior.train_amortized(
            task.theta, task.x, max_num_iters=iterations, stop_after_iters=10**9, show_progress_bar=False
        )
        return posterior, time.process_time() - started

    try:
        probe = [trained(n)[1] for n in (10, 30)]
        posterior, seconds = trained(max(20, int(MARGIN * budget_s * 20 / (probe[1] - probe[0]))))
        with torch.no_grad():
            q = posterior._amortized_q
            theta, log_q = q.sample_and_log_prob(torch.Size((DRAWS,)), condition=task.held_out.float())
        return seconds, task.accuracy(theta, log_q)
    except (ValueError, RuntimeError, AssertionError) as error:
        sys.stdout.write(f"{task.name}: VIPosterior: {type(error).__name__}: {str(error).splitlines()[0]}\n")
        return math.nan, math.nan


def compare(name: str, budget_s: float, seed: int) -> dict[str, Any]:
    """One row of the table."""
    task = Task(name, seed)
    row: dict[str, Any] = {"task": name, "budget_s": budget_s, "seed": seed}
    peers: dict[str, Callable[[Task, float], tuple[float, float]]] = {"npe": npe, "vi": variational}
    best, best_seconds = -math.inf, math.nan
    for peer, function in peers.items():
        seconds, accuracy = function(task, budget_s)
        row |= {f"{peer}_s": round(seconds, 1), f"{peer}_ess": round(accuracy, 4)}
        if accuracy > best:
            best, best_seconds = accuracy, seconds
        sys.stdout.write(f"{name}: {peer} {seconds:.1f} s, ESS fraction {accuracy:.4f}\n")
    ours_budget, reached = FIRST_BUDGET, math.nan
    seconds, accuracy = math.nan, math.nan
    while ours_budget <= budget_s:
        seconds, accuracy = ours(task, ours_budget)
        sys.stdout.write(f"{name}: ours {seconds:.1f} s, ESS fraction {accuracy:.4f}\n")
        sys.stdout.flush()
        if accuracy >= best and math.isnan(reached):
            reached = seconds
            if ours_budget < budget_s / 4:
                ours_budget = budget_s / 2  # what the whole budget gives is shown too
        ours_budget *= 2
    row |= {"ours_s": round(seconds, 1), "ours_ess": round(accuracy, 4), "ours_as_good_s": round(reached, 1)}
    row["ratio"] = round(best_seconds / reached, 1)
    row |= {"machine": f"{os.cpu_count()} cores {platform.machine()}", "date": time.strftime("%Y-%m-%d")}
    return row


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="TASK")
    parser.add_argument("--budget", type=float, default=120, help="seconds of one core for each side")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for task in given.tasks:
        row = compare(task, given.budget, given.seed)
        append(RESULTS, [row])
        sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
