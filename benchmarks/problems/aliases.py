r"""A simulated star whose velocities leave two periods open: aliases, and how much of the posterior each holds.

    python -m benchmarks.problems.aliases                          # the modes of seed 22, the star of docs/velocities.md
    python -m benchmarks.problems.aliases --blind                  # the same without candidates
    python -m benchmarks.problems.aliases --write data             # its data file, data/aliases_simulated.h5

Two circular planets over ten years, 70 nights, each near the same sidereal time in a season of 150 days: the window repeats
after a sidereal day and after a year, and the inner planet of 1.7 m/s, P = 4.76 d, has aliases at 1/P +- n/365 d within its prior,
4.6 to 4.95 d. Noise decides which is highest: for seed 22 it is 4.818 d, which is wrong, by 0.07 nats.

Masses of the modes: importance sampling from a mixture of t-distributions (5 degrees of freedom), one at each optimum that climbs
from the simulator's `candidates` reach, with 1.3^2 times the covariance there and a share in the draws that is the root of its Laplace mass.
Each draw counts for the component that is densest at it,

    Z_k  =  1/S sum_s 1[k_s = k] p(x|theta_s) p(theta_s) / q(theta_s),

with the standard error of that mean. What no candidate reaches is not in the sum. `--blind` knows of no candidates: per1, tc1 and
jit are drawn from their priors, uniform, and the rest from t-distributions around the median of the modes, which differ little
in it; 2,500,000 draws take a minute and leave some 1,300 effective. For seed 22, ln Z and the shares of 4.818 and 4.759 d:
-152.807 +- 0.015, 0.49, 0.47 from the modes, -152.796 +- 0.028, 0.50, 0.47 blind.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from pipeline.estimators.support import SupportTransform
from pipeline.stages.peaks import LogJoint, Peaks, climb
from pipeline.store import write_data
from simulators.multi_instrument_velocity import MultiInstrumentVelocity
from simulators.priors import prior_of, sample
from simulators.protocol import Data, candidates_of

SEED = 22
FILE = "aliases_simulated.h5"
POINTS, START, BASELINE, ERROR = 70, 2456500.0, 3652, 1.5
SEASON, YEAR, SIDEREAL_DAY, HOURS = 150.0, 365.25, 0.99727, 0.06
"""Days that the star is up a year, of the year; between two culminations; and the scatter of an exposure around them (d)."""
TRUTH = {
    "per1": 4.76,
    "tc1": 2458325.5,
    "logk1": math.log(1.7),
    "per2": 24.0,
    "tc2": 2458330.0,
    "logk2": math.log(3.0),
    "jit": 1.0,
}
OPTIONS: dict[str, Any] = {
    "planets": [
        {
            "period": {"uniform": [4.6, 4.95]},
            "conjunction": {"uniform": [2458323.2, 2458327.8]},
            "logk": {"uniform": [-1, 3]},
        },
        {
            "period": {"uniform": [15, 40]},
            "conjunction": {"uniform": [2458320, 2458340]},
            "logk": {"uniform": [-1, 3]},
        },
    ],
    "jit": {"uniform": [0, 5]},
    "instruments": ["spectrograph"],
    "design": {"points": POINTS, "baseline": BASELINE, "start": START, "error": ERROR},
}
FREEDOM, WIDER = 5.0, 1.3
UNIFORM = ((0, 4.6, 4.95), (1, 2458323.2, 2458327.8), (6, 0.0, 2.5))
"""Of the blind draws: components of theta and their ranges; a jitter above 2.5 m/s has e^-10 of the likelihood."""
WIDTHS = {2: 0.35, 3: 0.0105, 4: 0.45, 5: 0.11}
"""Scales of the t-distributions of the others: 1.3 times those of the modes."""
BLOCK = 25_000


@dataclass(frozen=True)
class Modes:
    """What importance sampling says of K modes, the heaviest first.

    Attributes:
        theta: of each optimum, (K, D).
        mass: share of the posterior, (K,).
        log_evidence, error: of all, nats.
        ess_fraction: of the draws.
    """

    theta: Tensor
    mass: Tensor
    log_evidence: float
    error: float
    ess_fraction: float


def alias_star(seed: int = SEED) -> tuple[MultiInstrumentVelocity, Data]:
    """The simulator and one star, x of one row; numbers in digits as tables have them, so that every machine has the same."""
    simulator = MultiInstrumentVelocity(**OPTIONS)
    stream = torch.Generator().manual_seed(seed)
    nights = torch.randperm(BASELINE, generator=stream)
    nights = nights[nights % YEAR < SEASON][:POINTS].sort().values.double()
    time = START + nights * SIDEREAL_DAY + HOURS * torch.randn(POINTS, generator=stream, dtype=torch.float64)
    time = time.round(decimals=5)[None]
    context = {
        "time": time,
        "velocity_error": torch.full_like(time, ERROR).float(),
        "instrument": torch.zeros_like(time),
        "present": torch.ones_like(time),
    }
    theta = torch.tensor([list(TRUTH.values())], dtype=torch.float64)
    x = simulator.simulate(theta, context, generator=stream)
    return simulator, x | {"velocity": x["velocity"].round(decimals=3)}


def modes_of(simulator: MultiInstrumentVelocity, x: Data, *, draws: int = 40_000, seed: int = 0) -> Modes:
    """Modes of the posterior of one star, their masses, and the evidence; see the top of this file."""
    prior = prior_of(simulator)
    support = SupportTransform(prior)
    log_joint = LogJoint(simulator, support, prior, x)
    start = candidates_of(simulator, x)
    assert start is not None
    peaks = climb(log_joint, support.to_unconstrained(start))
    u, log_density, component = _draw(peaks, draws, torch.Generator().manual_seed(seed))
    log_weight = torch.cat([log_joint(some) for some in u.split(4000)]) - log_density
    return _summed(support.to_theta(peaks.location)[0], log_weight, component)


def blind_modes(
    simulator: MultiInstrumentVelocity, x: Data, known: Modes, *, draws: int = 2_500_000, seed: int = 5
) -> Modes:
    """The same with periods, conjunctions and jitters of the inner planet from the whole prior; masses near each known period."""
    prior = prior_of(simulator)
    stream = torch.Generator().manual_seed(seed)
    center = known.theta[:2].mean(0)
    found, periods = [], []
    for count in [BLOCK] * (draws // BLOCK):
        theta = sample(prior, count, stream)
        log_q = torch.zeros(count, dtype=torch.float64)
        for d, low, high in UNIFORM:
            log_q = log_q - math.log(high - low)
            theta[:, d] = low + (high - low) * torch.rand(count, dtype=torch.float64, generator=stream)
        for d, width in WIDTHS.items():
            z, log_t = _student(count, 1, stream)
            theta[:, d] = center[d] + width * z[:, 0]
            log_q = log_q + log_t - math.log(width)
        log_prior = prior.log_prob(theta)
        log_joint = log_prior + simulator.log_likelihood(theta[:, None], x)[:, 0]
        found.append(torch.where(log_prior.isfinite(), log_joint, -torch.inf) - log_q)
        periods.append(theta[:, 0])
    log_weight, period = torch.cat(found), torch.cat(periods)
    nearest = (period[:, None] - known.theta[:, 0]).abs().argmin(-1)
    return _summed(known.theta, log_weight, nearest)


def _summed(theta: Tensor, log_weight: Tensor, component: Tensor) -> Modes:
    """Masses and evidence from log weights (S,) and the component that each counts for."""
    draws = len(log_weight)
    weight = (log_weight - log_weight.max()).exp()
    mass = torch.zeros(len(theta), dtype=weight.dtype).index_add(0, component, weight / weight.sum())
    order = mass.argsort(descending=True)
    ess_fraction = float(weight.mean().square() / weight.square().mean())
    log_evidence = float(log_weight.logsumexp(0)) - math.log(draws)
    return Modes(theta[order], mass[order], log_evidence, math.sqrt((1 / ess_fraction - 1) / draws), ess_fraction)


def _student(draws: int, dimension: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws of a standard t-distribution (S, D) and their log densities (S,)."""
    normal = torch.randn(draws, dimension, dtype=torch.float64, generator=stream)
    chi2 = torch.randn(draws, int(FREEDOM), dtype=torch.float64, generator=stream).square().sum(-1, keepdim=True)
    z = normal * (FREEDOM / chi2).sqrt()
    return z, _log_student(z.square().sum(-1), dimension)


def _log_student(square: Tensor, dimension: int) -> Tensor:
    """Log density of a standard t-distribution at squared distances."""
    constant = (
        math.lgamma((FREEDOM + dimension) / 2) - math.lgamma(FREEDOM / 2) - dimension / 2 * math.log(FREEDOM * math.pi)
    )
    return constant - (FREEDOM + dimension) / 2 * (square / FREEDOM).log1p()


def _draw(peaks: Peaks, draws: int, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of the mixture (S, D), its log density at them (S,), and the component that is densest there (S,)."""
    share = torch.softmax(0.5 * peaks.log_mass, 0)
    chosen = torch.multinomial(share, draws, replacement=True, generator=stream)
    factor = WIDER * torch.linalg.cholesky(peaks.covariance)
    dimension = peaks.location.shape[1]
    z, _ = _student(draws, dimension, stream)
    u = peaks.location[chosen] + (factor[chosen] @ z[..., None])[..., 0]
    apart = (u - peaks.location[:, None])[..., None]
    square = torch.linalg.solve_triangular(factor[:, None], apart, upper=False).square().sum((-1, -2))  # (K, S)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)[:, None]
    parts = share.log()[:, None] + _log_student(square, dimension) - log_det
    return u, parts.logsumexp(0), parts.argmax(0)


def write_star(folder: Path) -> Path:
    """The star of docs/velocities.md as an observation."""
    simulator, x = alias_star()
    attributes = {
        "origin": "simulated by `python -m benchmarks.problems.aliases --write data`; no observation",
        "truth": json.dumps(TRUTH),
        "instruments": json.dumps({"0": "spectrograph"}),
        "time_system": "BJD",
    }
    path = folder / FILE
    write_data(path, observables=simulator.observables, x=x, ids=["simulated star"], attributes=attributes)
    return path


def main() -> None:
    """Print the modes of a seed, or write the data file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--blind", action="store_true", help="draw the inner planet from the prior")
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.write:
        typer.echo(write_star(arguments.write))
        return
    star = alias_star(arguments.seed)
    modes = modes_of(*star)
    if arguments.blind:
        modes = blind_modes(*star, modes)
    typer.echo(f"log evidence {modes.log_evidence:.3f} ± {modes.error:.3f}, ESS fraction {modes.ess_fraction:.2f}")
    for theta, mass in zip(modes.theta, modes.mass, strict=True):
        if mass >= 1e-3:
            typer.echo(f"per1 {theta[0]:.4f} d, tc1 {theta[1]:.2f}, per2 {theta[3]:.2f} d: {mass:.3f} of the posterior")


if __name__ == "__main__":
    main()
