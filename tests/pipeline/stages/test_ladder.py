from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import pytest
import torch

from pipeline.estimators.importance import Evidence, WeightedDraws, log_evidence, log_evidence_error
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.search_settings import SearchSettings
from pipeline.settings import AdaptSettings, InferSettings, RefineSettings, SampleSettings
from pipeline.stages.amortized_rung import weigh_amortized
from pipeline.stages.examine import Examination
from pipeline.stages.ladder import _after_refinement, climb, climb_all, one_row
from pipeline.stages.outcome import Outcome
from pipeline.stages.refined_rung import Repair
from pipeline.stages.run import Run
from pipeline.stages.verdicts import is_better, verdict_of, why_rejected
from tests.pipeline.conftest import gaussian_case
from tests.pipeline.estimators.test_weighted_posterior import posterior_of


def evidence(*, log_evidence: float = -5.0, error: float = 0.001, ess: float = 0.9, k: float = 0.1) -> Evidence:
    numbers = {"log_evidence": log_evidence, "log_evidence_error": error, "ess_fraction": ess, "pareto_k": k}
    numbers |= {"distinct_draws": 20_000.0, "largest_weight": 50.0}
    rest = dict.fromkeys((f.name for f in fields(Evidence)), 0.0)
    return Evidence(**{name: torch.tensor([value]).double() for name, value in (rest | numbers).items()})


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
    assert why_rejected(evidence(log_evidence=-5.005), amortized, settings, draws=20_000) == ""
    assert (
        why_rejected(evidence(log_evidence=-4.5), amortized, settings, draws=20_000) == ""
    )  # more evidence: a mode was found
    assert "forgotten a mode" in why_rejected(evidence(log_evidence=-5.2), amortized, settings, draws=20_000)
    assert "ess_fraction" in why_rejected(evidence(ess=0.3), amortized, settings, draws=20_000)


def test_a_refinement_that_all_but_misses_a_draw_is_rejected_however_large_the_error() -> None:
    """One draw with 70 % of the weight: its error of 0.7 nats would let a fall of 1.2 pass."""
    settings = InferSettings()
    amortized = evidence(log_evidence=-5.0, error=0.7, ess=1e-4)
    assert why_rejected(evidence(log_evidence=-6.2), amortized, settings, draws=20_000) == ""
    assert "forgotten a mode" in why_rejected(
        evidence(log_evidence=-6.2), amortized, settings, draws=20_000, missed=0.5
    )
    assert why_rejected(evidence(log_evidence=-6.2), amortized, settings, draws=20_000, missed=0.001) == ""


@pytest.mark.parametrize(
    ("refined", "missed", "better"),
    [
        ({"ess": 0.6}, 0.0, True),
        ({"ess": 0.6}, 0.5, False),
        ({"ess": 0.6, "log_evidence": -5.2}, 0.0, False),
        ({"ess": 0.4, "k": 0.6}, 0.0, True),  # not exact, but better than what it began with
        ({"ess": 0.4, "log_evidence": -5.2}, 0.0, False),
        ({"ess": 0.2}, 0.0, False),
    ],
)
def test_the_better_of_two_copies_is_kept(refined: dict[str, float], missed: float, better: bool) -> None:
    adapted = evidence(ess=0.3)
    assert is_better(evidence(**refined), adapted, InferSettings(), missed=missed) == better


def test_a_repair_that_is_no_more_than_corrected_is_kept_where_it_is_the_better_one() -> None:
    settings = InferSettings()
    draws = WeightedDraws(*(torch.zeros(20_000, 1, *d, dtype=torch.float64) for d in ((2,), (), (), (), ())))
    amortized = evidence(ess=0.2, k=0.6)
    before = Outcome("corrected", None, draws.theta[:0, 0], draws, amortized, amortized, 0.0, 20_000)
    for ess, kept in ((0.4, 0.4), (0.1, 0.2)):
        after = _after_refinement(before, Repair(None, draws, evidence(ess=ess, k=0.6), 0.0), settings)
        assert after.verdict == "corrected"
        assert float(after.evidence.ess_fraction) == pytest.approx(kept)
        assert "reached" in after.note


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


def test_rows_of_a_catalogue_are_repaired_together_as_they_would_be_alone(posterior: Posterior, trained: Run) -> None:
    x = trained.observation().x
    bad = spoil(posterior, shift=2.0)
    outcomes = climb_all(bad, x, settings=InferSettings(refine=RefineSettings(steps=200)), seed=1, index=0)
    exact = trained.simulator.log_evidence(x["x"])  # pyright: ignore[reportAttributeAccessIssue]
    for n, outcome in enumerate(outcomes):
        assert outcome.verdict == "refined"
        assert float(outcome.evidence.log_evidence) == pytest.approx(float(exact[n]), abs=0.01)
        mean = trained.simulator.posterior(x["x"]).mean[n]  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(outcome.theta.mean(0), mean, atol=0.05, rtol=0)


def test_few_draws_where_weights_are_nearly_equal_and_all_elsewhere(posterior: Posterior, trained: Run) -> None:
    x = one_row(trained.observation().x, 0)
    settings = InferSettings(draws=500, refine=RefineSettings(when="never"))
    assert len(climb(posterior, x, settings=settings, seed=1, index=0).proposals.log_q) == 1_000
    bad = spoil(posterior, shift=1.0)
    assert len(climb(bad, x, settings=settings, seed=1, index=0).proposals.log_q) == 5_000


@pytest.mark.parametrize("kind", ["prior", "wide"])
def test_a_defensive_component_bounds_the_weights(posterior: Posterior, trained: Run, kind: str) -> None:
    x = one_row(trained.observation().x, 0)
    bad = spoil(posterior, shrink=0.6)
    never = {
        "refine": RefineSettings(when="never"),
        "search": SearchSettings(when="never"),
        "sample": SampleSettings(when="never"),
    }
    plain = climb(bad, x, settings=InferSettings(**never), seed=1, index=0)
    share = InferSettings(defensive_share=0.2, defensive=kind, **never)  # pyright: ignore[reportArgumentType]
    outcome = climb(bad, x, settings=share, seed=1, index=0)
    assert float(outcome.evidence.pareto_k) < float(plain.evidence.pareto_k)
    if kind == "prior":
        draws = outcome.proposals
        bound = draws.log_likelihood - math.log(0.2)
        assert bool((draws.log_weight <= bound + 1e-9).all())
        exact = float(trained.simulator.log_evidence(x["x"]))  # pyright: ignore[reportAttributeAccessIssue]
        assert float(outcome.evidence.log_evidence) == pytest.approx(exact, abs=0.1)


def test_what_nothing_else_repairs_is_sampled(posterior: Posterior, trained: Run) -> None:
    x = one_row(trained.observation().x, 0)
    bad = spoil(posterior, shift=6.0)
    settings = InferSettings(
        refine=RefineSettings(when="never"),
        search=SearchSettings(when="never"),  # which repairs this q before it comes to that
        sample=SampleSettings(walkers=32, steps=2_500, burn_in=500),
    )
    outcome = climb(bad, x, settings=settings, seed=1, index=0)
    assert outcome.verdict == "sampled"
    assert 1.0 <= outcome.r_hat < 1.02
    exact = trained.simulator.posterior(x["x"])  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(outcome.theta.mean(0), exact.mean[0], atol=0.03, rtol=0)
    evidence = float(trained.simulator.log_evidence(x["x"]))  # pyright: ignore[reportAttributeAccessIssue]
    assert float(outcome.evidence.log_evidence) == pytest.approx(evidence, abs=0.01)
    short = settings.model_copy(update={"sample": SampleSettings(walkers=32, steps=50, burn_in=1)})
    failed = climb(bad, x, settings=short, seed=1, index=0)
    assert failed.verdict == "failed"
    assert "MCMC did not converge" in failed.note


def test_atypical_shares_the_level_among_its_checks(posterior: Posterior, trained: Run) -> None:
    x = one_row(trained.observation().x, 0)
    outcome = climb(posterior, x, settings=InferSettings(refine=RefineSettings(when="never")), seed=1, index=0)
    assert set(outcome.examined.predictive) == {"log_likelihood", "x"}
    for typicality, predictive, atypical in (
        (0.004, {"x": 0.5}, True),
        (0.006, {"x": 0.5}, False),
        (float("nan"), {}, False),
    ):
        changed = replace(outcome, examined=Examination(typicality=typicality, predictive=predictive))
        assert changed.is_atypical(0.01) is atypical
    far = climb(
        posterior,
        {"x": x["x"] + 20},
        settings=InferSettings(refine=RefineSettings(when="never"), sample=SampleSettings(when="never")),
        seed=1,
        index=0,
    )
    assert far.is_atypical(0.01)


def test_looking_first_at_few_draws_hardly_biases_the_evidence() -> None:
    """Weights on the edge of nearly equal, the worst case: about half of the observations stop at 200 draws of 1,000.

    Those that stop have met few large weights or few small ones, and not by chance alone: their evidence is off by
    a quarter of the error that is stated for each of them.
    """
    case = gaussian_case(dimension=2, rows=1_500, scale=1.137)
    settings = InferSettings(draws=100, refine=RefineSettings(when="never"))
    draws = weigh_amortized(posterior_of(case), case.x, case.condition, settings=settings, seed=1, index=0)
    stopped = torch.tensor([len(d.log_q) == 200 for d in draws])
    assert 0.2 < float(stopped.double().mean()) < 0.8
    off = torch.cat([log_evidence(d.log_weight) for d in draws]) - case.log_evidence
    stated = torch.cat([log_evidence_error(d.log_weight) for d in draws])
    assert float(off.mean().abs()) < 0.35 * float(stated.mean())
    assert float((off / stated).std()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("scale", [1e5, 1e15])
def test_data_that_nothing_explains_are_never_certified_wrongly(
    posterior: Posterior, trained: Run, scale: float
) -> None:
    """All draws once coincided in floating point: equal weights, `exact`, and an evidence of -2.3e29 for -2.5e9."""
    x = {"x": one_row(trained.observation().x, 0)["x"] * scale}
    settings = InferSettings(
        refine=RefineSettings(steps=20, adapt=AdaptSettings(rounds=2, steps=5)), sample=SampleSettings(when="never")
    )
    outcome = climb(posterior, x, settings=settings, seed=1, index=0)
    if outcome.verdict != "failed":
        exact = float(trained.simulator.log_evidence(x["x"]))  # pyright: ignore[reportAttributeAccessIssue]
        error = float(outcome.evidence.log_evidence_error)
        assert float(outcome.evidence.log_evidence) == pytest.approx(exact, abs=5 * error + 1e-12 * abs(exact))
        assert float(outcome.evidence.rounding) <= 0.01
    assert outcome.is_atypical(0.01) or outcome.note


def test_one_observation_that_fails_costs_no_other(posterior: Posterior, trained: Run) -> None:
    """A likelihood that raises for one star, as emcee did with "large condition number": the others are delivered."""

    class Choosy(type(posterior.simulator)):
        def log_likelihood(self, theta: torch.Tensor, x: dict[str, torch.Tensor]) -> torch.Tensor:
            if bool((x["x"] > 1e3).any()):
                raise ValueError("Initial state has a large condition number.\nMake sure that ...")
            return super().log_likelihood(theta, x)

    x = {"x": torch.cat([trained.observation().x["x"][:2], torch.full((1, 5), 1e4), trained.observation().x["x"][:1]])}
    simulator = copy.copy(posterior.simulator)
    simulator.__class__ = Choosy
    choosy = Posterior(posterior.case, simulator, posterior.network, typicality_model=posterior.typicality_model)
    settings = InferSettings(draws=500, search=SearchSettings(starts=64, steps=50))
    outcomes = climb_all(choosy, x, settings=settings, seed=1, index=0)
    assert [o.verdict == "failed" for o in outcomes] == [False, False, True, False]
    assert "large condition number" in outcomes[2].note
    assert bool(outcomes[2].theta.isnan().all())
    assert outcomes[2].theta.shape == outcomes[0].theta.shape


@pytest.mark.parametrize("broken", ["refine_all", "search_one", "sample_one"])
def test_a_rung_that_fails_leaves_what_earlier_ones_have(
    posterior: Posterior, trained: Run, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ArithmeticError("no such luck")

    monkeypatch.setattr(f"pipeline.stages.ladder.{broken}", fails)
    bad = spoil(posterior, shift=6.0) if broken == "sample_one" else spoil(posterior, shift=1.0)
    refine = RefineSettings(when="never" if broken == "sample_one" else "always", steps=20)
    when = "never" if broken == "sample_one" else "auto"
    settings = InferSettings(draws=500, refine=refine, search=SearchSettings(when=when, starts=64, steps=50))
    outcome = climb(bad, one_row(trained.observation().x, 0), settings=settings, seed=1, index=0)
    assert "ArithmeticError: no such luck" in outcome.note
    assert bool(outcome.theta.isfinite().all())
    assert (outcome.verdict == "failed") is (broken == "sample_one")


def test_where_the_searched_sample_lacks_mass_every_observation_is_searched(posterior: Posterior, trained: Run) -> None:
    """Six of six searched stars lacked 40 %, and 24 others were certified without a word."""
    x = trained.observation().x
    settings = InferSettings(
        draws=500, refine=RefineSettings(when="never"), search=SearchSettings(sample=1, starts=64, steps=100)
    )
    good = climb_all(posterior, x, settings=settings, seed=1, index=0)
    assert [o.search.starts > 0 for o in good] == [True] + [False] * (len(good) - 1)
    lacking = climb_all(spoil(posterior, shift=3.0), x, settings=settings, seed=1, index=0)
    assert all(o.search.starts > 0 for o in lacking)
