r"""The observed map of the inner Galaxy under the model with point sources, beside the published non-Poissonian template fit.

    elboscope run configs/fermi_inner_galaxy.yaml
    python -m benchmarks.fermi [RUN_FOLDER] [--published FILE] [--draws 10000]

Prints mean and standard deviation of each parameter for raw draws of q and for the published draws (a dataset `samples` of
draws by parameters), the share of the excess that comes from point sources, and the expected photons in the analysed pixels.
The published code divides the template of the smooth excess by its mean in `mask_analysis`, and those of the point sources by
theirs in `mask_normalisation`: `S_gce_poiss` is therefore also given as in the second convention, ours.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from pipeline.estimators.posterior import load_posterior
from pipeline.rng import generator
from pipeline.stages.run import OUTPUTS, Run
from simulators.fermi.inner_galaxy import FermiInnerGalaxy

ROOT = Path(__file__).parents[1]
PUBLISHED = "published_posterior_nptf.h5"
QUANTILES = (16, 50, 84)


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="posterior of the observed Fermi map, beside the published one")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "runs" / "fermi_inner_galaxy")
    parser.add_argument("--published", type=Path, help=f"default: {PUBLISHED} beside the observation")
    parser.add_argument("--draws", type=int, default=10_000)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    posterior = load_posterior(given.folder / OUTPUTS["train"])
    run, simulator = Run(posterior.case, given.folder), posterior.simulator
    if not isinstance(simulator, FermiInnerGalaxy):
        raise SystemExit(f"{given.folder}: not a run of fermi_inner_galaxy")
    x = run.observation().x
    theta, _ = posterior.sample_and_log_prob((given.draws,), x, generator=generator(run.case.seed, "benchmark-fermi"))
    published = read_published(given.published or run.observation_path().parent / PUBLISHED)
    observed = float(x["counts"].sum())
    sys.stdout.write(table(simulator, theta[:, 0].cpu(), published, observed))
    sys.stdout.write(f"typicality of the observed map: {float(posterior.typicality(x)):.3f}\n")


def read_published(path: Path) -> Tensor:
    """Published draws, (K, 18)."""
    with h5py.File(path) as file:
        return torch.from_numpy(np.asarray(file["samples"])).double()


def table(simulator: FermiInnerGalaxy, theta: Tensor, published: Tensor, observed: float) -> str:
    """Both posteriors side by side; shifts in standard deviations of the published one."""
    sky = simulator.sky
    gce = sky.templates["gce"]
    factor = float(gce[sky.normalisation].mean() / gce[sky.analysis].mean())
    lines = [f"{'':28s}{'ours':>18s}{'published':>18s}{'shift':>8s}"]
    columns = [(p.name, theta[:, i], published[:, i]) for i, p in enumerate(simulator.parameters)]
    columns.insert(1, ("  published, our convention", theta[:, 0], factor * published[:, 0]))
    for name, ours, theirs in columns:
        shift = float((ours.mean() - theirs.mean()) / theirs.std())
        lines.append(
            f"{name:28s}{ours.mean():9.3f} ±{ours.std():7.3f}{theirs.mean():9.3f} ±{theirs.std():7.3f}{shift:8.2f}"
        )
    ours_first = published.clone()
    ours_first[:, 0] *= factor
    for name, draws in (("ours", theta), ("published", published), ("published, our convention", ours_first)):
        share = np.percentile(100 * simulator.point_source_share(draws), QUANTILES)
        lines.append(
            f"share of point sources in the excess, {name}: {share[1]:.1f} +{share[2] - share[1]:.1f} -{share[1] - share[0]:.1f} %"
        )
        counts = simulator.expected_counts(draws)
        lines.append(
            f"expected photons in mask_analysis, {name}: {counts.mean():.0f} ± {counts.std():.0f}, observed {observed:.0f} ({100 * (counts.mean() / observed - 1):+.2f} %)"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
