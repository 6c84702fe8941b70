"""Supernova posteriors against an exact grid, and the cost of the simulator against astropy.

    python -m benchmarks.pantheon RUN_FOLDER     # after `elboscope run configs/pantheon_wcdm.yaml` (or lcdm)
    python -m benchmarks.pantheon --cost

The first prints, for the survey of a finished run, means and widths of grid and certified draws, C2ST between 10,000 of each,
and both log evidences. The second times one core: a survey of 40 supernovae simulated, its likelihood, and its gradient.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from benchmarks.supernova_grid import Array, astropy_moduli, grid_posterior, log_marginal, moduli
from pipeline.diagnostics.c2st import c2st
from simulators.priors import prior_of, sample
from simulators.supernova_cosmology import SupernovaCosmology

DRAWS = 10_000
BATCH = 512


def read_inference(path: Path) -> tuple[tuple[str, ...], Array, dict[str, Array], dict[str, float]]:
    """Names of the parameters, delivered draws (S, D), the survey, and its certificate's numbers."""
    with h5py.File(path) as file:
        names = tuple(json.loads(str(file.attrs["parameters"])))
        posterior: Any = file["posterior"]
        draws = np.stack([posterior[n][0, :, 0] for n in names], axis=1)
        observed: Any = file["observed_data"]
        there = observed["present"][0] > 0.5
        x = {n: observed[n][0][there] for n in ("redshift", "heliocentric_redshift", "magnitude")}
        x["covariance"] = observed["covariance"][0][np.ix_(there, there)]
        certificate: Any = file["certificate"]
        figures = {
            n: float(certificate[n][0]) for n in ("log_evidence", "log_evidence_error", "ess_fraction", "pareto_k")
        }
        sys.stdout.write(f"{certificate['observation'].asstr()[0]}: verdict {certificate['verdict'].asstr()[0]}\n")
    return names, draws, x, figures


def against_grid(folder: Path) -> None:
    """Print the comparison."""
    names, draws, x, figures = read_inference(folder / "inference.h5")
    grid = grid_posterior(x, names)
    mean, width = grid.moments()
    for d, name in enumerate(names):
        ours = draws[:, d]
        sys.stdout.write(
            f"{name}: grid {mean[d]:.4f} ± {width[d]:.4f}, ours {ours.mean():.4f} ± {ours.std(ddof=1):.4f}\n"
        )
    score = c2st(grid.draws(min(DRAWS, len(draws)), seed=1), draws[:DRAWS])
    floor = c2st(grid.draws(DRAWS, seed=1), grid.draws(DRAWS, seed=2))
    sys.stdout.write(f"C2ST of {len(draws[:DRAWS])} certified draws {score:.4f}, of the grid with itself {floor:.4f}\n")
    sys.stdout.write(
        f"log evidence: grid {grid.log_evidence:.4f}, ours {figures['log_evidence']:.4f} ± {figures['log_evidence_error']:.4f}; "
        f"ess_fraction {figures['ess_fraction']:.3f}, pareto_k {figures['pareto_k']:.2f}\n"
    )


def seconds(work: Callable[[], object]) -> float:
    """The shortest of five calls, in CPU time, which a busy machine changes little."""
    taken = []
    for _ in range(5):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def cost() -> None:
    """Print microseconds a theta: ours in batches, and one at a time with NumPy's and with astropy's distances."""
    torch.set_num_threads(1)
    simulator = SupernovaCosmology(model="wcdm", design={})
    generator = torch.Generator().manual_seed(1)
    theta = sample(prior_of(simulator), BATCH, generator)
    x = simulator.simulate(theta, generator=generator)
    context = {k: v for k, v in x.items() if k != "magnitude"}
    one = {k: v[:1] for k, v in x.items()}
    leaf, many = theta.clone().requires_grad_(), theta[:, None].repeat(20, 1, 1).requires_grad_()
    count = many[..., 0].numel()
    survey = {k: v[0].numpy() for k, v in x.items()}
    point, inverse = theta[0].numpy(), np.linalg.inv(survey["covariance"])
    factor = np.linalg.cholesky(survey["covariance"])
    rng = np.random.default_rng(1)

    def gradient(at: torch.Tensor, data: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.autograd.grad(simulator.log_likelihood(at, data).sum(), at)[0]

    def astropy_likelihood(p: Array) -> float:
        residual = survey["magnitude"] - astropy_moduli(p, survey)
        solved = inverse @ residual
        return float(-0.5 * (residual @ solved - solved.sum() ** 2 / inverse.sum()))

    def differences(likelihood: Callable[[Array], object]) -> list[object]:
        """The calls that a gradient by central differences takes."""
        return [likelihood(point + sign * shift) for shift in 1e-5 * np.eye(2) for sign in (1, -1)]

    def noise() -> Array:
        return factor @ rng.normal(size=len(factor))

    rows = {
        "simulate": (
            seconds(lambda: simulator.simulate(theta, context, generator=generator)) / BATCH,
            np.nan,
            seconds(lambda: moduli(point[None], survey) + noise()),
            seconds(lambda: astropy_moduli(point, survey) + noise()),
        ),
        "log_likelihood": (
            seconds(lambda: simulator.log_likelihood(theta, x)) / BATCH,
            seconds(lambda: simulator.log_likelihood(many.detach(), one)) / count,
            seconds(lambda: log_marginal(point[None], survey)),
            seconds(lambda: astropy_likelihood(point)),
        ),
        "gradient": (
            seconds(lambda: gradient(leaf, x)) / BATCH,
            seconds(lambda: gradient(many, one)) / count,
            seconds(lambda: differences(lambda p: log_marginal(p[None], survey))),
            seconds(lambda: differences(astropy_likelihood)),
        ),
    }
    titles = f"{BATCH} surveys | {count:,} theta, one survey | NumPy, one theta | astropy, one theta"
    sys.stdout.write(f"| microseconds | {titles} |\n|---|---|---|---|---|\n")
    for name, values in rows.items():
        sys.stdout.write(f"| {name} | " + " | ".join("" if np.isnan(v) else f"{1e6 * v:.1f}" for v in values) + " |\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of a finished run")
    parser.add_argument("--cost", action="store_true", help="time the simulator against astropy")
    arguments = parser.parse_args()
    if arguments.folder is None and not arguments.cost:
        parser.error("give the folder of a run, or --cost")
    if arguments.folder is not None:
        against_grid(arguments.folder)
    if arguments.cost:
        cost()


if __name__ == "__main__":
    main()
