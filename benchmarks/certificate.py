r"""Is the certificate itself calibrated, and what can it not see?

    python -m benchmarks.certificate

1. 500 simulations with known evidence: linear Gaussian (closed form) and a two-mode problem in 2-d (on a grid), each with
   a q that is off by 0.3 posterior widths and 1.2 times too wide. For all that pass on pareto_k the ratio of estimated
   to true evidence must have mean 1, and its deviation in stated errors a standard deviation of 1.
2. How often the verdict is `exact` for a q shifted by two posterior widths, or half as wide.
3. A q that lacks a mode of 20 % weight: what each safeguard of the ladder says.

The two-mode problem: theta ~ N(0, I), x = theta + noise with probability 0.8 and -theta + noise with 0.2. Its posterior is
N(m, v) and N(-m, v) with weights 0.8 and 0.2.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pipeline.diagnostics.calibration import calibrate
from pipeline.estimators.importance import WeightedDraws, summarize
from pipeline.estimators.proposal import Mixture, Proposal
from pipeline.rng import generator
from pipeline.settings import InferSettings
from pipeline.stages.verdicts import verdict_of, what_it_lost
from simulators.priors import sample

COUNT, DRAWS, NOISE, MINOR = 500, 20_000, 0.3, 0.2
SETTINGS = InferSettings()


@dataclass(frozen=True)
class Gaussians:
    """A mixture of Gaussians with diagonal covariance as q, for N observations.

    Attributes:
        weight: (J,).
        mean: (N, J, D).
        width: (D,) or (N, J, D).
    """

    weight: Tensor
    mean: Tensor
    width: Tensor

    @property
    def distribution(self) -> MixtureSameFamily:
        parts = Independent(Normal(self.mean, self.width.expand_as(self.mean)), 1)
        return MixtureSameFamily(Categorical(self.weight.expand(self.mean.shape[:2])), parts)

    def draw(self, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        theta = sample(self.distribution, draws, generator)
        log_q = self.log_q(theta)
        return theta, log_q, log_q

    def log_q(self, theta: Tensor) -> Tensor:
        return self.distribution.log_prob(theta)

    def densities(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_q = self.log_q(theta)
        return log_q, log_q

    def row(self, n: int) -> Gaussians:
        return Gaussians(self.weight, self.mean[n : n + 1], self.width)


@dataclass(frozen=True)
class Problem:
    """x (N, D) = +-theta + noise; the minor mode has weight `minor`, 0 for the linear Gaussian."""

    x: Tensor
    theta: Tensor
    minor: float

    @property
    def mean(self) -> Tensor:
        return self.x / (1 + NOISE**2)

    @property
    def width(self) -> Tensor:
        return torch.tensor(NOISE / math.sqrt(1 + NOISE**2), dtype=torch.float64).expand(self.x.shape[1])

    @property
    def log_evidence(self) -> Tensor:
        """log N(x; 0, 1 + s^2): the sign does not matter under a prior that is even."""
        return Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(self.x).sum(-1)

    def log_likelihood(self, theta: Tensor) -> Tensor:
        plus, minus = (Normal(s * theta, NOISE).log_prob(self.x).sum(-1) for s in (1, -1))
        if not self.minor:
            return plus
        return torch.logaddexp(plus + math.log(1 - self.minor), minus + math.log(self.minor))

    def q(self, *, shift: float = 0.0, scale: float = 1.0, minor: float | None = None) -> Gaussians:
        """The posterior, moved and widened; with another weight of the minor mode."""
        share = self.minor if minor is None else minor
        mean = torch.stack([self.mean, -self.mean], 1) + shift * self.width
        return Gaussians(torch.tensor([1 - share, share], dtype=torch.float64), mean, scale * self.width)

    def weigh(self, q: Proposal, *, draws: int = DRAWS, stream: torch.Generator) -> WeightedDraws:
        theta, log_q, log_q_itself = q.draw(draws, stream)
        prior = Normal(0.0, 1.0).log_prob(theta).sum(-1)
        return WeightedDraws(theta, log_q, self.log_likelihood(theta), prior, log_q_itself)


def problem(minor: float, dimension: int, count: int) -> Problem:
    """`count` simulations from the prior."""
    stream = generator(3, "benchmark-certificate", dimension)
    theta = torch.randn(count, dimension, generator=stream, dtype=torch.float64)
    sign = torch.where(torch.rand(count, 1, generator=stream) < minor, -1.0, 1.0)
    noise = NOISE * torch.randn(count, dimension, generator=stream, dtype=torch.float64)
    return Problem(sign * theta + noise, theta, minor)


def on_a_grid(p: Problem) -> Tensor:
    """Evidence of a two-dimensional problem by the midpoint rule on 400 x 400 points."""
    edge = torch.linspace(-6, 6, 401, dtype=torch.float64)
    middle = (edge[1:] + edge[:-1]) / 2
    theta = torch.cartesian_prod(middle, middle)
    prior = Normal(0.0, 1.0).log_prob(theta).sum(-1)
    cell = 2 * math.log(float(edge[1] - edge[0]))
    rows = [Problem(p.x[n : n + 1], p.theta, p.minor).log_likelihood(theta[:, None])[:, 0] for n in range(len(p.x))]
    return torch.stack([torch.logsumexp(r + prior, 0) + cell for r in rows])


def of_the_evidence(name: str, p: Problem, truth: Tensor) -> str:
    """One line: ratio of estimated to true evidence, and its scatter against the stated errors."""
    found = summarize(p.weigh(p.q(shift=0.3, scale=1.2), stream=generator(5, name)))
    passed = found.pareto_k <= SETTINGS.corrected_pareto_k
    difference = (found.log_evidence - truth)[passed]
    ratio, z = difference.exp(), difference / found.log_evidence_error[passed]
    error = float(ratio.std()) / math.sqrt(len(ratio))
    wrong = []
    for change in ({"shift": 2.0}, {"scale": 0.5}):
        bad = summarize(p.weigh(p.q(**change), stream=generator(6, name)))
        wrong.append(sum(verdict_of(bad.rows(slice(n, n + 1)), SETTINGS, DRAWS) == "exact" for n in range(len(p.x))))
    return (
        f"| {name} | {len(ratio)} of {len(p.x)} | {float(ratio.mean()):.5f} ± {error:.5f} | "
        f"{float(z.mean()):.2f} | {float(z.std()):.2f} | {wrong[0]} | {wrong[1]} |\n"
    )


def blind_spots() -> str:
    """Each safeguard against a q without the minor mode, on 100 observations whose modes are apart."""
    p = problem(MINOR, 2, 1_000)
    chosen = torch.nonzero(p.mean.norm(dim=1) > 6 * float(p.width[0]))[:100, 0]
    p = Problem(p.x[chosen], p.theta[chosen], MINOR)
    lacking, whole = p.q(minor=0.0), p.q(shift=0.5, scale=1.3)
    prior = Gaussians(torch.ones(1, dtype=torch.float64), torch.zeros(len(chosen), 1, 2), torch.ones(2))
    amortized = summarize(p.weigh(whole, stream=generator(8, "amortized")))
    cases: list[tuple[str, Proposal]] = [
        ("q lacks the mode: weights alone", lacking),
        (
            "the same, a tenth of the draws from q widened 1.5 times",
            Mixture([lacking, p.q(scale=1.5, minor=0.0)], [0.9, 0.1]),
        ),
        ("the same, a tenth of the draws from the prior", Mixture([lacking, prior], [0.9, 0.1])),
        ("amortized q has it, refined copy lacks it: mixture 0.9 / 0.1", Mixture([lacking, whole], [0.9, 0.1])),
    ]
    lines = []
    for name, q in cases:
        e = summarize(p.weigh(q, stream=generator(8, name)))
        rows = [e.rows(slice(n, n + 1)) for n in range(len(chosen))]
        exact = sum(verdict_of(r, SETTINGS, DRAWS) == "exact" for r in rows)
        off = float((e.log_evidence - p.log_evidence).mean())
        lines.append(f"| {name} | {exact} of {len(rows)} | {off:+.3f} | {float(e.ess_fraction.mean()):.2f} |\n")
    alone = summarize(p.weigh(lacking, stream=generator(8, "alone")))
    caught = sum(
        bool(what_it_lost(alone.rows(slice(n, n + 1)), amortized.rows(slice(n, n + 1)), missed=0.0))
        for n in range(len(chosen))
    )
    lines.append(f"| refined copy alone, evidence must not fall | {len(chosen) - caught} of {len(chosen)} | | |\n")
    return "".join(lines)


def calibration_of(share: float) -> str:
    """Least p-value of the calibration tests on 1,000 simulations where a share of the posteriors lacks the mode."""
    p = problem(MINOR, 2, 1_000)
    stream = generator(9, "calibration")
    good, bad = p.q().draw(250, stream)[0], p.q(minor=0.0).draw(250, stream)[0]
    lacks = torch.arange(1_000) < round(share * 1_000)
    result = calibrate(p.theta, torch.where(lacks[:, None], bad, good), seed=1)
    return f"| {100 * share:g} % | {result.least_p_value:.2g} | {'passes' if result.passed else 'rejected'} |\n"


def main() -> None:
    """Print the three tables."""
    torch.set_num_threads(1)
    out = sys.stdout.write
    out(
        "| problem | pass on pareto_k | mean ratio | mean of z | sd of z | exact, shifted by 2 widths | exact, half as wide |\n"
    )
    out("|---|---|---|---|---|---|---|\n")
    linear = problem(0.0, 5, COUNT)
    out(of_the_evidence("linear Gaussian, 5-d", linear, linear.log_evidence))
    two = problem(MINOR, 2, COUNT)
    grid = on_a_grid(two)
    assert np.abs((grid - two.log_evidence).numpy()).max() < 1e-6, "grid and closed form must agree"
    out(of_the_evidence("two modes, 2-d, on a grid", two, grid))
    out(
        "\n| q without a mode of 20 % weight | verdict exact | mean error of log evidence | ESS fraction |\n|---|---|---|---|\n"
    )
    out(blind_spots())
    out(
        "\n| posteriors that lack the mode | least p-value of calibration, 1,000 simulations | calibration |\n|---|---|---|\n"
    )
    for share in (0.0, 0.02, 0.1, 0.3, 1.0):
        out(calibration_of(share))


if __name__ == "__main__":
    main()
