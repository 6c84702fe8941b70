"""Delivered posteriors in sbi's functions: exact from a wrong q, for one observable and for several."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sbi.diagnostics import LC2ST, check_tarp, run_sbc, run_tarp
from sbi.diagnostics.sbc import check_uniformity_frequentist, get_nltp
from torch import Tensor

from pipeline.config import case_from_values
from pipeline.diagnostics.calibration import calibrate
from pipeline.errors import InputError
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.weighted_posterior import WeightedPosterior
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import IndependentPrior, distribution_from_spec
from simulators.protocol import Data, Observable

MakeGaussian = Callable[..., Any]
CASE = case_from_values({"simulator": {"name": "linear_gaussian", "options": {"dimension": 2}}}, "test")
QUIET: dict[str, Any] = {"show_progress_bar": False}


def posterior_of(case: Any) -> Posterior:
    return Posterior(CASE, case.simulator, case.network)


def simulated(simulator: Any, count: int, seed: int = 4) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    theta = torch.randn(count, 2, dtype=torch.float64, generator=stream)
    x = simulator.simulate(theta, generator=stream)
    return theta, torch.cat([x[o.name].flatten(1) for o in simulator.observables], 1)


class TwoObservables:
    """The same model, its data in two arrays."""

    name = "two_observables"
    observables = (Observable("head", (2,)), Observable("tail", (3, 1)))

    def __init__(self, whole: Any) -> None:
        self.whole, self.parameters = whole, whole.parameters

    def _joined(self, x: Any) -> Data:
        return {"x": torch.cat([x["head"], x["tail"].flatten(1)], 1)}

    def simulate(self, theta: Tensor, context: Any = None, *, generator: torch.Generator) -> Data:
        x = self.whole.simulate(theta, generator=generator)["x"]
        return {"head": x[:, :2], "tail": x[:, 2:, None]}

    def log_likelihood(self, theta: Tensor, x: Any) -> Tensor:
        return self.whole.log_likelihood(theta, self._joined(x))

    def pilot(self, x: Any) -> tuple[Tensor, Tensor]:
        return self.whole.pilot(self._joined(x))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("batched", [True, False])
def test_sbis_tests_pass_the_delivered_posterior_and_fail_its_q(
    make_gaussian: MakeGaussian, several: bool, batched: bool
) -> None:
    """q is displaced by 0.8 and 1.3 times too wide: raw ranks give it away, weighted ones are uniform."""
    case = make_gaussian(dimension=2, shift=0.8, scale=1.3)
    simulator = TwoObservables(case.simulator) if several else case.simulator
    q = Posterior(CASE, simulator, case.network)
    theta, x = simulated(simulator, 200)
    given = {"num_posterior_samples": 100, "use_batched_sampling": batched, **QUIET}
    torch.manual_seed(1)
    p = []
    for posterior in (q, q.weighted(proposals=1_000)):
        ranks, draws = run_sbc(theta, x, posterior, **given)  # pyright: ignore[reportArgumentType]
        assert draws.shape == (200, 2)
        p.append(float(check_uniformity_frequentist(ranks, 100).min()))
    assert p[0] < 1e-8
    assert p[1] > 0.001
    coverage, alpha = run_tarp(theta, x, q.weighted(proposals=1_000), **given)  # pyright: ignore[reportArgumentType]
    # the area of an exact posterior scatters with 0.25 / sqrt(200) at most: 4 of them
    assert abs(check_tarp(coverage, alpha)[0]) < 0.07


def test_density_is_the_posterior(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2, shift=0.5, scale=1.2)
    delivered = posterior_of(case).weighted(proposals=4_000)
    theta, x = simulated(case.simulator, 3)
    torch.manual_seed(0)
    draws = delivered.sample_batched((50,), x)
    exact = case.simulator.posterior(x).log_prob(draws)
    torch.testing.assert_close(delivered.log_prob(draws, x), exact, rtol=0, atol=0.05)  # error of log_evidence: 0.01
    one = delivered.log_prob(draws[:, 0], x[:1])
    assert one.shape == (50,)
    torch.testing.assert_close(one, exact[:, 0], rtol=0, atol=0.05)
    torch.manual_seed(1)
    assert torch.equal(delivered.log_prob(draws[:, 0], x[:1]), one)  # whatever the global generator
    assert torch.equal(posterior_of(case).weighted(proposals=4_000).log_prob(draws[:, 0], x[:1]), one)
    evidence = delivered.potential(theta, x) - delivered.log_prob(theta, x)
    torch.testing.assert_close(evidence, case.simulator.log_evidence(x), rtol=0, atol=0.05)
    assert delivered.sample((7,), x[0]).shape == (7, 2)
    with pytest.raises(ValueError, match=r"sample takes one observation, got 3"):
        delivered.sample((7,), x)


def test_other_functions_of_sbi_take_it(make_gaussian: MakeGaussian) -> None:
    """Expected coverage with the density as the ranking function, L-C2ST, and log q of the truth."""
    case = make_gaussian(dimension=2, shift=0.5)
    q = posterior_of(case)
    delivered = q.weighted(proposals=1_000)
    theta, x = simulated(case.simulator, 150)
    torch.manual_seed(2)
    given: dict[str, Any] = {"num_posterior_samples": 100, "reduce_fns": delivered.potential, **QUIET}
    ranks, _ = run_sbc(theta, x, delivered, **given)  # pyright: ignore[reportArgumentType]
    assert ranks.shape == (150, 1)
    assert float(check_uniformity_frequentist(ranks, 100)) > 0.001
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Note that log probs of the true parameters")
        found = get_nltp(theta, x, q)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found, -q.log_prob(theta, x).float(), rtol=0, atol=1e-4)
    test = LC2ST(theta, x, delivered.sample_batched((1,), x)[0], num_trials_null=2)
    test.train_on_observed_data(verbosity=0).train_under_null_hypothesis(verbosity=0)
    assert 0 <= test.p_value(theta_o=delivered.sample((50,), x[0]), x_o=x[:1]) <= 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # sbi's, of tensors in numpy 2
def test_pairplot_takes_its_draws(make_gaussian: MakeGaussian) -> None:
    pytest.importorskip("six", reason="sbi.analysis imports six, which sbi does not declare")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sbi.analysis import pairplot

    case = make_gaussian(dimension=2)
    axes: Any
    _, axes = pairplot(posterior_of(case).weighted().sample((100,), case.x["x"][:1]))
    assert np.shape(axes) == (2, 2)
    plt.close("all")


def test_another_prior_is_the_one_of_the_tested_posterior(make_gaussian: MakeGaussian) -> None:
    """theta from N(1.5, 0.2): q is of the prior N(0, 1), the ranks are uniform under the proposal's posterior alone."""
    case = make_gaussian(dimension=2, scale=1.1)
    simulator, q = case.simulator, posterior_of(case)
    narrow = IndependentPrior([distribution_from_spec({"normal": [1.5, 0.2]})] * 2)
    stream = torch.Generator().manual_seed(3)
    theta = 1.5 + 0.2 * torch.randn(200, 2, dtype=torch.float64, generator=stream)
    x = simulator.simulate(theta, generator=stream)["x"]
    p = []
    torch.manual_seed(4)
    for prior in (None, narrow):
        ranks, _ = run_sbc(theta, x, q.weighted(proposals=2_000, prior=prior), num_posterior_samples=100, **QUIET)  # pyright: ignore[reportArgumentType]
        p.append(float(check_uniformity_frequentist(ranks, 100).min()))
    assert p[0] < 1e-4
    assert p[1] > 0.001


def test_few_effective_draws_get_more_and_are_told(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2, shift=0.3, scale=1.2)
    _, x = simulated(case.simulator, 4)
    q = posterior_of(case)
    once, more = (
        q.weighted(proposals=300, least_ess=least).deliver(20, x, generator=torch.Generator().manual_seed(0))
        for least in (1, 290)
    )
    assert bool((once.ess < 290).all())
    assert bool((more.ess > 3 * once.ess).all())  # five times as many draws
    assert more.theta.shape == (20, 4, 2)
    torch.testing.assert_close(more.log_evidence, case.simulator.log_evidence(x), rtol=0, atol=0.15)
    with pytest.warns(UserWarning, match=r"4 of 4 observations have fewer than 2000 effective draws"):
        q.weighted(proposals=300, least_ess=2_000).sample_batched((20,), x)


def test_a_posterior_that_reaches_further_than_q_keeps_its_tails(make_gaussian: MakeGaussian) -> None:
    """q 0.6 times as wide as the tested posterior: weighted draws of q alone end where q does."""
    case = make_gaussian(dimension=2, scale=0.6)
    q = posterior_of(case)
    theta, x = simulated(case.simulator, 1_000)
    p = []
    for prior in (None, q.prior):
        stream = torch.Generator().manual_seed(3)
        found = q.weighted(proposals=1_000, prior=prior).deliver(99, x, generator=stream)
        tested = found.ess >= 100
        assert tested.double().mean() > 0.9
        p.append(calibrate(theta[tested], found.theta[:, tested], seed=1).outside_p_value)
    assert p[0].max() < 1e-4
    assert p[1].min() > 0.001


def test_no_usable_weight_is_an_error(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2)
    nowhere = IndependentPrior([distribution_from_spec({"uniform": [50, 51]})] * 2)
    delivered = posterior_of(case).weighted(proposals=200, prior=nowhere)
    with pytest.raises(InputError, match=r"4 of 4 observations, the first 0, have no draw of q with a usable weight"):
        delivered.sample_batched((20,), case.x["x"])
    assert delivered.deliver(20, case.x).ess.tolist() == [0.0] * 4


def test_a_likelihood_is_needed(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2)

    class Implicit:
        name, parameters, observables = "implicit", case.simulator.parameters, case.simulator.observables
        simulate = LinearGaussian.simulate

    with pytest.raises(InputError, match=r"simulator 'implicit' has no log_likelihood"):
        WeightedPosterior(Posterior(CASE, Implicit(), case.network))  # pyright: ignore[reportArgumentType]
