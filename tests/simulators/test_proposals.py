"""Proposals: components of the prior replaced, and mixtures in which parameters go together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, uniform
from torch.distributions import MultivariateNormal

from simulators.linear_gaussian import LinearGaussian
from simulators.priors import IndependentPrior, distribution_from_spec, prior_of, sample, to_device
from simulators.proposals import MixtureProposal, proposal_of, proposed_parameters
from simulators.protocol import Parameter

ALIASES: dict[str, Any] = {
    "mixture": [
        {"weight": 3, "theta_1": {"uniform": [0, 1]}, "theta_2": {"normal": [5, 0.1]}},
        {"weight": 1, "theta_1": {"uniform": [0.5, 3]}},
    ],
    "theta_3": {"normal": [0, 2]},
}


class Joint:
    name = "joint"
    parameters = (Parameter("a"), Parameter("b"))
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))


class Bounded:
    name = "bounded"
    parameters = (Parameter("share", distribution_from_spec({"uniform": [0, 0.5]})),)


class Weighed:
    """Parameters that are called as the keys of a mixture are."""

    name = "weighed"
    parameters = tuple(Parameter(n, distribution_from_spec({"uniform": [0, 1]})) for n in ("weight", "mixture"))


def test_proposal_replaces_single_components() -> None:
    simulator = LinearGaussian(dimension=2)
    assert isinstance(proposal_of(simulator, {}), IndependentPrior)
    proposal = proposal_of(simulator, {"theta_2": {"normal": [3, 0.1]}})
    assert isinstance(proposal, IndependentPrior)
    assert [float(m) for m in proposal.mean] == [0.0, 3.0]
    assert float(prior_of(simulator).mean[1]) == 0.0


def test_proposal_refuses_unknown_names_joint_priors_and_what_leaves_the_support() -> None:
    simulator = LinearGaussian(dimension=2)
    with pytest.raises(ValueError, match=r"no parameter 'theta_3'; parameters: theta_1, theta_2"):
        proposal_of(simulator, {"theta_3": {"normal": [0, 1]}})
    with pytest.raises(ValueError, match=r"joint prior"):
        proposal_of(Joint(), {"a": {"normal": [0, 1]}})  # pyright: ignore[reportArgumentType]

    with pytest.raises(ValueError, match=r"simulate.proposal.share: reaches outside the support"):
        proposal_of(Bounded(), {"share": {"beta": [2, 2]}})  # pyright: ignore[reportArgumentType]
    assert proposal_of(Bounded(), {"share": {"uniform": [0.1, 0.2]}})  # pyright: ignore[reportArgumentType]


def test_a_mixture_has_the_density_of_its_components_with_their_parameters_together() -> None:
    proposal = proposal_of(LinearGaussian(dimension=3), ALIASES)
    theta = torch.tensor([[0.7, 5.1, 1.0], [2.0, 5.1, 1.0], [0.2, 5.0, -3.0], [-1.0, 5.0, 0.0]], dtype=torch.float64)
    t = theta.numpy()
    first = uniform.pdf(t[:, 0], 0, 1) * norm.pdf(t[:, 1], 5, 0.1)
    second = uniform.pdf(t[:, 0], 0.5, 2.5) * norm.pdf(t[:, 1])
    with np.errstate(divide="ignore"):
        expected = np.log((0.75 * first + 0.25 * second) * norm.pdf(t[:, 2], 0, 2))
    np.testing.assert_allclose(proposal.log_prob(theta).numpy(), expected, rtol=1e-12)
    assert proposal.log_prob(theta.float()).dtype == torch.float32
    assert proposal.log_prob(theta[:, None]).shape == (4, 1)


def test_draws_of_a_mixture_follow_it_and_the_generator_alone() -> None:
    proposal = to_device(proposal_of(LinearGaussian(dimension=3), ALIASES), "cpu")
    assert isinstance(proposal, MixtureProposal)
    draws = [sample(proposal, 4000, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].shape == (4000, 3)
    assert draws[0].dtype == torch.float64
    assert bool(proposal.log_prob(draws[0]).isfinite().all())
    of_first = draws[0][:, 1] > 4.4  # 6 sigma from the first component, 4.4 from the second
    assert float(of_first.double().mean()) == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 4000))
    assert kstest(draws[0][of_first, 0].numpy(), uniform(0, 1).cdf).pvalue > 1e-4
    assert kstest(draws[0][~of_first, 0].numpy(), uniform(0.5, 2.5).cdf).pvalue > 1e-4
    error = 5 * draws[0].std(0) / math.sqrt(4000)
    assert bool(((draws[0].mean(0) - proposal.mean).abs() < error).all())
    assert proposal.sample(torch.Size([2, 5])).shape == (2, 5, 3)


def test_an_old_proposal_draws_the_same_numbers_as_before() -> None:
    """One marginal after the other from one generator, as commit 194e4d8 did."""
    proposal = proposal_of(LinearGaussian(dimension=2), {"theta_2": {"uniform": [3, 4]}})
    draws = sample(proposal, 3, torch.Generator().manual_seed(5))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5))))
        first = torch.normal(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
        second = 3 + torch.rand(3, dtype=torch.float64)
    assert torch.equal(draws, torch.stack([first, second], -1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"mixture": []}, r"simulate.proposal.mixture: expected at least one component"),
        ({"mixture": [3]}, r"simulate.proposal.mixture 1: expected a mapping such as .* got 3"),
        ({"mixture": [{"weight": 0}]}, r"mixture 1: weight: expected a positive number, got 0"),
        ({"mixture": [{"weight": math.inf}]}, r"mixture 1: weight: expected a positive number, got inf"),
        ({"mixture": [{}, {"other": {"uniform": [0, 1]}}]}, r"mixture 2: no parameter 'other'; parameters: share"),
        ({"mixture": [{"share": {"uniform": [0.4, 0.6]}}]}, r"mixture 1.share: reaches outside the support"),
        (
            {"mixture": [{"share": {"uniform": [0.1, 0.2]}}], "share": {"uniform": [0, 0.3]}},
            r"mixture 1: share stands beside the mixture too",
        ),
    ],
)
def test_a_mixture_that_is_none_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        proposal_of(Bounded(), spec)  # pyright: ignore[reportArgumentType]


def test_parameters_may_be_called_weight_and_mixture() -> None:
    half = {"uniform": [0, 0.5]}
    plain = proposal_of(Weighed(), {"weight": half, "mixture": half})  # pyright: ignore[reportArgumentType]
    assert isinstance(plain, IndependentPrior)
    mixed = proposal_of(Weighed(), {"mixture": [{"weight": half}, {}]})  # pyright: ignore[reportArgumentType]
    inside, beyond = torch.tensor([0.2, 0.9], dtype=torch.float64), torch.tensor([0.7, 0.9], dtype=torch.float64)
    assert float(mixed.log_prob(inside)) == pytest.approx(math.log(0.5 * 2 + 0.5))
    assert float(mixed.log_prob(beyond)) == pytest.approx(math.log(0.5))
    assert proposed_parameters({"weight": half, "mixture": half}) == ["weight", "mixture"]
    assert proposed_parameters({"mixture": [{"weight": half}, {}]}) == ["weight"]
    assert proposed_parameters(ALIASES) == ["theta_1", "theta_2", "theta_3"]
