"""The schedule of configs/k2_24.yaml against forward_kl alone, with the same network and the same time of one core.

    python benchmarks/schedules.py [FOLDER]

forward_kl gets as many steps as fit into the time that the schedule took, once on the same simulations, and once
on simulations whose jitter comes from the prior, which suits it better: it learns the posterior of whatever
distribution theta came from. All are judged by the ESS fraction against the posterior under the full prior, on the
observed star and on held-out simulations with the prior's jitter, and by the mean log evidence that their weights
find there: what q does not reach is missing from it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.config import load_case
from pipeline.estimators.importance import summarize
from pipeline.estimators.posterior import load_posterior
from pipeline.estimators.proposal import Amortized, weigh
from pipeline.rng import generator
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.stages.validate import held_out_simulations
from pipeline.store import DataSet

CONFIG = Path(__file__).parents[1] / "configs" / "k2_24.yaml"
SIMULATIONS, DRAWS = 400, 2_000


def judge(run: Run, cpu_seconds: float, held_out: DataSet) -> dict[str, float]:
    """ESS fractions and mean log evidence of a trained network, and what its training cost."""
    posterior = load_posterior(run.output("train"))
    result = {"cpu_seconds": cpu_seconds, "steps": float(sum(p.steps for p in run.phases))}
    for name, x, draws in (("observed", run.observation().x, 50_000), ("held_out", held_out.x, DRAWS)):
        q = Amortized(posterior.network, posterior.condition(x))
        stream = generator(1, "benchmark")
        e = summarize(weigh(q, posterior.simulator, posterior.prior, x, draws=draws, generator=stream))
        result[f"{name}_ess_fraction"] = float(e.ess_fraction.mean())
        result[f"{name}_log_evidence"] = float(e.log_evidence.mean())
        result[f"{name}_kl_gap"] = float(e.kl_gap.mean())
    return result


def trained(folder: Path, *overrides: str) -> tuple[Run, float]:
    """A run with `simulate` and `train` done, and the seconds of one core that training took."""
    run = Run(load_case(CONFIG, ["threads=1", *overrides]), folder)
    simulate(run)
    started = time.process_time()
    train(run)
    return run, time.process_time() - started


def main(folder: Path) -> None:
    """Train all, print and store the table."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.set_num_threads(1)
    ours, seconds = trained(folder / "ours")
    rates = "learning_rate: 5.0e-3, batch: 256"
    _, probe = trained(folder / "probe", f"train.phases=[{{objective: forward_kl, steps: 200, {rates}}}]")
    alone = f"train.phases=[{{objective: forward_kl, steps: {int(200 * seconds / probe)}, {rates}}}]"
    amplitudes = {k: v for k, v in ours.case.simulate.proposal.items() if k.startswith("logk")}
    runs = {
        "schedule": (ours, seconds),
        "forward_kl, same simulations": trained(folder / "forward_kl", alone),
        "forward_kl, prior's jitter": trained(
            folder / "forward_kl_prior_jitter", alone, f"simulate.proposal={json.dumps(amplitudes)}"
        ),
    }
    held_out = held_out_simulations(runs["forward_kl, prior's jitter"][0]).rows(0, SIMULATIONS)
    table = {name: judge(run, cpu, held_out) for name, (run, cpu) in runs.items()}
    for name, row in table.items():
        sys.stdout.write(f"{name}\n" + "".join(f"  {k:24s} {np.round(v, 4)}\n" for k, v in row.items()))
    (folder / "schedules.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/benchmark_schedules"))
