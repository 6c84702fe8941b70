from __future__ import annotations

import copy

import pytest
import torch

from pipeline.estimators.importance import Evidence
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.settings import InferSettings, RefineSettings
from pipeline.stages.ladder import climb, one_row, verdict_of, why_rejected
from pipeline.stages.run import Run


def evidence(*, log_evidence: float = -5.0, error: float = 0.001, ess: float = 0.9, k: float = 0.1) -> Evidence:
    numbers = {"log_evidence": log_evidence, "log_evidence_error": error, "ess_fraction": ess, "pareto_k": k}
    rest = dict.fromkeys(("elbo", "reconstruction", "regularization", "kl_gap", "refused"), 0.0)
    return Evidence(**{name: torch.tensor([value]).double() for name, value in (numbers | rest).items()})


@pytest.mark.parametrize(
    ("ess", "k", "verdict"),
    [
        (0.6, 0.4, "exact"),
        (0.6, 0.6, "corrected"),  # the tail is too heavy for exact
        (0.97, 0.6, "exact"),  # weights nearly equal: the shape of their tail says little
        (0.97, 0.8, "failed"),
        (0.3, 0.1, "corrected"),
        (0.01, 0.1, "failed"),  # 200 effective draws of 20,000
        (0.3, 0.75, "failed"),
        (0.0, float("inf"), "failed"),
    ],
)
def test_thresholds(ess: float, k: float, verdict: str) -> None:
    assert verdict_of(evidence(ess=ess, k=k), InferSettings(), 20_000) == verdict


def test_a_refinement_that_loses_evidence_is_rejected() -> None:
    settings = InferSettings()
    amortized = evidence(log_evidence=-5.0, error=0.01)
    assert why_rejected(evidence(log_evidence=-5.005), amortized, settings) == ""
    assert why_rejected(evidence(log_evidence=-4.5), amortized, settings) == ""  # more evidence: a mode was found
    assert "forgotten a mode" in why_rejected(evidence(log_evidence=-5.2), amortized, settings)
    assert "ess_fraction" in why_rejected(evidence(ess=0.3), amortized, settings)


def test_a_refinement_that_all_but_misses_a_draw_is_rejected_however_large_the_error() -> None:
    """One draw with 70 % of the weight: its error of 0.7 nats would let a fall of 1.2 pass."""
    settings = InferSettings()
    amortized = evidence(log_evidence=-5.0, error=0.7, ess=1e-4)
    assert why_rejected(evidence(log_evidence=-6.2), amortized, settings) == ""
    assert "forgotten a mode" in why_rejected(evidence(log_evidence=-6.2), amortized, settings, missed=0.5)
    assert why_rejected(evidence(log_evidence=-6.2), amortized, settings, missed=0.001) == ""


@pytest.fixture
def posterior(trained: Run) -> Posterior:
    return load_posterior(trained.output("train"))


def spoil(posterior: Posterior, *, shift: float = 0.0, shrink: float = 1.0) -> Posterior:
    """The same q, moved by `shift` posterior widths and made narrower."""
    network = copy.deepcopy(posterior.network)
    network.shift += shift * 0.25 * network.width  # the posterior's width is about a quarter of the prior's
    network.width *= shrink
    return Posterior(posterior.case, posterior.simulator, network)


@pytest.mark.parametrize("wrong", [{"shift": 3.0}, {"shrink": 0.5}])
def test_a_wrong_q_is_never_exact_and_is_repaired_by_refinement(
    posterior: Posterior, trained: Run, wrong: dict[str, float]
) -> None:
    x = one_row(trained.observation().x, 0)
    bad = spoil(posterior, **wrong)
    never = InferSettings(refine=RefineSettings(when="never"))
    assert climb(bad, x, settings=never, seed=1, index=0).verdict != "exact"
    outcome = climb(bad, x, settings=InferSettings(refine=RefineSettings(steps=200)), seed=1, index=0)
    assert outcome.verdict == "refined"
    exact = float(trained.simulator.log_evidence(x["x"]))  # pyright: ignore[reportAttributeAccessIssue]
    assert float(outcome.evidence.log_evidence) == pytest.approx(exact, abs=0.01)


def test_delivered_draws_depend_on_seed_and_index_alone(posterior: Posterior, trained: Run) -> None:
    x = one_row(trained.observation().x, 0)
    settings = InferSettings(refine=RefineSettings(when="never"))
    first, again, other = (climb(posterior, x, settings=settings, seed=1, index=i).theta for i in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
