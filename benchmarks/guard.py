"""A learned likelihood where no simulation was: what an unguarded posterior makes of it, and a guarded one.

    python -m benchmarks.guard

One parameter, x ~ N(theta, sd(theta)), whose noise grows towards |theta| = 1.8 and falls again. The prior is N(0, 10), theta of the
simulations N(0, 1): a narrow proposal, as around a first fit. Beyond it the networks go on as they ended, with ever wider noise, and
any x is likely there. Evidence and posterior of 12 simulated observations on a grid, exact and learned; "impossible" is theta whose
exact posterior density is below exp(-12) of its maximum.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from pipeline.estimators.likelihood import mixture
from pipeline.likelihood_settings import LikelihoodSettings
from pipeline.network_settings import FlowSettings
from pipeline.training.data import TrainingSet, training_set
from pipeline.training.likelihood import Learner, set_levels
from simulators.priors import IndependentPrior, prior_of, sample
from simulators.protocol import Data, Observable, Parameter

OBSERVATIONS = 12
STEP = 0.01


def _normal(scale: float) -> Distribution:
    return Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64), validate_args=False)


class GrowingNoise:
    r"""$x \sim N(\theta, s(\theta))$, $s = 0.05 + \exp(-2 (|\theta| - 1.8)^2)$."""

    name = "growing_noise"
    parameters = (Parameter("theta", _normal(10.0)),)
    observables = (Observable("x", (1,)),)

    def spread(self, theta: Tensor) -> Tensor:
        """s(theta)."""
        return 0.05 + torch.exp(-2 * (theta.abs() - 1.8).square())

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """x, (N, 1)."""
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        return {"x": theta + self.spread(theta) * noise}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        """log N(x; theta, s(theta)), (..., N, 1) -> (..., N)."""
        return Normal(theta, self.spread(theta), validate_args=False).log_prob(x["x"])[..., 0]


@dataclass(frozen=True)
class Wrong:
    """How wrong a learned posterior is, for each observation.

    Attributes:
        impossible: its mass where the exact posterior has none.
        evidence: error of log evidence, nats.
        outside: its mass outside what was simulated, as the certificate has it.
    """

    impossible: np.ndarray
    evidence: np.ndarray
    outside: np.ndarray


def simulated(rows: int, stream: torch.Generator) -> TrainingSet:
    """Simulations under the proposal."""
    simulator, proposal = GrowingNoise(), IndependentPrior([_normal(1.0)])
    theta = sample(proposal, rows, stream)
    x = simulator.simulate(theta, generator=stream)
    return training_set(simulator, theta, x, prior=proposal, proposal=proposal, device=torch.device("cpu"))


@torch.no_grad()
def measure(seed: int, *, rows: int = 1_000, steps: int = 400) -> tuple[Wrong, Wrong]:
    """An ensemble learned from `rows` simulations: unguarded and guarded."""
    stream = torch.Generator().manual_seed(seed)
    settings = LikelihoodSettings(
        steps=steps,
        check_every=50,
        learning_rate=5e-3,
        batch=128,
        flow=FlowSettings(transforms=2, hidden=24, blocks=1, bins=6),
    )
    training, watched, tested = (simulated(n, stream) for n in (rows, 100, 300))
    with torch.enable_grad():
        network = Learner(GrowingNoise(), settings, training, watched, seed).learn().network
    set_levels(network, tested)
    grid = torch.arange(-40, 40, STEP, dtype=torch.float64)[:, None, None]
    observed = simulated(OBSERVATIONS, stream).x
    judged = network.judge(grid.expand(-1, OBSERVATIONS, -1), network.read(observed))
    log_prior = prior_of(GrowingNoise()).log_prob(grid)
    exact = GrowingNoise().log_likelihood(grid, observed) + log_prior
    plain = mixture(judged.members) + log_prior
    outside = network.is_outside(judged)
    return _wrong(exact, plain, outside), _wrong(exact, plain - network.penalty(judged), outside)


def _wrong(exact: Tensor, learned: Tensor, outside: Tensor) -> Wrong:
    impossible = exact < exact.max(0).values - 12
    posterior = torch.softmax(learned, 0)
    mass, beyond = (torch.where(where, posterior, 0.0).sum(0) for where in (impossible, outside))
    error = torch.logsumexp(learned, 0) - torch.logsumexp(exact, 0)
    return Wrong(mass.numpy(), error.numpy(), beyond.numpy())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    lines = [
        "| seed | guard | mass where theta is impossible: mean, largest | error of log evidence: mean, sd | flagged: more than 5 % outside what was simulated |",
        "|---|---|---|---|---|",
    ]
    for seed in (1, 2, 3):
        for word, wrong in zip(("off", "on"), measure(seed), strict=True):
            mass, error = wrong.impossible, wrong.evidence
            lines.append(
                f"| {seed} | {word} | {mass.mean():.3f}, {mass.max():.3f} | {error.mean():+.2f}, {error.std(ddof=1):.2f} | {(wrong.outside > 0.05).sum()} of {OBSERVATIONS} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
