"""The best fits to the HST image of a lens, and how far its noise is from that of independent pixels.

    python -m benchmarks.lens ../shared/observations/strong_lens/slacs_j2303+1422.h5

Adam from 32 draws of the prior, all at once, on log p(theta) + b log p(x | theta) with b rising from 1e-3 to 1 over the
first half: at b = 1 from the start only a few find the best optimum, or none. The seven best ends are printed, which shows
local optima.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from simulators.priors import prior_of, sample
from simulators.strong_lens import StrongLens

MASKED = [[-1.8, -2.75, 0.9]]
"""The companion of SLACS J2303+1422, arcsec."""
NORMAL_MEDIAN = 0.6745
"""Median of |z| for z ~ N(0, 1)."""
STARTS, LEARNING_RATE, SHOWN = 32, 0.03, 7
FIRST_POWER = 1e-3


def fits(
    simulator: StrongLens, x: dict[str, torch.Tensor], *, steps: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of the ascents, best first: theta (STARTS, D) and log joint (STARTS,)."""
    prior = prior_of(simulator)
    to_theta = torch.distributions.biject_to(prior.support)
    start = sample(prior, STARTS, torch.Generator().manual_seed(seed))
    u = to_theta.inv(start).detach().requires_grad_(True)
    optimizer = torch.optim.Adam([u], lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    log_joint = torch.zeros(STARTS)
    for step in range(steps):
        power = min(1.0, FIRST_POWER ** (1 - 2 * step / steps))
        optimizer.zero_grad()
        theta = to_theta(u)
        log_likelihood, log_prior = simulator.log_likelihood(theta[:, None], x)[:, 0], prior.log_prob(theta)
        log_joint = log_likelihood + log_prior
        (-(power * log_likelihood + log_prior).sum()).backward()
        optimizer.step()
        decay.step()
    order = log_joint.detach().argsort(descending=True)
    return to_theta(u).detach()[order], log_joint.detach()[order]


def noise_factor(image: Path) -> float:
    """Median of |d| / sigma over the pixels that count, most of them sky, over that of a standard normal."""
    x, _ = StrongLens(data=str(image), masked_circles=MASKED).read_observation(image)
    used = x["mask"] > 0
    return float((x["image"][used] / x["noise"][used]).abs().median()) / NORMAL_MEDIAN


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    factor = noise_factor(given.image)
    simulator = StrongLens(data=str(given.image), masked_circles=MASKED, noise_factor=factor)
    x, _ = simulator.read_observation(given.image)
    used = x["mask"] > 0
    noise = torch.where(used, x["noise"], 1.0)
    sys.stdout.write(f"{int(used.sum())} pixels; noise_factor {factor:.2f}, from the median of |image| / noise\n")
    theta, log_joint = fits(simulator, x, steps=given.steps, seed=given.seed)
    residual = torch.where(used, (x["image"] - simulator.model_image(theta[:1])) / noise, 0.0)
    chi2 = float(residual.square().sum() / (used.sum() - theta.shape[1]))
    sys.stdout.write(f"best: log joint {float(log_joint[0]):.1f}, reduced chi-squared {chi2:.2f} with that factor\n")
    for t, log_p in zip(theta[:SHOWN], log_joint[:SHOWN] - log_joint[0], strict=True):
        named = {p.name: float(v) for p, v in zip(simulator.parameters, t, strict=True)}
        ratio = float(torch.exp(-2 * t[3:5].norm()))
        sys.stdout.write(
            f"log joint {float(log_p):8.1f}  einstein_radius {named['einstein_radius']:.3f} arcsec  axis ratio {ratio:.3f}\n"
        )


if __name__ == "__main__":
    main()
