r"""The posterior as it is delivered: draws of q, resampled by importance weights, where sbi's functions take it.

theta_k ~ q(theta given x),   log_weight_k = log_joint_k - log_q_k,   k = 1 .. K
draws: L of the K, systematically, in proportion to their weights
log p(theta given x) = log_joint - log_evidence
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.errors import InputError
from pipeline.estimators.importance import ess_fraction, log_evidence, systematic_resample
from pipeline.estimators.posterior import Posterior, density_points
from pipeline.estimators.proposal import Amortized, weigh
from simulators.priors import to_device
from simulators.protocol import Data, has_likelihood, log_likelihood

HELD = 262_144
"""Weighted draws held at once, over the observations of a block."""
MORE_DRAWS = 5
"""Times more draws where too few are effective."""


@dataclass(frozen=True)
class Delivered:
    """Draws of N observations, with what is to be known of them.

    Attributes:
        theta: equally weighted draws, (L, N, D).
        ess: effective number of the weighted draws behind them, (N,).
        log_evidence: nats, (N,); of the prior that was asked for.
        repeated_fraction: share of draws that repeat another one, (N,).
    """

    theta: Tensor
    ess: Tensor
    log_evidence: Tensor
    repeated_fraction: Tensor


class WeightedPosterior:
    """The delivered posterior of a trained q, amortized over x, accepted by sbi's `run_sbc` and `run_tarp`.

    No refinement and no MCMC: the rungs `exact` and `corrected` of the ladder. Draws come from torch's global
    generator unless one is given.

    Args:
        posterior: q, with its simulator and prior.
        proposals: K, weighted draws for each observation; default: ten times the draws asked for.
        least_ess: an observation with fewer effective draws gets five times more of them; where that is not
            enough either, `sample` and `sample_batched` warn, and `deliver` says which.
        prior: in place of the simulator's: where theta was drawn from a proposal, ranks are uniform under the
            posterior that has the proposal as its prior.

    Raises:
        InputError: the simulator has no likelihood.
    """

    def __init__(
        self,
        posterior: Posterior,
        *,
        proposals: int | None = None,
        least_ess: float = 100.0,
        prior: Distribution | None = None,
    ) -> None:
        if not has_likelihood(posterior.simulator):
            raise InputError(f"simulator {posterior.simulator.name!r} has no log_likelihood, which weights need")
        self.posterior = posterior
        self.proposals, self.least_ess = proposals, least_ess
        self.prior = posterior.prior if prior is None else to_device(prior, posterior.device)
        self._known_evidence: tuple[Data, Tensor] | None = None

    def deliver(
        self, draws: int, x: Mapping[str, Tensor] | Tensor, *, generator: torch.Generator | None = None
    ) -> Delivered:
        """L draws for each of N observations.

        Raises:
            InputError: an observation has no draw of q with a usable weight.
        """
        data = self.posterior.data(x)
        if generator is None:
            generator = torch.Generator(self.posterior.device).manual_seed(int(torch.randint(2**62, ())))
        count = self.proposals or 10 * draws
        found = self._in_blocks(data, draws, count, generator)
        poor = (found.ess < self.least_ess).nonzero()[:, 0]
        if len(poor):
            again = self._in_blocks({k: v[poor] for k, v in data.items()}, draws, MORE_DRAWS * count, generator)
            found.theta[:, poor] = again.theta
            for name in ("ess", "log_evidence", "repeated_fraction"):
                getattr(found, name)[poor] = getattr(again, name)
        lost = (found.ess == 0).nonzero()[:, 0].tolist()
        if lost:
            raise InputError(
                f"weighted posterior: {len(lost)} of {len(found.ess)} observations, the first {lost[0]}, have no draw of "
                "q with a usable weight; leave them out, or train q where they lie"
            )
        return found

    def _in_blocks(self, data: Data, draws: int, proposals: int, generator: torch.Generator) -> Delivered:
        rows = len(next(iter(data.values())))
        step = max(1, HELD // proposals)
        parts = [
            self._block({k: v[n : n + step] for k, v in data.items()}, draws, proposals, generator)
            for n in range(0, rows, step)
        ]
        return Delivered(
            torch.cat([p.theta for p in parts], 1),
            torch.cat([p.ess for p in parts]),
            torch.cat([p.log_evidence for p in parts]),
            torch.cat([p.repeated_fraction for p in parts]),
        )

    def _block(self, data: Data, draws: int, proposals: int, generator: torch.Generator) -> Delivered:
        theta, log_weight = self._weighted(data, proposals, generator)
        index, repeated = systematic_resample(log_weight, draws, generator=generator)
        theta = theta.gather(0, index[..., None].expand(-1, -1, theta.shape[-1]))
        return Delivered(theta, ess_fraction(log_weight) * proposals, log_evidence(log_weight), repeated)

    def _weighted(self, data: Data, proposals: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """theta (K, N, D) of q and log_weight (K, N)."""
        q = Amortized(self.posterior.network, self.posterior.condition(data))
        found = weigh(q, self.posterior.simulator, self.prior, data, draws=proposals, generator=generator)
        return found.theta, found.log_weight

    def sample_batched(
        self, sample_shape: tuple[int, ...], x: Mapping[str, Tensor] | Tensor, *, show_progress_bars: bool = False
    ) -> Tensor:
        """Delivered draws, (*sample_shape, N, D)."""
        del show_progress_bars  # sbi passes it
        found = self.deliver(torch.Size(sample_shape).numel(), x)
        few = int((found.ess < self.least_ess).sum())
        if few:
            warnings.warn(
                f"weighted posterior: {few} of {len(found.ess)} observations have fewer than {self.least_ess:g} effective "
                "draws; `deliver` says which",
                stacklevel=2,
            )
        return found.theta.reshape(*sample_shape, *found.theta.shape[1:])

    def sample(
        self, sample_shape: tuple[int, ...], x: Mapping[str, Tensor] | Tensor, *, show_progress_bars: bool = False
    ) -> Tensor:
        """Delivered draws for ONE observation, (*sample_shape, D), as sbi has it."""
        theta = self.sample_batched(sample_shape, x, show_progress_bars=show_progress_bars)
        if theta.shape[-2] != 1:
            raise ValueError(f"sample takes one observation, got {theta.shape[-2]}; use sample_batched")
        return theta[..., 0, :]

    @torch.no_grad()
    def potential(self, theta: Tensor, x: Mapping[str, Tensor] | Tensor) -> Tensor:
        """log_joint, in the shapes of `log_prob`; -inf outside the prior."""
        data = self.posterior.data(x)
        points, single = density_points(theta.to(self.posterior.device).double(), len(next(iter(data.values()))))
        log_prior = self.prior.log_prob(points)
        log_joint = log_likelihood(self.posterior.simulator, points, data) + log_prior
        log_joint = torch.where(log_prior > -torch.inf, log_joint, -torch.inf)
        return log_joint[:, 0] if single else log_joint

    def log_prob(self, theta: Tensor, x: Mapping[str, Tensor] | Tensor) -> Tensor:
        """log_joint - log_evidence: theta (..., N, D) with N observations gives (..., N); -inf outside the prior.

        With one observation, theta may be (B, D) or (D,) and gives (B,) or (1,), as sbi has it. The evidence of an
        x does not depend on the state of any generator: sbi compares values of two calls.
        """
        data = self.posterior.data(x)
        return self.potential(theta, data) - self._log_evidence(data)

    @torch.no_grad()
    def _log_evidence(self, data: Data) -> Tensor:
        """(N,), from the same draws at every call; the last x is remembered, since sbi asks twice for each."""
        known = self._known_evidence
        if known is not None and all(torch.equal(known[0][k], v) for k, v in data.items()):
            return known[1]
        generator = torch.Generator(self.posterior.device).manual_seed(0)
        count = self.proposals or 10_000
        rows = len(next(iter(data.values())))
        step = max(1, HELD // count)
        parts = [{k: v[n : n + step] for k, v in data.items()} for n in range(0, rows, step)]
        found = torch.cat([log_evidence(self._weighted(part, count, generator)[1]) for part in parts])
        self._known_evidence = ({k: v.clone() for k, v in data.items()}, found)
        return found
