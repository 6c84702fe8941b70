r"""How often are corrupted observations noticed, and how often honest ones? Stars like K2-24, at a level of 1 %.

    elboscope run configs/k2_24.yaml
    python benchmarks/typicality.py [RUN_FOLDER] [--stars 300]

Stars are drawn from the proposal of the run (default runs/k2_24), each with its own random stream, and spoiled in ways
that the model does not know. `typicality` looks at the network's view of x alone; `predictive` at data replicated from
weighted draws of the amortized q, its p-values (log likelihood, velocity) sharing the level, as all three do in `either`,
which is how `infer` flags. Rows go to benchmarks/results/typicality.csv.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.table import append
from pipeline.config import load_case
from pipeline.diagnostics.predictive import predictive_check
from pipeline.estimators.importance import systematic_resample
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.estimators.proposal import Amortized, weigh
from pipeline.rng import generator
from pipeline.stages.run import Run
from simulators.priors import sample
from simulators.protocol import Data
from simulators.radial_velocity import RadialVelocity

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "typicality.csv"
LEVEL = 0.01
PROPOSALS, DRAWS = 4_000, 1_000
BLOCK = 50
Spoil = Callable[[RadialVelocity, Tensor, Data, float, torch.Generator], Data]


@dataclass(frozen=True)
class Row:
    """Shares of stars that are flagged at LEVEL.

    Attributes:
        corruption, strength, unit: what was done.
        log_likelihood, velocity: of the predictive check, each at LEVEL by itself.
        predictive: either of these two, at LEVEL / 2 each.
        either: any of the three p-values, at LEVEL / 3 each.
        error: largest binomial standard error of these shares.
    """

    corruption: str
    strength: float
    unit: str
    stars: int
    typicality: float
    log_likelihood: float
    velocity: float
    predictive: float
    either: float
    error: float


def main() -> None:
    """Read the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/k2_24"))
    parser.add_argument("--stars", type=int, default=300, help="for each corruption; four times as many honest ones")
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(load_case(ROOT / "configs" / "k2_24.yaml"), given.folder)
    posterior = load_posterior(run.input("train"))
    about = {"machine": f"{os.cpu_count()} cores {platform.machine()}", "torch": torch.__version__}
    about |= {"date": time.strftime("%Y-%m-%d")}
    columns = ("typicality", "log_likelihood", "velocity", "predictive", "either", "error")
    sys.stdout.write(f"| corruption | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|\n")
    for number, (name, unit, spoil, strengths) in enumerate(CORRUPTIONS):
        for strength in strengths:
            stars = given.stars * (1 if strengths != (0.0,) else 4)
            row = measure(run, posterior, name, unit, spoil, strength, stars, number)
            what = f"{name}, {strength:g} {unit}".rstrip() if strength else name
            shares = " | ".join(f"{getattr(row, c):.3f}" for c in columns)
            sys.stdout.write(f"| {what} | {shares} |\n")
            sys.stdout.flush()
            append(RESULTS, [{k: _short(v) for k, v in asdict(row).items()} | about])


def measure(
    run: Run,
    posterior: Posterior,
    name: str,
    unit: str,
    spoil: Spoil,
    strength: float,
    stars: int,
    number: int,
) -> Row:
    """Spoil `stars` simulated stars, and count which are flagged."""
    simulator = posterior.simulator
    assert isinstance(simulator, RadialVelocity)
    p_values: dict[str, list[Tensor]] = {"typicality": [], "log_likelihood": [], "velocity": []}
    for block in range(0, stars, BLOCK):
        stream = generator(17, f"benchmark-typicality-{number}", block)
        theta = sample(run.proposal, min(BLOCK, stars - block), stream)
        x = spoil(simulator, theta, simulator.simulate(theta, None, generator=stream), strength, stream)
        p_values["typicality"].append(posterior.typicality(x))
        proposal = Amortized(posterior.network, posterior.condition(x))
        draws = weigh(proposal, simulator, posterior.prior, x, draws=PROPOSALS, generator=stream)
        index, _ = systematic_resample(draws.log_weight, DRAWS, generator=stream)
        delivered = draws.theta.gather(0, index[..., None].expand(-1, -1, draws.theta.shape[-1]))
        check = predictive_check(simulator, delivered, x, generator=stream)
        for each in ("log_likelihood", "velocity"):
            p_values[each].append(check.p_value[each])
    p = torch.stack([torch.cat(p_values[each]) for each in p_values])
    alone = [float(share) for share in (p <= LEVEL).double().mean(1)]
    predictive, either = (float((part <= LEVEL / len(part)).any(0).double().mean()) for part in (p[1:], p))
    error = max(math.sqrt(share * (1 - share) / stars) for share in (*alone, predictive, either))
    return Row(name, strength, unit, stars, alone[0], alone[1], alone[2], predictive, either, error)


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


# ---------------------------------------------------------------- what is done to a star


def honest(simulator: RadialVelocity, theta: Tensor, x: Data, strength: float, stream: torch.Generator) -> Data:
    """Nothing."""
    return x


def noise(simulator: RadialVelocity, theta: Tensor, x: Data, strength: float, stream: torch.Generator) -> Data:
    """Noise, jitter included, is `strength` times what the error bars and theta say."""
    mean = simulator.velocity(theta, x["time"])
    return x | {"velocity": mean + strength * (x["velocity"] - mean)}


def unit(simulator: RadialVelocity, theta: Tensor, x: Data, strength: float, stream: torch.Generator) -> Data:
    """Velocities in another unit, their error bars left as they are."""
    return x | {"velocity": strength * x["velocity"]}


def planet(simulator: RadialVelocity, theta: Tensor, x: Data, strength: float, stream: torch.Generator) -> Data:
    """A third planet on a circular orbit, amplitude `strength` m/s, period log-uniform from 3 to 60 d."""
    turn, period = torch.rand(2, len(theta), 1, generator=stream, dtype=torch.float64)
    phase = 2 * math.pi * (turn + x["time"] / (3 * 20**period))
    return x | {"velocity": x["velocity"] + strength * phase.sin()}


def step(simulator: RadialVelocity, theta: Tensor, x: Data, strength: float, stream: torch.Generator) -> Data:
    """Another zero point, `strength` m/s higher, from the middle of the time series on."""
    later = x["time"] > x["time"].median(-1, keepdim=True).values
    return x | {"velocity": x["velocity"] + strength * later}


def outlier(simulator: RadialVelocity, theta: Tensor, x: Data, strength: float, stream: torch.Generator) -> Data:
    """One velocity is `strength` error bars too high."""
    velocity, rows = x["velocity"].clone(), torch.arange(len(theta))
    which = torch.randint(velocity.shape[1], (len(theta),), generator=stream)
    velocity[rows, which] += strength * x["velocity_error"][rows, which]
    return x | {"velocity": velocity}


def shuffled(simulator: RadialVelocity, theta: Tensor, x: Data, strength: float, stream: torch.Generator) -> Data:
    """Velocities in another order than their epochs."""
    order = torch.rand(x["velocity"].shape, generator=stream).argsort(-1)
    return x | {"velocity": x["velocity"].gather(-1, order)}


def epochs(simulator: RadialVelocity, theta: Tensor, x: Data, strength: float, stream: torch.Generator) -> Data:
    """An honest star at other epochs than those that the network was trained for, uniform over the same baseline."""
    first, last = x["time"].min(), x["time"].max()
    time = torch.rand(x["time"].shape, generator=stream, dtype=torch.float64)
    context = {"time": (first + (last - first) * time).sort(-1).values, "velocity_error": x["velocity_error"]}
    return simulator.simulate(theta, context, generator=stream)


CORRUPTIONS: tuple[tuple[str, str, Spoil, tuple[float, ...]], ...] = (
    ("honest", "", honest, (0.0,)),
    ("noise", "times", noise, (0.2, 0.5, 0.7, 1.5, 2.0, 3.0, 5.0)),
    ("unit", "times", unit, (0.001, 1000.0)),
    ("third planet", "m/s", planet, (3.0, 5.0, 10.0, 30.0)),
    ("zero point", "m/s", step, (3.0, 10.0, 20.0, 30.0)),
    ("one outlier", "error bars", outlier, (5.0, 10.0, 20.0)),
    ("velocities shuffled", "", shuffled, (1.0,)),
    ("other epochs", "", epochs, (1.0,)),
)


if __name__ == "__main__":
    main()
