"""Does the search find a mode that q lacks, and does it leave a q that lacks nothing alone?

    python -m benchmarks.missing_modes two_modes_20 --seeds 100
    python -m benchmarks.missing_modes --all --seeds 100

For each problem two networks are trained by maximum likelihood: one on simulations of one mode only, one on all. Each
seed is an observation of its own, which the whole ladder climbs with the first network (is the mode found?), with the
second (is the alarm false?), and with the first without a search (what would have been certified?).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.problems.two_modes import TwoModes, TwoPhases
from benchmarks.table import append
from pipeline.estimators.network import network_input
from pipeline.estimators.posterior import Posterior, new_network
from pipeline.rng import generator
from pipeline.search_settings import SearchSettings
from pipeline.settings import (
    CaseSettings,
    EmbeddingSettings,
    FlowSettings,
    InferSettings,
    SimulatorSettings,
    TrainSettings,
)
from pipeline.stages.ladder import climb
from pipeline.training.averaging import follow
from simulators.benchmark.gaussian_mixture import GaussianMixture
from simulators.benchmark.slcp import Slcp
from simulators.benchmark.two_moons import TwoMoons
from simulators.priors import prior_of, sample
from simulators.protocol import Data, Simulator

RESULTS = Path(__file__).parent / "results" / "missing_modes.csv"
STEPS, BATCH = 2_000, 256
DRAWS = 1_000
FIVE = 5.0
"""Stated errors within which a log evidence must lie."""

Keep = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """A simulator, and how its q is made to lack a mode.

    Attributes:
        simulator: of the observations.
        seen: of the simulations that the poor network sees; default: the same.
        keep: which theta (N, D) of them it sees.
        share: of the posterior that it lacks.
        log_evidence: of x of one row.
        shows: which theta give observations whose posterior has its modes apart, as `share` supposes.
    """

    simulator: Any
    share: float
    seen: Any = None
    keep: Keep = lambda theta: torch.ones(len(theta), dtype=torch.bool)
    log_evidence: Callable[[Data], float] | None = None
    shows: Keep = lambda theta: torch.ones(len(theta), dtype=torch.bool)


def two_modes(share: float, **options: Any) -> Problem:
    """A mode of a known share."""
    full = TwoModes(share=share, **options)
    return Problem(
        full,
        share,
        seen=TwoModes(share=0.0, **options),
        log_evidence=lambda x: float(full.log_evidence(x)),
        shows=lambda theta: ((theta.abs() < 2.4) & (theta.abs() > 0.6)).all(1),
    )


def evidence_on_a_grid(simulator: Simulator, points: int = 3_000) -> Callable[[Data], float]:
    """Of two parameters, by the midpoint rule on `points` squared."""
    bounds = [cast(Any, p.prior).support for p in simulator.parameters]
    lows, highs = ([float(getattr(b, end)) for b in bounds] for end in ("lower_bound", "upper_bound"))

    def log_evidence(x: Data) -> float:
        sides = [
            torch.linspace(a, b, 2 * points + 1, dtype=torch.float64)[1::2] for a, b in zip(lows, highs, strict=True)
        ]
        total = torch.tensor(-math.inf, dtype=torch.float64)
        for first in sides[0].split(300):
            theta = torch.cartesian_prod(first, sides[1])[:, None]
            values = simulator.log_likelihood(theta, x)[:, 0]  # pyright: ignore[reportAttributeAccessIssue]
            total = torch.logaddexp(total, torch.logsumexp(values, 0))
        return float(total) - 2 * math.log(points)

    return log_evidence


def problems() -> dict[str, Callable[[], Problem]]:
    """By name."""
    return {
        "two_modes_20": lambda: two_modes(0.2),
        "two_modes_5": lambda: two_modes(0.05),
        "two_modes_1": lambda: two_modes(0.01),
        "ten_dimensions_20": lambda: two_modes(0.2, dimension=10),
        "no_gradient_20": lambda: two_modes(0.2, gradient=False),
        "spike_20": lambda: two_modes(0.2, dimension=2, width=0.3, second_width=0.03),
        "two_moons": lambda: Problem(
            TwoMoons(),
            0.5,
            keep=lambda t: t.sum(1) > 0,
            log_evidence=evidence_on_a_grid(TwoMoons()),
            shows=lambda t: (t.sum(1).abs() > 0.6) & (t.abs() < 0.8).all(1),
        ),
        "two_phases": lambda: Problem(
            TwoPhases(), 0.5, keep=lambda t: t[:, 0] < math.pi, log_evidence=evidence_on_a_grid(TwoPhases())
        ),
        "slcp": lambda: Problem(
            Slcp(), 0.75, keep=lambda t: (t[:, 2] > 0) & (t[:, 3] > 0), shows=lambda t: (t[:, 2:4].abs() > 0.5).all(1)
        ),
        "gaussian_mixture": lambda: Problem(
            GaussianMixture(), 0.0, log_evidence=lambda x: -2 * math.log(20), shows=lambda t: (t.abs() < 6).all(1)
        ),
    }


def trained(problem: Problem, *, complete: bool, steps: int = STEPS) -> Posterior:
    """q by maximum likelihood on fresh simulations; of those of one mode unless it is to be complete."""
    simulator = problem.simulator if complete or problem.seen is None else problem.seen
    case = CaseSettings(
        name="missing",
        simulator=SimulatorSettings(name="linear_gaussian"),
        train=TrainSettings(flow=FlowSettings(hidden=48, transforms=4), embedding=EmbeddingSettings(output=32)),
    )
    prior = prior_of(simulator)

    def pairs(step: int, count: int) -> tuple[Tensor, Any]:
        stream = generator(1, "missing-modes", step)
        theta = sample(prior, 4 * count if not complete else count, stream).double()
        theta = theta if complete else theta[problem.keep(theta)][:count]
        return theta, network_input(simulator, simulator.simulate(theta, None, generator=stream))

    with torch.random.fork_rng():
        torch.manual_seed(1)
        theta, inputs = pairs(10**6, 20_000)
        network = new_network(case, simulator, inputs.features.shape[1])
    network.standardize(theta, inputs)
    averaged = new_network(case, simulator, inputs.features.shape[1])
    averaged.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (0.01 + 0.495 * (1 + math.cos(math.pi * step / steps)))
        theta, inputs = pairs(step, BATCH)
        loss = -network.log_q(theta.float(), network.condition(inputs)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        follow(averaged, network, min(0.995, (1 + step) / (10 + step)))
    return Posterior(case, problem.simulator, averaged)


def observation(problem: Problem, seed: int) -> Data:
    """One observation whose modes lie apart."""
    stream = generator(seed, "missing-modes-observation")
    theta = sample(prior_of(problem.simulator), 100_000, stream).double()
    return problem.simulator.simulate(theta[problem.shows(theta)][:1], None, generator=stream)


def run(name: str, seeds: int, *, settings: InferSettings | None = None) -> list[dict[str, object]]:
    """A row for each seed and network."""
    problem = problems()[name]()
    settings = settings or InferSettings(draws=DRAWS, predictive_draws=0)
    blind = settings.model_copy(update={"search": SearchSettings(when="never")})
    poor = trained(problem, complete=False) if problem.share else None
    good = trained(problem, complete=True)
    rows = []
    for seed in range(seeds):
        x = observation(problem, seed)
        truth = problem.log_evidence(x) if problem.log_evidence else math.nan
        for label, posterior, used in (
            ("lacks", poor, settings),
            ("lacks, no search", poor, blind),
            ("complete", good, settings),
            ("complete, no search", good, blind),
        ):
            if posterior is None:
                continue
            started, likelihood = time.process_time(), math.nan
            outcome = climb(posterior, x, settings=used, seed=seed, index=0)
            seconds = time.process_time() - started
            value, error = float(outcome.evidence.log_evidence), float(outcome.evidence.log_evidence_error)
            off = (value - truth) / max(error, 1e-3)
            rows.append(
                {
                    "problem": name,
                    "seed": seed,
                    "network": label,
                    "verdict": outcome.verdict,
                    "log_evidence": round(value, 4),
                    "error": round(error, 5),
                    "truth": round(truth, 4),
                    "errors_off": round(off, 2),
                    "missed": round(outcome.search.missed, 5),
                    "uncovered": round(outcome.search.uncovered, 5),
                    "optima": outcome.search.optima,
                    "ess": round(float(outcome.evidence.ess_fraction), 4),
                    "cpu_s": round(seconds, 3),
                    "calls": outcome.likelihood_calls,
                    "note": outcome.note,
                }
            )
            del likelihood
    return rows


def summary(rows: list[dict[str, Any]], share: float) -> str:
    """What the rows say, in lines."""
    lines = []
    for label in dict.fromkeys(r["network"] for r in rows):
        some = [r for r in rows if r["network"] == label]
        certified = [r for r in some if r["verdict"] != "failed"]
        wrong = [r for r in certified if abs(r["errors_off"]) > FIVE]
        found = [r for r in some if r["missed"] > 0 or (r["verdict"] == "failed" and r["uncovered"] > 0.005)]
        cpu, calls = (float(np.median([r[k] for r in some])) for k in ("cpu_s", "calls"))
        verdicts = {v: sum(r["verdict"] == v for r in some) for v in dict.fromkeys(r["verdict"] for r in some)}
        lines.append(
            f"{label:<20} {len(some)} observations: {verdicts}; search spoke in {len(found)}; certified and more than 5 errors off: {len(wrong)}; median {cpu:.2f} CPU s, {calls:.0f} calls"
        )
    return f"share lacking {share:g}\n" + "\n".join(lines)


def main() -> None:
    """Run problems and append their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", nargs="*", help="default: all")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.problem or list(problems()):
        rows = run(name, arguments.seeds)
        append(arguments.out, rows)
        sys.stdout.write(f"{name}: {summary(rows, problems()[name]().share)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
