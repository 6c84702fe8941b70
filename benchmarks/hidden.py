"""The public tasks with their likelihood hidden: ours beside sbi's NPE and NLE on the same simulations.

    python -m benchmarks.hidden two_moons slcp --simulations 10000
    python -m benchmarks.hidden                      # the table

A tenth of the simulations is held out, by every method. Ours: `elboscope` with likelihood.when: always, one network a task,
raw q and the delivered draws, which are weighted by the learned likelihood. NPE and NLE: sbi's defaults, NLE sampled by its
vectorised slice sampler, 100 chains. C2ST as the benchmark defines it, observations 1-5, with as many draws a side as are
asked for. Published figures, at the same number of simulations and 10,000 draws: shared/reference/published_c2st.csv. Rows go to
benchmarks/results/hidden.csv.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import numpy as np
import torch
from torch.distributions import Distribution

from benchmarks.accuracy import OBSERVATIONS, REFERENCE, ROOT, RUNS, TASKS, certified_draws, reference_of
from benchmarks.table import append
from pipeline.config import load_case
from pipeline.diagnostics.c2st import c2st
from pipeline.errors import InputError
from pipeline.estimators.posterior import load_posterior
from pipeline.rng import generator
from pipeline.stages.likelihood import likelihood
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import load_simulations, train
from pipeline.store import write_data

RESULTS = ROOT / "benchmarks" / "results" / "hidden.csv"
METHODS = ("ours_raw", "ours_certified", "npe", "nle")
CHAINS = 100
Draws = dict[str, list[np.ndarray]]


def run_of(task: str, simulations: int, seed: int, more: list[str]) -> Run:
    """The task's own config with its likelihood hidden."""
    held_out = simulations // 10
    overrides = [
        f"seed={seed}", "threads=1", "likelihood.when=always", "train.data=file", "train.check_every=200",
        f"simulate.count={simulations - held_out}", f"simulate.held_out={held_out}", *more,
    ]  # fmt: skip
    case = load_case(ROOT / "configs" / "benchmark" / f"{task}.yaml", overrides)
    return Run(case, RUNS / f"hidden-{task}-{simulations}-{seed}")


def ours(run: Run, observations: Path, x: torch.Tensor, draws: int) -> tuple[Draws, list[str], dict[str, float]]:
    """Raw and delivered draws, verdicts, and seconds of one core."""
    started = time.process_time()
    likelihood(run)
    train(run)
    seconds = time.process_time() - started
    posterior = load_posterior(run.output("train"), case=run.case)
    stream = generator(run.case.seed, "benchmark-raw")
    raw = posterior.sample_and_log_prob((draws,), {"x": x}, generator=stream)[0].numpy()
    started = time.process_time()
    certified, about = certified_draws(run, observations, draws)
    each = time.process_time() - started
    found = {"ours_raw": [raw[:, n] for n in range(OBSERVATIONS)], "ours_certified": certified}
    return found, [a["verdict"] for a in about], {"ours_raw": seconds, "ours_certified": seconds + each}


def peer(name: str, run: Run, x: torch.Tensor, draws: int) -> tuple[list[np.ndarray], float]:
    """Draws of sbi's NPE or NLE, trained on the simulations of the run, and seconds of one core."""
    from sbi.inference import NLE, NPE

    held_out, training = load_simulations(run, run.simulator)
    theta = torch.cat([training.theta, held_out.theta]).float()
    data = torch.cat([training.x["x"], held_out.x["x"]]).float().flatten(1)
    torch.manual_seed(run.case.seed)
    started = time.process_time()
    inference: Any = {"npe": NPE, "nle": NLE}[name](prior=in_float32(run.prior), show_progress_bars=False)
    inference.append_simulations(theta, data).train()
    if name == "npe":
        posterior = inference.build_posterior()
        found = [posterior.sample((draws,), x=row.float(), show_progress_bars=False).numpy() for row in x]
    else:
        options = {"num_chains": CHAINS, "thin": 5, "warmup_steps": 50, "init_strategy": "resample"}
        posterior = inference.build_posterior(mcmc_method="slice_np_vectorized", mcmc_parameters=options)
        found = [posterior.sample((draws,), x=row.float()[None], show_progress_bars=False).numpy() for row in x]
    return found, time.process_time() - started


def measure(task: str, simulations: int, seed: int, draws: int, methods: list[str], more: list[str]) -> None:
    """One task: whatever the table lacks."""
    about = {"task": task, "simulations": simulations, "seed": seed, "draws": draws}
    known = [r for r in rows_done() if all(r[k] == str(v) for k, v in about.items())]
    done = {r["method"] for r in known if r["settings"] == settings_of(r["method"], more)}
    wanted = [m for m in methods if m not in done]
    if not wanted:
        return
    run = run_of(task, simulations, seed, more)
    simulate(run)
    x, reference = reference_of(task)
    observations = run.folder / "observations.h5"
    ids = [str(n + 1) for n in range(OBSERVATIONS)]
    write_data(observations, observables=run.simulator.observables, x={"x": x}, ids=ids)
    if any(m.startswith("ours") for m in wanted):
        found, verdicts, seconds = ours(run, observations, x, draws)
        for name in [m for m in METHODS if m in found and m in wanted]:
            said = verdicts if name == "ours_certified" else [""] * OBSERVATIONS
            _judge(about | {"method": name}, reference, found[name], said, seconds[name], more)
    for name in [m for m in ("npe", "nle") if m in wanted]:
        drawn, spent = peer(name, run, x, draws)
        _judge(about | {"method": name}, reference, drawn, [""] * OBSERVATIONS, spent, [])
    shutil.rmtree(run.folder)


def _judge(
    about: dict[str, Any],
    reference: list[np.ndarray],
    drawn: list[np.ndarray],
    verdicts: list[str],
    seconds: float,
    more: list[str],
) -> None:
    """C2ST of every observation, into the table."""
    draws, rows = about["draws"], []
    for n in range(OBSERVATIONS):
        score = c2st(reference[n][:draws], np.asarray(drawn[n], dtype=np.float64)[:draws])
        rows.append(about | {"observation": n + 1, "c2st": round(score, 4), "verdict": verdicts[n]})
    stamp = {
        "seconds": round(seconds, 1),
        "settings": settings_of(about["method"], more),
        "date": time.strftime("%Y-%m-%d"),
    }
    append(RESULTS, [row | stamp for row in rows])
    mean = float(np.mean([r["c2st"] for r in rows]))
    sys.stdout.write(f"{about['task']} {about['simulations']} {about['method']}: {mean:.3f}, {seconds:.0f} s\n")
    sys.stdout.flush()


def settings_of(method: str, more: list[str]) -> str:
    """What the table says of the settings of a method: sbi's have none of ours."""
    return " ".join(more) if method.startswith("ours") else ""


def in_float32(value: Any) -> Any:
    """A prior whose draws are float32, as sbi's networks want them."""
    if isinstance(value, torch.Tensor):
        return value.float()
    if isinstance(value, tuple) and any(isinstance(v, (torch.Tensor, Distribution)) for v in value):
        return tuple(in_float32(v) for v in value)
    if not isinstance(value, Distribution):
        return value
    made = copy.copy(value)
    made.__dict__.update({k: in_float32(v) for k, v in vars(value).items()})
    return made


def rows_done() -> list[dict[str, str]]:
    """What the table holds."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published(task: str, simulations: int) -> dict[str, float]:
    """Published mean C2ST by algorithm; NaN where the table has none."""
    path = REFERENCE / "published_c2st.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["task"] == task and int(r["n"]) == simulations]
    return {r["algorithm"]: float(r["mean"]) for r in rows}


def summary() -> str:
    """Means and standard errors over observations, as a Markdown table, with the published figures."""
    lines = [
        "| task | simulations | ours, raw | ours, certified | verdicts | sbi NPE | sbi NLE | published NPE, NLE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int], dict[str, dict[str, list[dict[str, str]]]]] = {}
    for row in sorted(rows_done(), key=lambda r: (TASKS.index(r["task"]), int(r["simulations"]))):
        of_task = groups.setdefault((row["task"], int(row["simulations"])), {})
        of_task.setdefault(row["settings"], {}).setdefault(row["method"], []).append(row)
    for (task, simulations), by_settings in groups.items():
        peers = by_settings.get("", {})
        known = published(task, simulations)
        both = ", ".join(f"{known.get(a, math.nan):.3f}" for a in ("NPE", "NLE"))
        for settings, methods in by_settings.items():
            methods = {name: peers.get(name, []) for name in ("npe", "nle")} | methods
            cells = {name: _cell([float(r["c2st"]) for r in methods.get(name, [])]) for name in METHODS}
            verdicts = [r["verdict"] for r in methods.get("ours_certified", [])]
            counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
            what = f"{task}, {settings}" if settings else task
            lines.append(
                f"| {what} | {simulations:,} | {cells['ours_raw']} | {cells['ours_certified']} | {counts} | {cells['npe']} | {cells['nle']} | {both} |"
            )
    return "\n".join(lines) + "\n"


def _cell(scores: list[float]) -> str:
    if not scores:
        return ""
    return f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1) / math.sqrt(len(scores)):.3f}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; none prints the table")
    parser.add_argument("--simulations", type=int, default=10_000, help="held-out ones included")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draws", type=int, default=2_000, help="of each side in C2ST")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of ours")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not REFERENCE.is_dir():
        raise InputError(
            f"the reference posteriors are not here: expected {REFERENCE.name} in a folder `shared` beside the repository"
        )
    for task in given.tasks:
        measure(task, given.simulations, given.seed, given.draws, given.method or list(METHODS), given.set)
    if rows_done():
        sys.stdout.write(summary())


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
