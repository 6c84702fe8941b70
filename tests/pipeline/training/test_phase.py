"""One phase: its loss is the objective's, its average follows, and held-out figures are those of closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from pipeline.objectives.elbo import elbo
from pipeline.objectives.forward_kl import forward_kl
from pipeline.rng import generator
from pipeline.settings import PhaseSettings, TrainSettings
from pipeline.training.data import TrainingSet, training_set
from pipeline.training.guard import OBSERVATIONS, Guard, held_out_figures
from pipeline.training.phase import Phase
from simulators.priors import IndependentPrior

MakeGaussian = Callable[..., Any]
ROWS = 300


def simulations(case: Any, *, proposal_scale: float = 1.0, rows: int = ROWS) -> TrainingSet:
    """Pairs (theta, x) of the linear Gaussian model, theta from N(0, proposal_scale)."""
    stream = torch.Generator().manual_seed(2)
    shape = (rows, case.simulator.dimension)
    theta = proposal_scale * torch.randn(shape, generator=stream, dtype=torch.float64)
    x = case.simulator.simulate(theta, generator=stream)
    scale = torch.tensor(proposal_scale, dtype=torch.float64)
    proposal = IndependentPrior([Normal(torch.zeros_like(scale), scale)] * shape[1])
    return training_set(case.simulator, theta, x, prior=case.prior, proposal=proposal, device=torch.device("cpu"))


def figures(case: Any, held_out: TrainingSet, **changes: Any) -> dict[str, float]:
    return held_out_figures(case.network, changes.get("simulator", case.simulator), case.prior, held_out, seed=1)


# ------------------------------------------------------------ held-out simulations


def test_figures_of_the_posterior_itself(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2)
    held_out = simulations(case)
    got = figures(case, held_out)
    forward = case.simulator.posterior(held_out.x["x"]).log_prob(held_out.theta).mean()
    evidence = case.simulator.log_evidence(held_out.x["x"][:OBSERVATIONS]).mean()
    assert len(held_out) > OBSERVATIONS
    assert got["held_out_forward_log_q"] == pytest.approx(float(forward), abs=1e-8)
    assert got["held_out_elbo"] == pytest.approx(float(evidence), abs=1e-8)
    assert got["held_out_kl_gap"] == pytest.approx(0, abs=1e-8)
    assert got["held_out_ess_fraction"] == got["held_out_ess_fraction_median"] == pytest.approx(1)
    assert got["held_out_refused"] == 0
    assert got["held_out_reconstruction"] - got["held_out_regularization"] == pytest.approx(got["held_out_elbo"])
    assert figures(case, held_out) == got  # the same draws every time


def test_figures_of_a_wrong_q(make_gaussian: MakeGaussian) -> None:
    """ELBO lower by KL(q || posterior), forward log q by about KL(posterior || q)."""
    exact, wrong = make_gaussian(dimension=2), make_gaussian(dimension=2, scale=1.5)
    held_out = simulations(exact)
    good, bad = figures(exact, held_out), figures(wrong, held_out)
    error = math.sqrt(2 * 2 * 0.625**2 / (ROWS * 256))
    assert good["held_out_elbo"] - bad["held_out_elbo"] == pytest.approx(wrong.kl, abs=5 * error)
    divergence = 0.5 * 2 * (1 / 1.5**2 - 1 + 2 * math.log(1.5))
    assert good["held_out_forward_log_q"] - bad["held_out_forward_log_q"] == pytest.approx(
        divergence, abs=5 * 0.56 / ROWS**0.5
    )
    assert bad["held_out_kl_gap"] == pytest.approx(wrong.kl, abs=0.02)
    assert bad["held_out_ess_fraction"] < 0.8


def test_forward_log_q_is_weighted_where_theta_comes_from_a_proposal(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2)
    held_out = simulations(case, proposal_scale=2.0)
    weight = torch.softmax(held_out.log_importance, 0)
    assert float(weight.max() * ROWS) > 2
    log_q = case.network.log_q(held_out.theta, case.network.condition(held_out.inputs)).detach()
    assert figures(case, held_out)["held_out_forward_log_q"] == pytest.approx(float((weight * log_q).sum()))


def test_an_implicit_simulator_has_the_forward_figure_alone(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2)

    class Implicit:
        name = "implicit"
        parameters, observables = case.simulator.parameters, case.simulator.observables

    assert list(figures(case, simulations(case), simulator=Implicit())) == ["held_out_forward_log_q"]


def test_the_share_of_refused_draws_is_reported(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2)

    class Half:
        name = "half"

        def log_likelihood(self, theta: Tensor, x: Any) -> Tensor:
            value = case.simulator.log_likelihood(theta, x)
            return torch.where(torch.arange(len(theta))[:, None] % 2 == 0, value, -torch.inf)

    got = figures(case, simulations(case), simulator=Half())
    assert got["held_out_refused"] == 0.5
    assert got["held_out_ess_fraction"] == pytest.approx(0.5)
    assert math.isfinite(got["held_out_elbo"])


# ------------------------------------------------------------ one step


def phase_of(case: Any, training: TrainingSet, *, average: float = 0.999, **settings: Any) -> Phase:
    return Phase(
        case.network,
        phase=PhaseSettings(**({"steps": 100, "batch": 32, "learning_rate": 1e-2} | settings)),
        index=1,
        settings=TrainSettings(average=average, check_every=2),
        seed=5,
        simulator=case.simulator,
        prior=case.prior,
        training=training,
        held_out=training.rows(slice(0, 20)),
        guard=Guard({"elbo": "held_out_elbo"}.get(str(settings["objective"]), "held_out_forward_log_q")),
    )


def expected_parts(phase: Phase, *, step: int = 0, draws: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Forward KL, weighted forward KL and ELBO of the batch of a step."""
    rows = phase.batches[step]  # with x where the objective needs a likelihood
    condition = phase.network.condition(rows.inputs)
    log_q = phase.network.log_q(rows.theta.float(), condition)
    stream = generator(5, "train-1", step)
    theta, log_q_drawn = phase.network.draw(condition, draws, generator=stream)
    value = torch.tensor(torch.nan)
    if rows.x:
        value = elbo(
            theta,
            log_q_drawn,
            log_likelihood=lambda t: phase.simulator.log_likelihood(t, rows.x),  # pyright: ignore[reportAttributeAccessIssue]
            log_prior=phase.prior.log_prob,
        ).value
    return forward_kl(log_q), forward_kl(log_q, rows.log_importance.float()), value


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize(
    ("settings", "combine"),
    [
        ({"objective": "forward_kl"}, lambda f, w, e: f),
        ({"objective": "forward_kl", "weighted": True}, lambda f, w, e: w),
        ({"objective": "elbo"}, lambda f, w, e: -e),
        ({"objective": "elbo", "gradient": "reparameterized"}, lambda f, w, e: -e),
        ({"objective": {"forward_kl": 0.25, "elbo": 0.75}}, lambda f, w, e: 0.25 * f - 0.75 * e),
    ],
)
def test_loss_is_the_objective_of_the_batch(
    make_gaussian: MakeGaussian, settings: dict[str, Any], combine: Any, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch and noise are a function of (seed, phase, step)."""
    monkeypatch.setattr(Phase, "global_step", step)
    case = make_gaussian(dimension=2, shift=0.5)
    phase = phase_of(case, simulations(case, proposal_scale=2.0), **settings)
    loss = phase.training_step(None, 0)
    torch.testing.assert_close(loss, combine(*expected_parts(phase, step=step)).to(loss), rtol=1e-5, atol=1e-5)
    assert float(phase.recent["loss"]) == pytest.approx(float(loss.detach()))
    assert ("elbo" in phase.recent) is ("elbo" in phase.phase.weights)
    again = phase.training_step(None, 0)
    assert torch.equal(again.detach(), loss.detach())


def test_the_gradient_estimator_is_the_one_asked_for(make_gaussian: MakeGaussian) -> None:
    """At the posterior only the path gradient is still; several draws for each x are averaged."""
    case = make_gaussian(dimension=2)
    largest = {}
    for gradient in ("sticking_the_landing", "reparameterized"):
        phase = phase_of(case, simulations(case), objective="elbo", gradient=gradient, draws=3)
        torch.testing.assert_close(phase.training_step(None, 0).double(), -expected_parts(phase, draws=3)[2].double())
        gradients = torch.autograd.grad(phase.training_step(None, 0), list(case.network.flow.parameters()))
        largest[gradient] = max(float(g.abs().max()) for g in gradients)
    assert largest["sticking_the_landing"] < 1e-4  # theta is in float32 while training
    assert largest["reparameterized"] > 1e-2


def test_refused_draws_are_added_up(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2)

    class Picky(type(case.simulator)):
        def log_likelihood(self, theta: Tensor, x: Any) -> Tensor:
            return torch.where(torch.arange(theta.shape[1]) < 3, torch.nan, super().log_likelihood(theta, x))

    phase = phase_of(case, simulations(case), objective="elbo")
    phase.simulator = Picky(dimension=2)
    for _ in range(4):
        phase.training_step(None, 0)
    assert int(phase.refused) == 12


def mean_gradient(case: Any, phase: Phase) -> Tensor:
    """Gradient of the loss with respect to the mean of q, (D,)."""
    bias = case.affine.network[-1].bias
    return torch.autograd.grad(phase.training_step(None, 0), bias)[0][: case.simulator.dimension]


@pytest.mark.parametrize("stored", [True, False])
def test_wake_with_memory_has_the_gradient_of_forward_kl_however_few_the_draws(
    make_gaussian: MakeGaussian, stored: bool
) -> None:
    """q too narrow and displaced: without memory two draws of it hardly say where the posterior is."""
    case = make_gaussian(dimension=1, shift=1.0, scale=0.6)
    training = simulations(case, rows=6_000)
    phases = {
        name: phase_of(case, training, batch=6_000, **settings)
        for name, settings in {
            "memory": {"objective": "wake", "draws": 2, "memory": True},
            "forgetful": {"objective": "wake", "draws": 2},
            "forward_kl": {"objective": "forward_kl"},
        }.items()
    }
    if not stored:  # as rows of fresh simulations: each has its own theta
        for phase in phases.values():
            phase.batches = [training]  # pyright: ignore[reportAttributeAccessIssue]
    memory, forgetful, exact = (mean_gradient(case, phase) for phase in phases.values())
    # d log q / d mean = (theta - mean) / s^2 with s = 0.6: standard deviation 1.7 / 0.6 over the pairs
    error = 5 * 2 * (1 / 0.36) / 6_000**0.5
    assert float((memory - exact).abs()) < error
    assert float((forgetful - exact).abs()) > 2 * error


def test_what_a_phase_remembers_moves_and_stays_exact(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2, shift=0.7, scale=0.7)
    training = simulations(case, rows=2_000)
    phase = phase_of(case, training, batch=500, objective="wake", draws=4, prior_share=0.25, memory=True)
    assert torch.equal(phase.memory, training.theta)
    posterior = case.simulator.posterior(training.x["x"])
    for step in range(40):
        rows = phase.batches[step]
        phase._wake(rows, phase.network.condition(rows.inputs), generator(1, "test", step))
    moved = (phase.memory != training.theta).any(-1)
    assert float(moved.double().mean()) > 0.8
    z = torch.linalg.solve_triangular(posterior.scale_tril, (phase.memory - posterior.mean)[..., None], upper=False)
    for d in range(2):
        values = z[:, d, 0].sort().values
        distance = (Normal(0.0, 1.0).cdf(values) - (torch.arange(2_000) + 0.5) / 2_000).abs().max()
        assert float(distance) < 1.95 / 2_000**0.5  # Kolmogorov and Smirnov, p = 0.001
    assert "memory" in phase.state_dict()  # a resumed phase remembers


def test_without_memory_nothing_is_kept(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=1)
    assert phase_of(case, simulations(case), objective="wake", draws=4).memory.numel() == 0


# ------------------------------------------------------------ averages, checks, rates


def test_average_follows_the_weights_and_forgets_the_start(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2)
    phase = phase_of(case, simulations(case), objective="forward_kl")
    start = case.affine.network[-1].bias.detach().clone()
    with torch.no_grad():
        case.affine.network[-1].bias.add_(1.0)
    phase.after_step()  # step 0: a tenth of the old, nine tenths of the new
    averaged = next(m for m in phase.averaged.modules() if type(m) is type(case.affine))
    torch.testing.assert_close(averaged.network[-1].bias, start + 0.9)
    assert not any(p.requires_grad for p in phase.averaged.parameters())
    off = phase_of(case, simulations(case), objective="forward_kl", average=0.0)
    with torch.no_grad():
        case.affine.network[-1].bias.add_(1.0)
    off.after_step()
    averaged = next(m for m in off.averaged.modules() if type(m) is type(case.affine))
    torch.testing.assert_close(averaged.network[-1].bias, start + 2)


@pytest.mark.parametrize("objective", ["forward_kl", "elbo"])
def test_the_best_average_is_kept_by_the_criterion_of_the_objective(
    make_gaussian: MakeGaussian, objective: str
) -> None:
    case = make_gaussian(dimension=2)
    phase = phase_of(case, simulations(case), objective=objective, average=0.0)
    phase.training_step(None, 0)
    biases = []
    for change in (1.0, -1.0, 2.0):  # worse than the posterior, the posterior again, worse
        with torch.no_grad():
            case.affine.network[-1].bias.add_(change)
        biases.append(case.affine.network[-1].bias.detach().clone())
        phase.after_step()
    assert [row["step"] for row in phase.history] == [0, 0, 0]
    name = {"forward_kl": "held_out_forward_log_q", "elbo": "held_out_elbo"}[objective]
    values = [row[name] for row in phase.history]
    assert phase.best_value == max(values) == values[1]
    best = next(m for m in phase.best.modules() if type(m) is type(case.affine))
    torch.testing.assert_close(best.network[-1].bias, biases[1])


def test_learning_rate_warms_up_and_decays_to_a_hundredth(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2)
    configured = phase_of(case, simulations(case), objective="elbo", steps=1000).configure_optimizers()
    factor = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert configured["optimizer"].defaults["lr"] == 1e-2
    assert configured["lr_scheduler"]["interval"] == "step"
    assert factor(0) == pytest.approx(0.01)
    assert factor(49) == pytest.approx(0.5, rel=0.01)
    assert factor(500) == pytest.approx(0.505)
    assert factor(1000) == pytest.approx(0.01)
    rates = [factor(step) for step in range(100, 1001)]
    assert rates == sorted(rates, reverse=True)


def test_history_and_best_value_go_into_checkpoints(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2)
    phase, other = (phase_of(case, simulations(case), objective="elbo") for _ in range(2))
    phase.training_step(None, 0)
    phase.after_step()
    checkpoint: dict[str, Any] = {}
    phase.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    assert other.history == phase.history
    assert other.best_value == phase.best_value > -math.inf
    assert {"averaged", "best", "network", "refused"} <= {name.partition(".")[0] for name in phase.state_dict()}
