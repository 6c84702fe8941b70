r"""nautilus: importance nested sampling with neural-network bounds; posterior draws and evidence.

Lange 2023, https://arxiv.org/abs/2306.16923.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.baselines.counted_density import CountedDensity
from pipeline.baselines.result import BaselineResult, Density, Progress
from pipeline.cost import Meter
from pipeline.errors import InputError
from pipeline.estimators.importance import systematic_resample

ZERO = -1e300
"""Stands for a log likelihood of -inf: nautilus computes -inf - (-inf) while it has seen nothing else."""
NETWORKS = 1
"""Networks averaged in each bound; nautilus takes 4. On K2-24 (5 parameters, 1,000 live points, one core) one network
needs 54,100 likelihood calls and 50 s, four need 54,600 and 130 s. Bounds decide the cost, not the answer."""


def run_nautilus(
    log_likelihood: Density,
    prior_quantile: Density,
    dimension: int,
    *,
    live_points: int,
    effective_draws: int,
    seed: int,
    progress: Progress | None = None,
    max_calls: int | None = None,
) -> BaselineResult:
    r"""Sample the posterior and integrate $p(x) = \int p(x|\theta(u)) \, du$ over the unit cube with nautilus.

    Points from the exploration of the cube are discarded, which the author requires for an unbiased evidence.
    The stated error of log p(x) is $1/\sqrt{N_\mathrm{eff}}$, the delta method on the importance weights
    (Lange 2023). It takes the bounds to contain every region that matters: check it with `evidence_from_draws`.

    Args:
        log_likelihood: log p(x given theta) in nats, (B, D) -> (B,); -inf is allowed.
        prior_quantile: unit cube to theta, (B, D) -> (B, D).
        dimension: D.
        live_points: size of the live set.
        effective_draws: effective sample size at which it stops; also the number of draws returned.
        seed: every random number is a function of it.
        progress: told the likelihood calls made; their number in all is not known.
        max_calls: stop there, not converged; None is no limit.

    Returns:
        Equally weighted draws by systematic resampling; `checks` holds `effective_draws`, `bounds`,
        `repeated_fraction` (share of returned draws that repeat another one) and `refused`.

    Raises:
        InputError: an argument out of range, or a likelihood of zero wherever it was evaluated.
    """
    from nautilus import Sampler

    if dimension < 1 or live_points < 50 or effective_draws < 1:
        raise InputError(
            "nautilus: expected dimension >= 1, live_points >= 50 and effective_draws >= 1, "
            f"got {dimension}, {live_points} and {effective_draws}"
        )
    meter = Meter()
    density = CountedDensity(log_likelihood, progress=progress)
    sampler = Sampler(
        lambda cube: prior_quantile(cube[:, :dimension]),
        _floored(density, patience=100 * live_points),
        n_dim=max(dimension, 2),  # nautilus refuses one dimension; a second that nothing depends on integrates to 1
        n_live=live_points,
        n_networks=NETWORKS,
        vectorized=True,
        seed=seed,
    )
    limit = math.inf if max_calls is None else max_calls
    finished = sampler.run(n_eff=effective_draws, n_like_max=limit, discard_exploration=True, verbose=False)
    theta, log_weight, log_l = (np.asarray(v, dtype=np.float64) for v in sampler.posterior()[:3])
    if not (log_l > ZERO).any():
        raise InputError(f"nautilus: likelihood zero at all {density.calls} points; raise max_calls")
    generator = torch.Generator().manual_seed(seed)
    index, repeated = systematic_resample(torch.from_numpy(log_weight)[:, None], effective_draws, generator=generator)
    n_eff = float(sampler.n_eff)
    cost = meter.lap()
    return BaselineResult(
        name="nautilus",
        draws=theta[index[:, 0].numpy()],
        log_evidence=float(cast("float", sampler.log_z)),
        log_evidence_error=1.0 / math.sqrt(n_eff),
        converged=bool(finished),
        checks={
            "effective_draws": n_eff,
            "bounds": float(len(sampler.bounds)),
            "repeated_fraction": float(repeated[0]),
            "refused": float(density.refused),
        },
        wall_time_s=cost.wall_time_s,
        cpu_time_s=cost.cpu_time_s,
        likelihood_calls=density.calls,
    )


def _floored(density: CountedDensity, *, patience: int) -> Density:
    """The density with ZERO for -inf, which gives up after `patience` calls that found nothing else."""
    found = False

    def floored(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal found
        values = density(theta)
        found = found or bool((values > -np.inf).any())
        if not found and density.calls >= patience:  # nautilus would go on for ever
            raise InputError(f"nautilus: likelihood zero at the first {density.calls} points; check prior and data")
        return np.maximum(values, ZERO)

    return floored
