"""From where theta is drawn for training: the prior with some components replaced, or a mixture of such.

A specification is a mapping from parameters to distributions, as in YAML, `{per1: {uniform: [4.75, 4.77]}}`. What it does
not name stays as the prior has it. Where parameters belong together, as the period and the conjunction of one alias do, it
has a list under `mixture`, of such mappings with a `weight` each; what stands beside the list holds for all of them.

    mixture:
      - {weight: 0.6, per1: {uniform: [4.75, 4.77]}, tc1: {uniform: [0.1, 0.3]}}
      - {weight: 0.4, per1: {uniform: [4.78, 4.80]}, tc1: {uniform: [1.4, 1.6]}}
    logk1: {uniform: [1, 2]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from simulators.priors import IndependentPrior, PriorSpec, distribution_from_spec, in_support, prior_of
from simulators.protocol import Simulator

MIXTURE, WEIGHT = "mixture", "weight"
WHAT = "simulate.proposal"
ProposalSpec = Mapping[str, Any]


class MixtureProposal(Distribution):
    r"""Mixture of distributions of theta.

    $\log r(\theta) = \log \sum_k w_k r_k(\theta)$, -inf where no component reaches.

    Args:
        components: K distributions with event shape (D,).
        weights: w, positive, scaled so that they add up to one.
        support: where theta may lie, that of the prior.
    """

    arg_constraints = {}  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(
        self, components: Sequence[Distribution], weights: Sequence[float], support: constraints.Constraint
    ) -> None:
        self.components = tuple(components)
        weight = torch.tensor(weights, dtype=torch.float64)
        self.weight = weight / weight.sum()
        self._support = support
        super().__init__(torch.Size(), self.components[0].event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self._support

    def log_prob(self, value: Tensor) -> Tensor:
        """log r(theta), (..., D) -> (...)."""
        parts = [w.log() + c.log_prob(value) for w, c in zip(self.weight, self.components, strict=True)]
        return torch.logsumexp(torch.stack(parts), dim=0).to(value.dtype)

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:
        """Draws, (*sample_shape, D): a component for each, then theta from it."""
        count = math.prod(sample_shape)
        chosen = torch.multinomial(self.weight, count, replacement=True)
        theta = torch.empty(count, *self.event_shape, dtype=torch.float64, device=chosen.device)
        for k, component in enumerate(self.components):
            of_this = chosen == k
            theta[of_this] = component.sample(torch.Size([int(of_this.sum())])).double()
        return theta.view(*sample_shape, *self.event_shape)

    @property
    def mean(self) -> Tensor:
        return torch.stack([w * c.mean for w, c in zip(self.weight, self.components, strict=True)]).sum(0)


def proposal_of(simulator: Simulator, specs: ProposalSpec) -> Distribution:
    """The distribution from which theta is drawn for training: the prior, some components replaced; or a mixture.

    Raises:
        ValueError: unknown parameter, joint prior, a proposal that reaches outside the prior's support, or no such mixture.
    """
    prior = prior_of(simulator)
    if not specs:
        return prior
    if not isinstance(prior, IndependentPrior):
        raise ValueError(f"simulator {simulator.name!r} has a joint prior: {WHAT} cannot replace single components")
    names = [p.name for p in simulator.parameters]
    if not _is_mixture(specs):
        return _box(prior, names, specs, WHAT)
    shared = {name: spec for name, spec in specs.items() if name != MIXTURE}
    if not specs[MIXTURE]:
        raise ValueError(f"{WHAT}.{MIXTURE}: expected at least one component, got an empty list")
    weights, components = [], []
    for k, entry in enumerate(specs[MIXTURE], 1):
        what = f"{WHAT}.{MIXTURE} {k}"
        weight, own = _entry(entry, what)
        twice = [name for name in own if name in shared]
        if twice:
            raise ValueError(f"{what}: {twice[0]} stands beside the mixture too; give it in one of the two places")
        weights.append(weight)
        components.append(_box(prior, names, {**shared, **own}, what))
    return MixtureProposal(components, weights, prior.support)


def proposed_parameters(specs: ProposalSpec) -> list[str]:
    """Parameters that a proposal draws from something other than the prior, in any of its components."""
    entries = specs[MIXTURE] if _is_mixture(specs) else []
    named = [n for entry in entries for n, spec in entry.items() if n != WEIGHT or isinstance(spec, Mapping)]
    return list(dict.fromkeys([*named, *(n for n in specs if n != MIXTURE or not entries)]))


def _is_mixture(specs: ProposalSpec) -> bool:
    """A list: a parameter that is itself called `mixture` has a mapping."""
    return isinstance(specs.get(MIXTURE), (list, tuple))


def _entry(entry: Any, what: str) -> tuple[float, ProposalSpec]:
    """Weight and specification of one component; a parameter that is itself called `weight` has a mapping, and then it is 1."""
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"{what}: expected a mapping such as {{weight: 0.5, per1: {{uniform: [4.7, 4.8]}}}}, got {entry!r}"
        )
    given = entry.get(WEIGHT, 1.0)
    if isinstance(given, Mapping):
        return 1.0, entry
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not (given > 0 and math.isfinite(given)):
        raise ValueError(f"{what}: weight: expected a positive number, got {given!r}")
    return float(given), {name: spec for name, spec in entry.items() if name != WEIGHT}


def _box(prior: IndependentPrior, names: Sequence[str], specs: Mapping[str, PriorSpec], what: str) -> IndependentPrior:
    """The prior with the components that `specs` names replaced."""
    unknown = [n for n in specs if n not in names]
    if unknown:
        raise ValueError(f"{what}: no parameter {unknown[0]!r}; parameters: {', '.join(names)}")
    marginals = list(prior.marginals)
    for name, spec in specs.items():
        index = names.index(name)
        proposal = distribution_from_spec(spec, f"{what}.{name}")
        probe = proposal.icdf(torch.tensor([1e-9, 0.5, 1 - 1e-9], dtype=torch.float64))
        if not bool(in_support(marginals[index], probe).all()):
            raise ValueError(f"{what}.{name}: reaches outside the support of the prior")
        marginals[index] = proposal
    return IndependentPrior(marginals)
