r"""The posterior as it is delivered: draws of q, resampled by importance weights, where sbi's functions take it.

theta_k ~ q(theta given x),   log_weight_k = log_joint_k - log_q_k,   k = 1 .. K
draws: L of the K, systematically, in proportion to their weights
log p(theta given x) = log_joint - log_evidence
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.errors import InputError
from pipeline.estimators.importance import ess_fraction, log_evidence, pareto_k, systematic_resample
from pipeline.estimators.posterior import Posterior, density_points
from pipeline.estimators.proposal import Amortized, Mixture, Proposal, weigh
from simulators.priors import to_device
from simulators.protocol import Data, has_likelihood, log_likelihood

HELD = 262_144
"""Weighted draws held at once, over the observations of a block."""
MORE_DRAWS = 5
"""Times more draws where too few are effective."""
WIDE_SHARE, WIDE_SCALE = 0.3, 2.0
"""Share of draws from q widened so many times, where another prior than q's is asked for: its posterior may reach further
than q. K2-24 under its proposal: 27 of 948 true jitters above all draws without them, 6 of 988 with them, 4 expected."""


@dataclass(frozen=True)
class Delivered:
    """Draws of N observations, with what is to be known of them.

    Attributes:
        theta: equally weighted draws, (L, N, D).
        ess: effective number of the weighted draws behind them, (N,).
        ess_fraction: ess over the number of those draws, (N,).
        pareto_k: of their weights, (N,).
        log_evidence: nats, (N,); of the prior that was asked for.
        repeated_fraction: share of draws that repeat another one, (N,).
    """

    theta: Tensor
    ess: Tensor
    ess_fraction: Tensor
    pareto_k: Tensor
    log_evidence: Tensor
    repeated_fraction: Tensor


NUMBERS = tuple(f.name for f in fields(Delivered) if f.name != "theta")


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
            posterior that has the proposal as its prior. Draws then come in part from a wider q.

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
        self._same_prior = prior is None
        self._known_evidence: tuple[Data, Tensor] | None = None

    def deliver(
        self, draws: int, x: Mapping[str, Tensor] | Tensor, *, generator: torch.Generator | None = None
    ) -> Delivered:
        """L draws for each of N observations; ess is 0 where no draw has a usable weight, and the draws say nothing."""
        data = self.posterior.data(x)
        if generator is None:
            generator = torch.Generator(self.posterior.device).manual_seed(int(torch.randint(2**62, ())))
        count = self.proposals or 10 * draws
        found = self._in_blocks(data, draws, count, generator)
        poor = (found.ess < self.least_ess).nonzero()[:, 0]
        if len(poor):
            again = self._in_blocks({k: v[poor] for k, v in data.items()}, draws, MORE_DRAWS * count, generator)
            found.theta[:, poor] = again.theta
            for name in NUMBERS:
                getattr(found, name)[poor] = getattr(again, name)
        return found

    def _in_blocks(self, data: Data, draws: int, proposals: int, generator: torch.Generator) -> Delivered:
        rows = len(next(iter(data.values())))
        step = max(1, HELD // proposals)
        parts = [
            self._block({k: v[n : n + step] for k, v in data.items()}, draws, proposals, generator)
            for n in range(0, rows, step)
        ]
        numbers = {name: torch.cat([getattr(p, name) for p in parts]) for name in NUMBERS}
        return Delivered(torch.cat([p.theta for p in parts], 1), **numbers)

    def _block(self, data: Data, draws: int, proposals: int, generator: torch.Generator) -> Delivered:
        theta, log_weight = self._weighted(data, proposals, generator)
        index, repeated = systematic_resample(log_weight, draws, generator=generator)
        theta = theta.gather(0, index[..., None].expand(-1, -1, theta.shape[-1]))
        share = ess_fraction(log_weight)
        return Delivered(theta, share * proposals, share, pareto_k(log_weight), log_evidence(log_weight), repeated)

    def _weighted(self, data: Data, proposals: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """theta (K, N, D) and log_weight (K, N)."""
        network, condition = self.posterior.network, self.posterior.condition(data)
        q: Proposal = Amortized(network, condition)
        if not self._same_prior:
            q = Mixture([q, Amortized(network, condition, WIDE_SCALE)], [1 - WIDE_SHARE, WIDE_SHARE])
        found = weigh(q, self.posterior.simulator, self.prior, data, draws=proposals, generator=generator)
        return found.theta, found.log_weight

    def sample_batched(
        self, sample_shape: tuple[int, ...], x: Mapping[str, Tensor] | Tensor, *, show_progress_bars: bool = False
    ) -> Tensor:
        """Delivered draws, (*sample_shape, N, D).

        Raises:
            InputError: an observation has no draw with a usable weight.
        """
        del show_progress_bars  # sbi passes it
        found = self.deliver(torch.Size(sample_shape).numel(), x)
        lost = (found.ess == 0).nonzero()[:, 0].tolist()
        if lost:
            raise InputError(
                f"weighted posterior: {len(lost)} of {len(found.ess)} observations, the first {lost[0]}, have no draw of "
                "q with a usable weight; leave them out, or train q where they lie"
            )
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
