"""The guard: what it measures, and that no lost mode passes it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, Uniform

from pipeline.config import case_from_values
from pipeline.estimators.posterior import new_network
from pipeline.settings import GuardSettings, PhaseSettings
from pipeline.training.data import training_set
from pipeline.training.guard import Guard, criterion_of, gap_beside_ess, guard_of, held_out_figures
from pipeline.training.outcome import PhaseOutcome, Trained
from pipeline.training.phase import Phase
from pipeline.training.schedule import train_schedule
from simulators.priors import IndependentPrior, distribution_from_spec, prior_of, sample
from simulators.protocol import Data, Observable, Parameter

MakeGaussian = Callable[..., Any]
CPU = torch.device("cpu")
NOISE = 0.05


# ------------------------------------------------------------ what it measures


def test_forward_log_q_under_a_narrow_proposal_is_that_of_q_restricted_to_it(make_gaussian: MakeGaussian) -> None:
    r"""theta from U(-0.3, 0.3), posterior N(m, s): $\log N(\theta; m, s) - \log[\Phi(\cdot) - \Phi(\cdot)]$, prior / proposal weighted."""
    case = make_gaussian(dimension=1)
    low, high = torch.tensor(-0.3).double(), torch.tensor(0.3).double()
    proposal = IndependentPrior([Uniform(low, high, validate_args=False)])
    theta = sample(proposal, 250, torch.Generator().manual_seed(0))
    x = case.simulator.simulate(theta, generator=torch.Generator().manual_seed(1))
    held_out = training_set(case.simulator, theta, x, prior=case.prior, proposal=proposal, device=CPU)
    got = held_out_figures(case.network, case.simulator, case.prior, held_out, seed=1, proposal=proposal)
    posterior = case.simulator.posterior(x["x"])
    marginal = Normal(posterior.mean[:, 0], posterior.stddev[0, 0])
    inside = marginal.cdf(high) - marginal.cdf(low)
    weights = torch.softmax(held_out.log_importance, 0)
    expected = (weights * (marginal.log_prob(theta[:, 0]) - inside.log())).sum()
    plain = held_out_figures(case.network, case.simulator, case.prior, held_out, seed=1)
    assert float(inside.mean()) < 0.7
    # a binomial share of 256 draws for each of 250 rows
    error = float(((1 - inside) / inside / 256).sqrt().mean()) / 250**0.5 + 0.002
    assert got["held_out_forward_log_q"] == pytest.approx(float(expected), abs=5 * error)
    assert got["held_out_forward_log_q"] > plain["held_out_forward_log_q"] + 0.3
    assert {k: v for k, v in got.items() if "forward" not in k} == {
        k: v for k, v in plain.items() if "forward" not in k
    }


@pytest.mark.parametrize(
    ("objective", "criterion", "has_likelihood", "expected"),
    [
        ("forward_kl", "auto", True, "held_out_forward_log_q"),
        ("elbo", "auto", True, "held_out_elbo"),
        ("iwelbo", "auto", True, "held_out_ess_fraction"),
        ("wake", "auto", True, "held_out_ess_fraction"),
        ({"elbo": 0.3, "forward_kl": 0.7}, "auto", True, "held_out_forward_log_q"),
        ("elbo", "ess_fraction", True, "held_out_ess_fraction"),
        ("forward_kl", "ess_fraction", False, "held_out_forward_log_q"),
    ],
)
def test_the_criterion_is_that_of_the_leading_objective(
    objective: Any, criterion: Any, has_likelihood: bool, expected: str
) -> None:
    phase = PhaseSettings(objective=objective, steps=1, draws=8)
    assert criterion_of(phase, GuardSettings(criterion=criterion), has_likelihood=has_likelihood) == expected


def test_a_phase_passes_only_if_it_gains_and_loses_no_more_than_the_tolerance() -> None:
    phase, settings = PhaseSettings(objective="elbo", steps=1), GuardSettings(tolerance=0.1)
    start = {"held_out_forward_log_q": 2.0, "held_out_elbo": -5.0}
    guard = guard_of(phase, settings, has_likelihood=True, start=start, best_forward_log_q=2.2)
    for forward, elbo, passes in ((2.2, -4.9, True), (2.11, -4.9, True), (2.09, -1.0, False), (3.0, -5.0, False)):
        assert guard.passes({"held_out_forward_log_q": forward, "held_out_elbo": elbo}) is passes
    assert not guard.passes({"held_out_forward_log_q": math.nan, "held_out_elbo": -1.0})
    more_outside = {"held_out_forward_log_q": 2.2, "held_out_elbo": -1.0, "held_out_refused": 0.2}
    assert not guard.passes(more_outside)  # an ELBO that grew over the edge of the support
    assert guard.passes(more_outside | {"held_out_refused": 0.005})
    first = guard_of(phase, settings, has_likelihood=True, start=None, best_forward_log_q=-math.inf)
    assert first == Guard("held_out_elbo")
    assert first.passes({"held_out_forward_log_q": -90.0, "held_out_elbo": -1e6})


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"held_out_forward_log_q": 1.0}, ("1.000 nats", "at least 2.100", "lost part of the posterior")),
        ({"held_out_refused": 0.2}, ("20.0%", "at most 1.0%", "edge of the support")),
        ({"held_out_elbo": -6.0}, ("elbo is -6.000", "rise above the -5.000")),
    ],
)
def test_a_phase_that_is_turned_back_says_why_with_the_numbers(figures: dict[str, float], words: tuple[str]) -> None:
    start = {"held_out_forward_log_q": 2.0, "held_out_elbo": -5.0}
    guard = guard_of(
        PhaseSettings(objective="elbo", steps=1),
        GuardSettings(tolerance=0.1),
        has_likelihood=True,
        start=start,
        best_forward_log_q=2.2,
    )
    after = {"held_out_forward_log_q": 2.2, "held_out_elbo": -4.0} | figures
    reason = guard.objection(after)
    assert all(word in reason for word in words)
    outcome = PhaseOutcome("elbo", False, guard.criterion, 1, 1e-3, start, after, reason)
    assert f"rolled back: {reason}" in str(outcome)
    assert guard.objection({"held_out_forward_log_q": 2.2, "held_out_elbo": -4.0}) == ""


def test_few_draws_in_an_impossible_place_cost_nats_and_no_effective_draws(make_gaussian: MakeGaussian) -> None:
    r"""q is the posterior, but where $\theta > m + 2.54 s$ (0.55 % of the draws) the likelihood is e^-300 of what it was.

    A gap of 300 x 0.0055 = 1.66 nats, all of it from these, beside an ESS fraction of 0.9945.
    """
    case = make_gaussian(dimension=1)
    theta = torch.randn(250, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = case.simulator.simulate(theta, generator=torch.Generator().manual_seed(1))
    held_out = training_set(case.simulator, theta, x, prior=case.prior, proposal=case.prior, device=CPU)

    class Cut(type(case.simulator)):
        def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
            posterior = self.posterior(x["x"])
            beyond = theta[..., 0] > posterior.mean[:, 0] + 2.54 * posterior.stddev[:, 0]
            return super().log_likelihood(theta, x) - 300.0 * beyond

    figures = held_out_figures(case.network, Cut(dimension=1), case.prior, held_out, seed=1)
    share = 1 - float(Normal(0.0, 1.0).cdf(torch.tensor(2.54)))
    error = (share / (250 * 256)) ** 0.5
    assert figures["held_out_kl_gap"] == pytest.approx(300 * share, abs=5 * 300 * error)
    assert figures["held_out_kl_gap_of_least"] == pytest.approx(figures["held_out_kl_gap"], abs=0.02)
    assert figures["held_out_ess_fraction"] == pytest.approx(1 - share, abs=5 * error)
    sentence = gap_beside_ess(figures)
    assert f"gap of {figures['held_out_kl_gap']:.2f} nats" in sentence
    assert "1% of the draws that weigh least" in sentence
    assert sentence in str(PhaseOutcome("elbo", True, "held_out_elbo", 1, 1e-3, {}, figures))
    assert gap_beside_ess(figures | {"held_out_ess_fraction": 0.1}) == ""


# ------------------------------------------------------------ a mode that the ELBO loses


class Square:
    """x = theta^2 + noise: two modes, +- sqrt(x)."""

    name = "square"
    parameters = (Parameter("theta", distribution_from_spec({"uniform": [-2, 2]})),)
    observables = (Observable("x", (1,)),)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        return {"x": theta.square() + NOISE * noise}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        return Normal(theta[..., 0].square(), NOISE).log_prob(x["x"][:, 0])


def trained_on_square(
    folder: Path, *phases: dict[str, Any], patience: int = 100, only_positive: bool = False
) -> tuple[Any, Trained]:
    """Train on both modes, or on simulations of one; phases that are finished in `folder` are taken from there."""
    simulator: Any = Square()
    settings = {
        "phases": list(phases),
        "flow": {"transforms": 4, "hidden": 24, "blocks": 1, "bins": 8},
        "embedding": {"kind": "mlp", "hidden": 16, "output": 8},
        "check_every": 50,
        "checkpoint_every": 50,
        "average": 0.98,
        "guard": {"patience": patience, "criterion": "elbo" if only_positive else "auto"},
    }
    case = case_from_values({"simulator": {"name": "linear_gaussian"}, "train": settings}, "test")
    prior = prior_of(simulator)
    theta = sample(prior, 4000, torch.Generator().manual_seed(0))
    x = simulator.simulate(theta, generator=torch.Generator().manual_seed(1))
    simulations = training_set(simulator, theta, x, prior=prior, proposal=prior, device=CPU)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = new_network(case, simulator, 1)
    network.standardize(simulations.theta, simulations.inputs)
    training = simulations.rows(slice(400, 4000))
    outcome = train_schedule(
        network,
        case=case,
        phases=case.train.phases,
        simulator=simulator,
        prior=prior,
        training=training.rows((training.theta[:, 0] > 0).nonzero()[:, 0]) if only_positive else training,
        held_out=simulations.rows(slice(0, 400)),
        folder=folder,
        key="key",
    )
    return network, outcome


LEARN = {"objective": "forward_kl", "steps": 100, "batch": 128, "learning_rate": 5e-3}
BOTH = LEARN | {"steps": 150}
LOSE = {"objective": "forward_kl", "steps": 200, "batch": 128, "learning_rate": 1e-2}
"""On simulations of one mode, and asked for the ELBO: it loses the other whatever the rounding. An ELBO phase may or may not.

Of ten seeds, two of them with other instruction sets too: forward log q falls by 3.7 to 4.8 (2 asked for), the ELBO gains
1.4 to 6.8 (0), the ESS fraction ends at 0.63 to 0.80 (0.3); and at no check does the phase pass.
"""


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where phase BOTH is finished."""
    folder = tmp_path_factory.mktemp("learned")
    trained_on_square(folder, BOTH)
    return folder


@pytest.fixture
def folder(learned: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(learned, tmp_path / "checkpoints"))


def test_a_phase_that_loses_a_mode_is_rolled_back_although_its_own_figures_shine(learned: Path, folder: Path) -> None:
    network, trained = trained_on_square(folder, BOTH, LOSE, only_positive=True)
    before, _ = trained_on_square(learned, BOTH)
    first, second = trained.phases
    assert first.kept
    assert not second.kept
    assert second.after["held_out_elbo"] > second.before["held_out_elbo"]  # what it was asked for, it reached
    assert second.after["held_out_ess_fraction"] > 0.3  # and nothing in its weights says what it lost
    assert second.after["held_out_forward_log_q"] < second.before["held_out_forward_log_q"] - 2
    assert "rolled back" in str(second)
    pairs = zip(network.state_dict().values(), before.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_phase_without_hope_ends_early(folder: Path) -> None:
    _, trained = trained_on_square(folder, BOTH, LOSE | {"steps": 2000}, patience=3, only_positive=True)
    assert not trained.phases[1].kept
    assert trained.phases[1].steps < 1000


def test_a_phase_killed_at_its_early_end_does_not_go_on(
    learned: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint and last check fall on the same step; resumed, nothing is left to do."""

    def train(where: Path) -> Trained:
        return trained_on_square(where, BOTH, LOSE | {"steps": 2000}, patience=3, only_positive=True)[1]

    trained = train(folder)
    last = trained.phases[1].steps
    killed_at = Path(shutil.copytree(learned, tmp_path / "killed"))

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.schedule._outcome", killed)
        with pytest.raises(KeyboardInterrupt):
            train(killed_at)
    taken: list[int] = []
    original = Phase.training_step

    def counted(self: Phase, batch: Any, batch_idx: int) -> Any:
        taken.append(self.global_step)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Phase, "training_step", counted)
    resumed = train(killed_at)
    assert taken == []
    assert resumed.phases[1].steps == last
    assert resumed == trained


def test_wake_improves_both_modes_and_is_kept(tmp_path: Path) -> None:
    wake = {"objective": "wake", "steps": 120, "batch": 64, "draws": 16, "learning_rate": 2e-3, "prior_share": 0.25}
    _, trained = trained_on_square(tmp_path, LEARN, wake)
    assert trained.phases[1].kept
    assert trained.phases[1].after["held_out_ess_fraction"] > trained.phases[1].before["held_out_ess_fraction"] + 0.03


@pytest.mark.parametrize("objective", ["elbo", "iwelbo", "wake"])
def test_a_tempered_phase_starts_flat_and_ends_at_the_posterior(objective: str, tmp_path: Path) -> None:
    """From a q that knows nothing, with a hundredth of the likelihood at first."""
    phase = {"objective": objective, "steps": 200, "batch": 64, "draws": 8, "learning_rate": 5e-3, "temper_from": 0.01}
    _, trained = trained_on_square(tmp_path, phase)
    rows = trained.history
    assert rows[-1]["held_out_ess_fraction"] > 0.25
    assert rows[-1]["held_out_elbo"] > rows[0]["held_out_elbo"] + 0.5
