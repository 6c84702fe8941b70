r"""emcee: affine-invariant ensemble Markov chain Monte Carlo on the same log joint density.

Foreman-Mackey, Hogg, Lang and Goodman 2013, https://arxiv.org/abs/1202.3665; differential-evolution moves:
ter Braak 2006, https://doi.org/10.1007/s11222-006-8769-1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.baselines.counted_density import CountedDensity
from pipeline.baselines.result import BaselineResult, Density, Progress
from pipeline.cost import Meter
from pipeline.errors import InputError

STEPS_PER_AUTOCORRELATION_TIME = 50.0  # emcee's documentation: below it, the autocorrelation time itself is not trusted
LARGEST_R_HAT = 1.02
"""Largest rank-normalised split R-hat of the walkers.

Each half of a walker holds about steps / (2 tau) independent draws, so that even a perfectly mixed ensemble
has R-hat near sqrt(1 + 2 tau / steps): 1.02 at the 50 autocorrelation times asked for above. The usual 1.01
is meant for a few long chains and would here ask for 100.
"""
LEAST_EFFECTIVE_DRAWS = 400.0  # bulk and tail; Vehtari et al. 2021
ACCEPTANCE = (0.1, 0.9)  # outside it, the ensemble is stuck, or hardly moves
DELIVERED_DRAWS = 10_000
JITTER = 1e-3  # standard deviations of the ensemble


def run_emcee(
    log_joint: Density,
    start: NDArray[np.float64],
    *,
    steps: int,
    burn_in: int,
    seed: int,
    progress: Progress | None = None,
) -> BaselineResult:
    r"""Sample $p(\theta|x) \propto p(x|\theta) p(\theta)$ with emcee.

    Moves: 70 % differential evolution with scale $2.38/\sqrt{2D}$, 10 % with scale 1, which jumps between
    modes, 20 % stretch, which still moves where differences of walkers are degenerate.

    Convergence: rank-normalised split R-hat with walkers as chains, bulk and tail ESS, all from ArviZ
    (Vehtari et al. 2021, https://arxiv.org/abs/1903.08008), at least 50 integrated autocorrelation times, and
    the acceptance fraction. Walkers are not independent chains, so that R-hat is a test of mixing and not a
    proof; but emcee's autocorrelation time subtracts each walker's own mean and cannot see walkers stuck in
    different modes, while R-hat does. Neither sees a mode in which no walker started.

    Args:
        log_joint: log p(x given theta) + log p(theta) in nats, (W, D) -> (W,); -inf outside the support.
        start: first positions of the W walkers, (W, D); weighted draws of q serve well.
        steps: steps kept for each walker.
        burn_in: steps discarded first.
        seed: every random number is a function of it.
        progress: told the likelihood calls made and expected.

    Returns:
        Draws thinned by at most the autocorrelation time, never to fewer than 10,000 where there were more.

    Raises:
        InputError: too few walkers or steps, or no walker starts inside the support.
    """
    start = np.asarray(start, dtype=np.float64)
    _check_arguments(start, steps, burn_in)
    meter = Meter()
    walkers, dimension = start.shape
    density = CountedDensity(log_joint, progress=progress, expected=walkers * (steps + burn_in + 1))
    start_stream, chain_stream = np.random.SeedSequence(seed).spawn(2)
    positions, log_density = _spread_repeats(start, density, np.random.default_rng(start_stream))
    whole = _sample_chain(density, positions, log_density, steps=burn_in + steps, stream=chain_stream)
    chain = whole[burn_in:]
    accepted = np.diff(whole[max(burn_in - 1, 0) :], axis=0).any(axis=-1)
    checks = ensemble_checks(chain) | {"acceptance_fraction": float(accepted.mean()), "refused": float(density.refused)}
    tau = checks["autocorrelation_time"]
    thin = max(1, min(math.ceil(tau) if math.isfinite(tau) else 1, chain.shape[0] * walkers // DELIVERED_DRAWS))
    cost = meter.lap()
    return BaselineResult(
        name="emcee",
        draws=chain[thin - 1 :: thin].reshape(-1, dimension),
        log_evidence=None,
        log_evidence_error=None,
        converged=_passed(checks),
        checks=checks,
        wall_time_s=cost.wall_time_s,
        cpu_time_s=cost.cpu_time_s,
        likelihood_calls=density.calls,
    )


def _sample_chain(
    density: CountedDensity,
    positions: NDArray[np.float64],
    log_density: NDArray[np.float64],
    *,
    steps: int,
    stream: np.random.SeedSequence,
) -> NDArray[np.float64]:
    """Positions after each step, (steps, W, D)."""
    import emcee

    moves = [
        (emcee.moves.DEMove(), 0.7),
        (emcee.moves.DEMove(gamma0=1.0), 0.1),
        (emcee.moves.StretchMove(), 0.2),
    ]
    sampler = emcee.EnsembleSampler(positions.shape[0], positions.shape[1], density, moves=moves, vectorize=True)
    # without a state emcee copies NumPy's global one; its setter fails silently, hence a state of the type it expects
    random_state = np.random.RandomState(np.random.MT19937(stream)).get_state()
    sampler.run_mcmc(emcee.State(positions, log_prob=log_density, random_state=random_state), steps)
    return np.asarray(sampler.get_chain(), dtype=np.float64)


def ensemble_checks(chain: NDArray[np.float64]) -> dict[str, float]:
    r"""Convergence figures of an ensemble, the worst over the parameters.

    Args:
        chain: (steps, W, D).

    Returns:
        `r_hat`, `ess_bulk`, `ess_tail` (ArviZ), `autocorrelation_time` in steps (emcee), and
        `steps_per_autocorrelation_time`.
    """
    import arviz
    from emcee.autocorr import integrated_time

    by_walker = chain.transpose(2, 1, 0)  # (D, W, steps): ArviZ wants chain, draw
    with np.errstate(invalid="ignore", divide="ignore"):  # a walker that never moved: NaN, which passes no check
        tau = float(np.max(integrated_time(chain, tol=0)))  # tol=0: too short a chain fails below, not by exception
        return {
            "r_hat": float(np.max([arviz.rhat(c, method="rank") for c in by_walker])),
            "ess_bulk": float(np.min([arviz.ess(c, method="bulk") for c in by_walker])),
            "ess_tail": float(np.min([arviz.ess(c, method="tail") for c in by_walker])),
            "autocorrelation_time": tau,
            "steps_per_autocorrelation_time": chain.shape[0] / tau,
        }


def _passed(checks: dict[str, float]) -> bool:
    return (
        checks["r_hat"] <= LARGEST_R_HAT
        and min(checks["ess_bulk"], checks["ess_tail"]) >= LEAST_EFFECTIVE_DRAWS
        and checks["steps_per_autocorrelation_time"] >= STEPS_PER_AUTOCORRELATION_TIME
        and ACCEPTANCE[0] <= checks["acceptance_fraction"] <= ACCEPTANCE[1]
    )


def _check_arguments(start: NDArray[np.float64], steps: int, burn_in: int) -> None:
    if start.ndim != 2:
        raise InputError(f"emcee start: expected shape (W, D), got {start.shape}")
    walkers, dimension = start.shape
    least = max(4, 2 * dimension)
    if walkers < least:
        raise InputError(f"emcee: {dimension} parameters need at least {least} walkers, got {walkers}; raise walkers")
    if steps < 10 or burn_in < 0:
        raise InputError(f"emcee: expected steps >= 10 and burn_in >= 0, got {steps} and {burn_in}")
    if not np.isfinite(start).all():
        raise InputError(f"emcee start: {int((~np.isfinite(start)).sum())} values are not finite")


def _spread_repeats(
    start: NDArray[np.float64], density: CountedDensity, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Starting positions that all differ and all lie inside the support, with their log density.

    Weighted draws of q repeat the draws of large weight. Walkers on top of each other give difference moves of
    length zero and an ensemble of deficient rank, so repeats are moved by a thousandth of the ensemble's width,
    far less than anything that burn-in would notice. Walkers outside the support take another's place.
    """
    log_density = density(start)
    inside = np.flatnonzero(np.isfinite(log_density))
    if len(inside) == 0:
        raise InputError(
            "emcee start: log density not finite at any walker; start from draws inside the prior's support"
        )
    origin = np.where(np.isfinite(log_density), np.arange(len(start)), rng.choice(inside, len(start)))
    positions, log_density = start[origin], log_density[origin]
    scale = positions.std(axis=0)
    scale = np.where(scale > 0, scale, np.maximum(np.abs(positions[0]), 1.0) * 1e-3)
    _, first = np.unique(positions, axis=0, return_index=True)
    repeat = np.setdiff1d(np.arange(len(positions)), first)
    for width in JITTER * 0.5 ** np.arange(20):  # near a bound of the support a smaller step may be needed
        if len(repeat) == 0:
            break
        moved = positions[repeat] + width * scale * rng.standard_normal((len(repeat), positions.shape[1]))
        moved_log_density = density(moved)
        good = np.isfinite(moved_log_density)
        positions[repeat[good]], log_density[repeat[good]] = moved[good], moved_log_density[good]
        repeat = repeat[~good]
    return positions, log_density
