"""Accuracy on the public benchmark of simulation-based inference, against its reference posteriors.

    python -m benchmarks.accuracy two_moons slcp --budget 120
    python -m benchmarks.accuracy slcp --simulations 1000 --schedule forward_kl
    make benchmark TASK=slcp BUDGET=600

One network a task, trained for BUDGET seconds of one core on fresh simulations, or on a given number of stored ones;
then 10,000 draws of q as it is and 10,000 certified ones for each of five observations, by the commands that a user
has. C2ST as the benchmark defines it (`pipeline.diagnostics.c2st`). Rows go to benchmarks/results/accuracy.csv; what is
there already is not done again. The reference posteriors (Lueckmann et al. 2021, https://arxiv.org/abs/2101.04653) are
read from ../shared/reference.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import h5py
import numpy as np
import torch

from benchmarks.table import append
from pipeline.config import load_case
from pipeline.diagnostics.c2st import c2st
from pipeline.errors import InputError
from pipeline.estimators.posterior import load_posterior
from pipeline.rng import generator
from pipeline.settings import CaseSettings
from pipeline.stages.infer import infer_observations
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.store import write_data

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT.parent / "shared" / "reference"
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.csv"
FIGURE = ROOT / "docs" / "figures" / "accuracy.png"
SCARCE_FIGURE = ROOT / "docs" / "figures" / "scarce.png"
RUNS = ROOT / "runs" / "benchmark"
TASKS = (
    "two_moons",
    "slcp",
    "gaussian_linear_uniform",
    "bernoulli_glm",
    "gaussian_mixture",
    "sir",
    "gaussian_linear",
    "lotka_volterra",
    "slcp_distractors",
    "bernoulli_glm_raw",
)
GROUPS = {"bernoulli_glm_raw": "bernoulli_glm", "slcp_distractors": "slcp"}
"""Tasks that share a reference file with another."""
OBSERVATIONS = 5
DRAWS = 10_000
PROBE_STEPS = 200
MARGIN = 0.95  # of the budget is planned for
SCHEDULES: dict[str, str] = {
    "default": "",
    "forward_kl": "{objective: forward_kl, steps: 1000, RATE}",
    "forward_kl+elbo 5%": "{objective: forward_kl, steps: 950, RATE}, {objective: elbo, steps: 50, learning_rate: 5.0e-4, batch: 256}",
    "elbo": "{objective: elbo, steps: 1000, RATE}",
    "iwelbo": "{objective: iwelbo, steps: 1000, draws: 8, RATE}",
    "wake": "{objective: wake, steps: 1000, draws: 16, prior_share: 0.25, RATE}",
    "forward_kl+elbo": "{objective: forward_kl, steps: 500, RATE}, {objective: elbo, steps: 500, learning_rate: 1.0e-3}",
}
"""Phases in YAML; RATE is learning rate and batch, see `case_of`."""


@dataclass(frozen=True)
class Row:
    """One observation of one trained network."""

    task: str
    schedule: str
    simulations: int
    budget_s: float
    seed: int
    draws: int
    observation: int
    c2st_raw: float
    c2st_certified: float
    verdict: str
    ess_fraction: float
    kl_gap: float
    steps: int
    train_cpu_s: float
    train_wall_s: float
    machine: str
    torch: str
    date: str


KEY = ("task", "schedule", "simulations", "budget_s", "seed", "draws")


def rows_done() -> list[dict[str, str]]:
    """What the table holds."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def case_of(task: str, schedule: str, simulations: int, seed: int, *more: str) -> CaseSettings:
    """The task's own config; with stored simulations a tenth of them is held out, as a user would have to."""
    rate = "learning_rate: 5.0e-3, batch: 128" if simulations else "learning_rate: 1.0e-2, batch: 256"
    phases = SCHEDULES[schedule].replace("RATE", rate)
    overrides = [f"seed={seed}", "threads=1", *([f"train.phases=[{phases}]"] if phases else []), *more]
    if simulations:
        held_out = max(20, simulations // 10)
        stored = [f"simulate.count={simulations - held_out}", f"simulate.held_out={held_out}"]
        overrides += [*stored, "train.data=file", "train.check_every=100"]
    return load_case(ROOT / "configs" / "benchmark" / f"{task}.yaml", overrides)


def train_for(task: str, schedule: str, simulations: int, budget_s: float, seed: int, folder: Path) -> tuple[Run, Any]:
    """Train as many steps as fit into the budget (seconds of one core), by two short runs that measure the cost."""
    cost = []
    for factor in (1, 3):
        case = case_of(task, schedule, simulations, seed, "train.check_every=1000000")
        phases = len(Run(case, folder / "probe").phases)
        run = Run(
            case_of(
                task,
                schedule,
                simulations,
                seed,
                f"train.steps={factor * PROBE_STEPS * phases}",
                "train.check_every=1000000",
            ),
            folder / f"probe-{factor}",
        )
        shutil.rmtree(run.folder, ignore_errors=True)  # one left by a stopped run is up to date, and would cost nothing
        simulate(run)
        started = time.process_time()
        train(run)
        cost.append((factor * PROBE_STEPS * phases, time.process_time() - started))
    step = (cost[1][1] - cost[0][1]) / (cost[1][0] - cost[0][0])
    check = max(0.0, cost[0][1] - cost[0][0] * step) / phases
    every = load_case(ROOT / "configs" / "benchmark" / f"{task}.yaml").train.check_every if not simulations else 100
    steps = max(10, int(MARGIN * budget_s / (step + check / every)))
    run = Run(case_of(task, schedule, simulations, seed, f"train.steps={steps}"), folder)
    simulate(run)
    cpu, wall = time.process_time(), time.monotonic()
    train(run)
    return run, (steps, time.process_time() - cpu, time.monotonic() - wall)


def reference_of(task: str) -> tuple[torch.Tensor, list[np.ndarray]]:
    """Observations (N, M) and reference draws of each."""
    with h5py.File(REFERENCE / f"{GROUPS.get(task, task)}.h5") as file:
        groups: Any = [file[f"observation_{n:02d}"] for n in range(1, OBSERVATIONS + 1)]
        name = {"bernoulli_glm_raw": "x_raw", "slcp_distractors": "x_distractors"}.get(task, "x")
        x = torch.stack([torch.from_numpy(np.asarray(g[name], dtype=np.float64)).flatten() for g in groups])
        return x, [np.asarray(g["reference_posterior"], dtype=np.float64) for g in groups]


def judge(task: str, run: Run, draws: int, *, certify: bool) -> list[dict[str, Any]]:
    """C2ST of raw draws of every observation, and of certified ones where asked for."""
    x, reference = reference_of(task)
    observations = run.folder / "observations.h5"
    ids = [str(n + 1) for n in range(OBSERVATIONS)]
    write_data(observations, observables=run.simulator.observables, x={"x": x}, ids=ids)
    posterior = load_posterior(run.output("train"), case=run.case)
    stream = generator(run.case.seed, "benchmark-raw")
    raw = posterior.sample_and_log_prob((draws,), {"x": x}, generator=stream)[0].numpy()
    certified, about = certified_draws(run, observations, draws) if certify else (None, [UNCERTIFIED] * OBSERVATIONS)
    results = []
    for n in range(OBSERVATIONS):
        row = {"observation": n + 1, "c2st_raw": round(c2st(reference[n], raw[:, n], jobs=2), 4)}
        if certified is not None:
            row["c2st_certified"] = round(c2st(reference[n], certified[n], jobs=2), 4)
        results.append(row | about[n])
        sys.stdout.write(f"{task} {n + 1}: {results[-1]}\n")
        sys.stdout.flush()
    return results


UNCERTIFIED = {"c2st_certified": math.nan, "verdict": "", "ess_fraction": math.nan, "kl_gap": math.nan}


def certified_draws(run: Run, observations: Path, draws: int) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Draws as `elboscope infer` delivers them, (draws, D) for each observation, and what its certificate says."""
    settings = run.case.infer.model_copy(update={"draws": draws, "proposals": 10 * draws})
    out, device = run.folder / "inference.h5", torch.device("cpu")
    infer_observations(
        run.output("train"), observations, out, settings=settings, case=run.case, seed=run.case.seed, device=device
    )
    names = [p.name for p in run.simulator.parameters]
    with h5py.File(out) as file:
        group: Any = file["posterior"]
        certificate: Any = file["certificate"]
        return (
            [np.stack([group[name][0, :, n] for name in names], axis=1) for n in range(OBSERVATIONS)],
            [
                {
                    "verdict": certificate["verdict"][n].decode(),
                    "ess_fraction": round(float(certificate["amortized_ess_fraction"][n]), 4),
                    "kl_gap": round(float(certificate["kl_gap"][n]), 4),
                }
                for n in range(OBSERVATIONS)
            ],
        )


def measure(
    task: str, schedule: str, simulations: int, budget_s: float, seed: int, draws: int, *, certify: bool
) -> None:
    """Train, judge, append; nothing where the table has it already."""
    key = {
        "task": task, "schedule": schedule, "simulations": simulations, "budget_s": budget_s, "seed": seed, "draws": draws
    }  # fmt: skip
    if any(all(row[k] == str(v) for k, v in key.items()) for row in rows_done()):
        return
    folder = RUNS / f"{task}-{schedule}-{simulations}-{budget_s:g}-{seed}"
    run, (steps, cpu, wall) = train_for(task, schedule, simulations, budget_s, seed, folder)
    about = {
        "steps": steps,
        "train_cpu_s": round(cpu, 1),
        "train_wall_s": round(wall, 1),
        "machine": f"{os.cpu_count()} cores {platform.machine()}",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    append(RESULTS, [asdict(Row(**key, **figures, **about)) for figures in judge(task, run, draws, certify=certify)])
    shutil.rmtree(folder)


def means() -> list[tuple[dict[str, str], float, float, str]]:
    """For each trained network: what it was, mean C2ST of raw and of certified draws, and its verdicts."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    schedules = list(SCHEDULES)
    for row in sorted(
        rows_done(), key=lambda r: (TASKS.index(r["task"]), int(r["simulations"]), schedules.index(r["schedule"]))
    ):
        groups.setdefault(tuple(row[k] for k in KEY), []).append(row)
    result = []
    for rows in groups.values():
        raw, certified = (float(np.mean([float(r[c]) for r in rows])) for c in ("c2st_raw", "c2st_certified"))
        counts = Counter(r["verdict"] for r in rows if r["verdict"])
        result.append((rows[0], raw, certified, ", ".join(f"{n} {v}" for v, n in counts.items())))
    return result


def summary() -> str:
    """Means over observations, as a Markdown table."""
    lines = [
        "| task | schedule | simulations | draws | training, s | C2ST raw | C2ST certified | verdicts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, raw, certified, verdicts in means():
        online = "fresh" if row["simulations"] == "0" else row["simulations"]
        seconds = f"{float(row['train_cpu_s']):.0f}"
        of_certified = "" if math.isnan(certified) else f"{certified:.3f}"
        lines.append(
            f"| {row['task']} | {row['schedule']} | {online} | {int(row['draws']):,} | {seconds} | {raw:.3f} | {of_certified} | {verdicts} |"
        )
    return "\n".join(lines) + "\n"


def draw(path: Path) -> None:
    """Every network of the table as two dots: raw q and certified draws."""
    from pipeline.plots.style import BLUE, VERMILLION, WIDTH_IN, freeze_layout, grid_lines, house_style, new_figure

    networks = means()
    with house_style():
        figure = new_figure(WIDTH_IN, 0.6 + 0.26 * len(networks))
        axis = figure.subplots()
        for i, (_, raw, certified, _) in enumerate(networks):
            axis.plot([raw, certified], [i, i], color="#999999", linewidth=1, zorder=1)
            axis.scatter(raw, i, color=VERMILLION, label="raw q" if i == 0 else None, zorder=2)
            axis.scatter(certified, i, color=BLUE, label="certified draws" if i == 0 else None, zorder=2)
        names = [
            f"{r['task']}, {r['schedule']}, {'fresh' if r['simulations'] == '0' else r['simulations']}, {float(r['budget_s']):g} s"
            for r, *_ in networks
        ]
        axis.set_yticks(range(len(networks)), names)
        axis.set_ylim(len(networks) - 0.5, -0.5)
        axis.set_xlim(0.48, max(0.7, *(raw for _, raw, *_ in networks)) + 0.02)
        axis.axvline(0.5, color="black", linewidth=0.8)
        axis.set_xlabel("C2ST against the reference posterior (0.5: cannot be told apart)")
        axis.legend(loc="lower right")
        grid_lines(axis)
        freeze_layout(figure).savefig(path, dpi=150)


def draw_scarce(path: Path) -> None:
    """C2ST of raw q (full) and of certified draws (dashed) against the number of stored simulations, for each objective."""
    from pipeline.plots.style import WIDTH_IN, freeze_layout, grid_lines, house_style, new_figure

    curves: dict[str, dict[str, dict[int, tuple[float, float]]]] = {}
    for row, raw, certified, _ in means():
        if count := int(row["simulations"]):
            curves.setdefault(row["task"], {}).setdefault(row["schedule"], {})[count] = (raw, certified)
    curves = {task: schedules for task, schedules in curves.items() if len(schedules) > 1}
    if not curves:
        return
    with house_style():
        columns = min(2, len(curves))
        figure = new_figure(WIDTH_IN, 3.2 * math.ceil(len(curves) / columns))
        grid = list(figure.subplots(math.ceil(len(curves) / columns), columns, squeeze=False, sharey=True).flat)
        for axis in grid[len(curves) :]:
            axis.set_axis_off()
        for axis, (task, schedules) in zip(grid, curves.items(), strict=False):
            for schedule in (s for s in SCHEDULES if s in schedules):
                counts = sorted(schedules[schedule])
                raw, certified = zip(*(schedules[schedule][n] for n in counts), strict=True)
                color = f"C{list(SCHEDULES).index(schedule)}"
                name = "default (wake with memory)" if schedule == "default" else schedule
                axis.plot(counts, raw, "o-", color=color, label=name)
                axis.plot(counts, certified, "o--", color=color, markerfacecolor="white", alpha=0.7)
            axis.set_xscale("log")
            axis.set_title(task)
            axis.axhline(0.5, color="black", linewidth=0.8)
            axis.set_xlabel("stored simulations")
            axis.set_ylabel("C2ST, raw q (certified: dashed)")
            grid_lines(axis)
        full = max(grid, key=lambda axis: len(axis.lines))
        figure.legend(*full.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        freeze_layout(figure).savefig(path, dpi=150)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; none prints the table")
    parser.add_argument("--schedule", default="default", choices=SCHEDULES)
    parser.add_argument(
        "--simulations", type=int, default=0, help="stored simulations, held-out ones included; 0: online"
    )
    parser.add_argument("--budget", type=float, default=600, help="seconds of one core for training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draws", type=int, default=DRAWS, help="of each side in C2ST")
    parser.add_argument("--raw-only", action="store_true", help="q as it is, without certificates")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not REFERENCE.is_dir():
        raise InputError(
            f"the reference posteriors are not here: expected {REFERENCE.name} in a folder `shared` beside the repository"
        )
    for task in given.tasks:
        measure(
            task, given.schedule, given.simulations, given.budget, given.seed, given.draws, certify=not given.raw_only
        )
    if rows_done():
        draw(FIGURE)
        draw_scarce(SCARCE_FIGURE)
        sys.stdout.write(summary())


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
