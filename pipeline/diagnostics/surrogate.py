r"""Is a learned likelihood right where it is used? Simulations at the delivered draws tell.

For an observation x, delivered draws theta_k and the observing conditions c of x,

    s_k ~ summary( simulator(theta_k, c) )      s_k1 .. s_kL ~ (1/E) sum_e p_e(s | theta_k, c)

must be exchangeable for each k (`diagnostics.exchange`). Both are compared where the flow sees
them: standardised, the logarithm taken where it takes it, whole numbers with uniform noise. The
cost is one simulation per k.

It looks at the delivered draws alone. Where the true posterior has mass and the learned one has
none no draw lies, and nothing is compared; nor does it see what a summary has lost, or what the
guard has subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diagnostics.exchange import exchange_p_value
from pipeline.diagnostics.surrogate_effect import effect
from pipeline.errors import InputError
from pipeline.estimators.learned_likelihood import WithLearnedLikelihood, learned_part
from pipeline.estimators.likelihood import LikelihoodNetwork, context_numbers, mixture
from pipeline.estimators.network import BLOCK
from pipeline.estimators.summary import numbers_of
from pipeline.settings import LEAST_CHECKS
from simulators.protocol import Data, Simulator, context_of, data_observables, simulate_with_reasons

DRAWN = 19
"""L, draws of the learned likelihood for each simulation: ranks are twentieths."""
LEAST = LEAST_CHECKS
"""Simulations that must have succeeded for a comparison."""
UNCHECKED = float("nan")


@dataclass(frozen=True)
class SurrogateCheck:
    """What simulations say of a learned likelihood, for N observations, (N,) float64 each.

    Attributes:
        p_value: that both sides are one density; NaN where nothing was compared.
        failed: simulations that failed, and were left out.
        shift: by how many of its standard deviations a mean of the posterior is off, to first order.
        width: of the delivered posterior over the true one, to first order (`surrogate_effect`).
    """

    p_value: Tensor
    failed: Tensor
    shift: Tensor
    width: Tensor

    def figures(self, row: int) -> dict[str, float]:
        """Numbers of the certificate of one observation, by their names."""
        return {
            "surrogate_check": float(self.p_value[row]),
            "surrogate_failed": float(self.failed[row]),
            "surrogate_shift": float(self.shift[row]),
            "surrogate_width": float(self.width[row]),
        }

    def why_failed(self, row: int, *, below: float) -> str:
        """Empty where one observation passes, or where nothing was asked; else the note of verdict `failed`.

        Args:
            row: of the observation.
            below: p-value that fails; of each observation by itself, since a certificate must not depend on what
                else is in its file.
        """
        p_value, failed = float(self.p_value[row]), float(self.failed[row])
        if p_value != p_value and failed:
            return (
                f"the learned likelihood could not be checked: {failed:.0f} simulations at the delivered draws failed"
            )
        if not p_value < below:
            return ""
        shift, width = float(self.shift[row]), float(self.width[row])
        size = (
            f": to first order the mean is off by {shift:.1f} sd and the width is {width:.1f} times the true one"
            if shift == shift
            else ""
        )
        return f"the learned likelihood differs from the simulator at the delivered draws (p = {p_value:.2g}){size}"


@torch.no_grad()
def surrogate_check(
    simulator: Simulator,
    theta: Tensor,
    x: Mapping[str, Tensor],
    *,
    simulations: int,
    generator: torch.Generator,
    shared: bool = False,
) -> SurrogateCheck:
    """Compare a learned likelihood with its simulator at the delivered draws of N observations.

    Args:
        simulator: with its likelihood; nothing is compared where that is its own.
        theta: equally weighted draws of each posterior, (S, N, D); each is used several times where
            S < simulations.
        x: N observations, on the device of theta.
        simulations: of each observation; 0: nothing is compared.
        generator: the only source of random numbers, on the device of theta.
        shared: one posterior for all rows of x, theta (S, 1, D), and one comparison of it, in which
            the rows take turns; shift and width are then not known.

    Raises:
        InputError: no draws, or another number of observations in theta than in x.
    """
    rows = 1 if shared else len(next(iter(x.values())))
    if not len(theta) or theta.shape[1] != rows:
        raise InputError(
            f"surrogate check: expected draws theta (S, N, D) of {rows} observations, got {tuple(theta.shape)}"
        )
    learned = learned_part(simulator)
    if learned is None or not simulations:
        nothing = torch.full((rows,), UNCHECKED, dtype=torch.float64, device=theta.device)
        return SurrogateCheck(nothing, torch.zeros_like(nothing), nothing, nothing)
    found = [
        _check_one(
            learned, theta[:, n], {k: v if shared else v[n : n + 1] for k, v in x.items()}, simulations, generator
        )
        for n in range(rows)
    ]
    figures = torch.tensor(found, dtype=torch.float64, device=theta.device).T
    return SurrogateCheck(*figures)


def _check_one(
    learned: WithLearnedLikelihood, theta: Tensor, x: Data, simulations: int, generator: torch.Generator
) -> tuple[float, float, float, float]:
    """p-value, failed simulations, shift and width of one posterior, theta (S, D) and x of its rows."""
    network = learned.network
    order = torch.rand(len(theta), generator=generator, device=theta.device).argsort()
    theta = theta[order[torch.arange(simulations, device=theta.device) % len(theta)]].double()
    turn = torch.arange(simulations, device=theta.device) % len(next(iter(x.values())))
    context = {k: v[turn] for k, v in context_of(learned.simulator, x).items()}
    s, succeeded = simulated_summaries(network, theta, context, generator=generator)
    failed = float((~succeeded).sum())
    if len(s) < LEAST:
        return UNCHECKED, failed, UNCHECKED, UNCHECKED
    theta = theta[succeeded]
    conditions = network.context(context_numbers(network.simulator, x)).float()[turn[succeeded]]
    coordinates = network.coordinates(theta)
    drawn = draws_given(network, coordinates, conditions, DRAWN, generator=generator)
    simulated = network.summary.standardized(s + network.summary.noise(len(s), generator))[0]
    v = torch.cat([simulated[:, None], drawn], dim=1)
    log_density = log_densities(network, v, coordinates, conditions)
    raw = network.coordinates.raw(theta)
    p_value = exchange_p_value(v, log_density, raw, generator=generator)
    observed = network.summary.standardized(_summary_of(network, x))[0]
    if len(observed) > 1:  # what is small of each adds up over all of them
        return p_value, failed, UNCHECKED, UNCHECKED
    return p_value, failed, *effect(v, observed[0], raw)


# ---------------------------------------------------------------- simulations


def simulated_summaries(
    network: LikelihoodNetwork, theta: Tensor, context: Data, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """s (K', S) of the simulations of theta (K, D) that succeeded, and which those are, (K,).

    Where the simulator raises on all of them at once it is asked for each alone.
    """
    try:
        return _summaries(network, theta, context, generator)
    except Exception:  # of the user's simulator: a replicate that fails ends nothing
        if len(theta) == 1:
            empty = torch.zeros(0, network.shape.summary.kept, dtype=torch.float64, device=theta.device)
            return empty, torch.zeros(1, dtype=torch.bool, device=theta.device)
    parts = [
        simulated_summaries(
            network, theta[k : k + 1], {n: c[k : k + 1] for n, c in context.items()}, generator=generator
        )
        for k in range(len(theta))
    ]
    return torch.cat([s for s, _ in parts]), torch.cat([good for _, good in parts])


def _summaries(
    network: LikelihoodNetwork, theta: Tensor, context: Data, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    simulator = network.simulator
    # a copy: a simulator that changes theta in place must not change that of the comparison
    x, _ = simulate_with_reasons(simulator, theta.clone(), context or None, generator=generator)
    x = {
        o.name: torch.as_tensor(x[o.name], device=theta.device).reshape(len(theta), *o.shape)
        for o in simulator.observables
    }
    good = torch.stack([x[o.name].flatten(1).isfinite().all(1) for o in data_observables(simulator)]).all(0)
    s = _summary_of(network, {k: v[good] for k, v in x.items()})
    finite = s.isfinite().all(1)
    good[good.clone()] = finite
    return s[finite], good


def _summary_of(network: LikelihoodNetwork, x: Data) -> Tensor:
    return network.summary(numbers_of(network.shape.summary.kind, network.simulator, x))


# ---------------------------------------------------------------- the learned likelihood


def draws_given(
    network: LikelihoodNetwork, coordinates: Tensor, context: Tensor, draws: int, *, generator: torch.Generator
) -> Tensor:
    """Standardised s of the ensemble, a member chosen at random for each, (K, draws, S) float64.

    Args:
        coordinates: theta as the flow reads it, (K, T).
        context: standardised, (K, C).
    """
    count, device = len(coordinates), coordinates.device
    member = torch.randint(len(network.members), (count * draws,), generator=generator, device=device)
    t, c = (z.repeat_interleave(draws, 0) for z in (coordinates, context))
    v = torch.zeros(count * draws, network.shape.summary.kept, dtype=torch.float64, device=device)
    for e, density in enumerate(network.members):
        rows = (member == e).nonzero()[:, 0]
        if len(rows):
            v[rows] = density.sample(t[rows], c[rows], 1, generator)[0].double()  # pyright: ignore[reportCallIssue]
    return v.view(count, draws, -1)


def log_densities(network: LikelihoodNetwork, v: Tensor, coordinates: Tensor, context: Tensor) -> Tensor:
    """log p(v given theta) of the ensemble for standardised v (K, L, S), (K, L), float64."""
    count, draws = v.shape[:2]
    rows = v.flatten(0, 1).float().split(BLOCK)
    t, c = (z.repeat_interleave(draws, 0).split(BLOCK) for z in (coordinates, context))
    parts = [
        mixture(torch.stack([member.log_prob(*row) for member in network.members]))  # pyright: ignore[reportCallIssue]
        for row in zip(rows, t, c, strict=True)
    ]
    return torch.nan_to_num(torch.cat(parts).double(), nan=-torch.inf, neginf=-torch.inf).view(count, draws)
