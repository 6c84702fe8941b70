r"""Posterior predictive checks: does the posterior of an observation explain that observation?

For draws theta_s of p(theta|x), replicated data x_s ~ p(x|theta_s) are what the same object might have shown. Two
discrepancies are ranked among replicates:

    log_likelihood    P = (1 + #{s : log p(x_s|theta_s) <= log p(x|theta_s)}) / (S + 1)     realized, one theta on each side
    an observable     P = (1 + #{s in rank : D(x_s) >= D(x)}) / (S/2 + 1),                  D^2 = (x - m)^T C^-1 (x - m)

(Gelman, Meng and Stern 1996, Statistica Sinica 6, 733). The first is two-sided, 2 min(P, 1 - P): noise larger than the
model's makes log p(x|theta) too small, smaller noise too large. m and C are mean and shrunk covariance of half of the
replicates, the other half is ranked. An offset that the simulator draws anew each time is one wide direction of C, in
which any offset is near; all others are as narrow as without it.

Both sides are looked at in canonical form (`simulators.protocol.canonical`): what no likelihood
sees, such as an offset that is marginalised, and what stands in absent slots cannot make data look
strange. Replicates that failed are left out and counted; where too few remain, or one observation's
own numbers cannot be worked with, its p-value is NaN with a reason, and no other's.

x has served twice, for the draws and for the check: for honest observations the p-values are not uniform but crowd
around 1/2 (Bayarri and Berger 2000), the more so the more parameters there are for each number of x. A flag at level
alpha is raised by honest observations less often than alpha.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diagnostics.replicates import first_line, replicate, rows_at_once
from pipeline.errors import InputError
from pipeline.estimators.standardize import same_to
from pipeline.estimators.whitening import fit_whitening
from pipeline.interrupt import Interrupted
from simulators.one_form import in_one_form
from simulators.protocol import Data, Simulator, canonical, data_observables, has_likelihood, log_likelihood

LEAST_REPLICATES = 1_000
"""So many replicates of each observation by default: p-values reach down to 0.002."""
LEAST_WIDTH = 1e-5
"""Least width of a direction of replicated data, as of noise beside an offset: theirs are float64."""
LOG_LIKELIHOOD = "log_likelihood"


@dataclass(frozen=True)
class PredictiveCheck:
    """Posterior predictive p-values of N observations.

    Attributes:
        p_value: (N,) float64 each: `log_likelihood`, two-sided, NaN for a simulator without likelihood; and under the
            name of each data observable, small where x is far from its replicates.
        replicates: of each observation, S. No p-value is below 2 / (S + 1), the number of points that can be ranked.
        failed: replicates of each observation that are left out since their simulation failed,
            (N,).
        reason: of each observation, why a p-value that should be there is NaN, in one sentence; ""
            where all are.
    """

    p_value: Mapping[str, Tensor]
    replicates: int
    failed: Tensor
    reason: tuple[str, ...]

    @classmethod
    def joined(cls, parts: Sequence[PredictiveCheck]) -> PredictiveCheck:
        """The observations of all parts, one part after the other."""
        return cls(
            {name: torch.cat([p.p_value[name] for p in parts]) for name in parts[0].p_value},
            parts[0].replicates,
            torch.cat([p.failed for p in parts]),
            tuple(reason for p in parts for reason in p.reason),
        )


@torch.no_grad()
def predictive_check(
    simulator: Simulator,
    theta: Tensor,
    x: Mapping[str, Tensor],
    *,
    generator: torch.Generator,
    least_replicates: int = LEAST_REPLICATES,
) -> PredictiveCheck:
    """Check observations against data replicated from their posteriors.

    Observing conditions are those of each observation, and are never drawn anew. Nothing that
    happens to one observation changes what is said of another, nor ends the check.

    Args:
        simulator: of x.
        theta: equally weighted draws of each posterior in random order, (K, N, D).
        x: N observations, on the device of theta.
        generator: the only source of random numbers, on the device of theta.
        least_replicates: S, of each observation, where there are fewer draws, each of which is then used several times;
            a test at level alpha needs more than 2 / alpha.

    Raises:
        InputError: no draws, fewer than 8 replicates, or another number of observations in theta than in x.
    """
    draws, count = theta.shape[:2]
    rows, replicates = len(next(iter(x.values()))), max(draws, least_replicates)
    if not draws or count != rows:
        raise InputError(
            f"predictive check: expected draws theta (K, N, D) of {rows} observations, got {tuple(theta.shape)}; raise infer.predictive_draws"
        )
    if replicates < 8:  # half of them must have a covariance
        raise InputError(f"predictive check: expected at least 8 replicates, got {replicates}; raise least_replicates")
    theta = theta[torch.arange(replicates, device=theta.device) % draws]
    x = in_one_form(simulator, x)
    block = max(1, rows_at_once(simulator, x) // replicates)
    starts = range(0, count, block)
    return PredictiveCheck.joined(
        [_check_block(simulator, theta[:, i : i + block], _rows(x, i, i + block), generator) for i in starts]
    )


def _rows(x: Mapping[str, Tensor], start: int, stop: int) -> Data:
    return {name: values[start:stop] for name, values in x.items()}


def _check_block(
    simulator: Simulator, theta: Tensor, x: Mapping[str, Tensor], generator: torch.Generator
) -> PredictiveCheck:
    """A few observations whose replicates fit into memory; each by itself where something raises."""
    replicates, count = theta.shape[:2]
    try:
        return _examine(simulator, theta, x, generator)
    except Interrupted:
        raise
    except Exception as error:
        if count == 1:
            nothing = torch.full((1,), torch.nan, dtype=torch.float64, device=theta.device)
            names = (LOG_LIKELIHOOD, *(o.name for o in data_observables(simulator)))
            reason = f"predictive check: {type(error).__name__}: {first_line(error)}"
            none = torch.zeros(1, dtype=torch.long, device=theta.device)
            return PredictiveCheck(dict.fromkeys(names, nothing), replicates, none, (reason,))
    alone = [_check_block(simulator, theta[:, n : n + 1], _rows(x, n, n + 1), generator) for n in range(count)]
    return PredictiveCheck.joined(alone)


def _examine(
    simulator: Simulator, theta: Tensor, x: Mapping[str, Tensor], generator: torch.Generator
) -> PredictiveCheck:
    """p-values of observations none of which raises."""
    replicates, count = theta.shape[:2]
    drawn = replicate(simulator, theta, x, generator=generator)
    enough, good = drawn.enough, drawn.good
    likelihood = likelihood_p_value(simulator, theta, x, drawn.x, good=good)
    p_value = {LOG_LIKELIHOOD: torch.where(enough, likelihood, torch.nan)}
    observed = canonical(simulator, x)
    rows = canonical(simulator, {name: values.flatten(0, 1) for name, values in drawn.x.items()})
    for name in (o.name for o in data_observables(simulator)):
        point = observed[name].reshape(count, -1)
        point = point if point.is_floating_point() else point.double()
        cloud = rows[name].reshape(replicates, count, -1).to(point.dtype)  # both as files hold them
        found = [distance_p_value(point[n], cloud[good[:, n], n]) if enough[n] else torch.nan for n in range(count)]
        p_value[name] = torch.as_tensor(found, dtype=torch.float64, device=theta.device)
    reasons = [""] * count
    for n in range(count):
        if not enough[n]:
            reasons[n] = (
                f"predictive check: {int(drawn.failed[n])} of {replicates} replicates failed, too few are left: {drawn.why[n]}"
            )
        elif has_likelihood(simulator) and bool(likelihood[n].isnan()):
            reasons[n] = "predictive check: log_likelihood is NaN at every draw"
    return PredictiveCheck(p_value, replicates, drawn.failed, tuple(reasons))


def likelihood_p_value(
    simulator: Simulator,
    theta: Tensor,
    x: Mapping[str, Tensor],
    replicated: Mapping[str, Tensor],
    *,
    good: Tensor | None = None,
) -> Tensor:
    r"""Two-sided p-value of log p(x|theta) among replicates, (N,): $2 \min(P_\le, P_\ge)$, at most 1.

    $P_\le = (1 + \#\{\log p(x_s|\theta_s) \le \log p(x|\theta_s)\}) / (S + 1)$, $P_\ge$ likewise. Draws at which either side is
    not a number are left out on both; one of likelihood zero is a value like any other, the smallest.

    Args:
        simulator: of x.
        theta: (S, N, D).
        x: (N, ...) each.
        replicated: (S, N, ...) each, one replicate for each draw.
        good: which replicates count, (S, N); default: all.
    """
    draws, count = theta.shape[:2]
    if not has_likelihood(simulator):
        return torch.full((count,), torch.nan, dtype=torch.float64, device=theta.device)
    observed = log_likelihood(simulator, theta, x)
    rows = {k: v.flatten(0, 1) for k, v in replicated.items()}
    expected = log_likelihood(simulator, theta.flatten(0, 1), rows).reshape(draws, count)
    known = ~(observed.isnan() | expected.isnan()) & (good if good is not None else True)
    total = known.sum(0).double() + 1
    below = ((expected <= observed) & known).sum(0) + 1
    above = ((expected >= observed) & known).sum(0) + 1
    p_value = (2 * torch.minimum(below, above) / total).clamp_max(1.0).double()
    return torch.where(known.any(0), p_value, torch.nan)


def distance_p_value(observed: Tensor, replicated: Tensor) -> Tensor:
    """p-value of the Mahalanobis distance of ONE observation (F,) among replicates (S, F), ().

    Even replicates give mean and shrunk covariance, odd ones are ranked. What is the same in all replicates and another
    number in the observation is infinitely far; so is what is not finite.
    """
    fitted, ranked = replicated[::2], replicated[1::2]
    whitening = fit_whitening(fitted, least_width=LEAST_WIDTH)
    points = torch.cat([observed[None], ranked])
    fixed = (whitening.inverse_scale == 0) & ((points - whitening.center).abs() > same_to(points) * points.abs())
    distance = whitening.whiten(points).norm(dim=1)
    distance = torch.where(fixed.any(1) | ~distance.isfinite(), torch.inf, distance)
    return (1 + (distance[1:] >= distance[0]).sum()).double() / (1 + len(ranked))
