"""The search beside a q whose lack is known."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.problems.two_modes import TwoModes, TwoPhases
from pipeline.baselines.evidence_check import StudentMixture
from pipeline.diagnostics.landscape import Landscape
from pipeline.estimators.importance import WeightedDraws, summarize
from pipeline.estimators.network import Condition
from pipeline.estimators.posterior import Posterior
from pipeline.estimators.proposal import Proposal, weigh
from pipeline.search_settings import SearchSettings
from pipeline.settings import InferSettings
from pipeline.stages.ladder import rows_to_search
from pipeline.stages.search import Fitted, Found, lack_of, search, with_twins
from pipeline.stages.searched_rung import Standing, search_one
from pipeline.stages.verdicts import verdict_of
from simulators.priors import prior_of
from simulators.protocol import Data

SETTINGS = InferSettings(draws=500, search=SearchSettings(starts=128, steps=150))


class Bare:
    """What a search asks of a posterior: a simulator and its prior. Its network cannot be refined."""

    class network:  # noqa: N801
        refinable = False

    device = torch.device("cpu")

    def __init__(self, simulator: Any) -> None:
        self.simulator, self.prior = simulator, prior_of(simulator)


def at(landscape: Landscape, *modes: tuple[Tensor, float], share: tuple[float, ...] = ()) -> Fitted:
    """A proposal with a component at each theta (1, D) of a width in theta."""
    w = torch.cat([landscape.to_real(theta) for theta, _ in modes])
    factors = []
    for theta, width in modes:
        step = (landscape.to_real(theta + 1e-4) - landscape.to_real(theta - 1e-4))[0] / 2e-4
        factors.append(torch.diag(width * step))
    weight = np.array(share or [1 / len(modes)] * len(modes))
    return Fitted(StudentMixture(weight, w.numpy(), torch.stack(factors).numpy()), landscape)


def standing(posterior: Bare, x: Data, proposal: Proposal, draws: int = 5_000) -> Standing:
    stream = torch.Generator().manual_seed(1)
    found = weigh(proposal, posterior.simulator, posterior.prior, x, draws=draws, generator=stream)
    evidence = summarize(found)
    return Standing(verdict_of(evidence, SETTINGS, draws), proposal, found, evidence)


def searched(simulator: Any, x: Data, *modes: tuple[Tensor, float]) -> Any:
    posterior = Bare(simulator)
    landscape = Landscape(simulator, posterior.prior, x, generator=torch.Generator().manual_seed(2))
    before = standing(posterior, x, at(landscape, *modes))
    condition = Condition(*(torch.zeros(1, 1) for _ in range(3)))
    return before, search_one(cast(Posterior, posterior), x, condition, before, settings=SETTINGS, seed=1, index=0)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


PLACE = (1.4, -1.9, 0.8)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.05])
def test_a_mode_that_q_lacks_becomes_part_of_the_draws(share: float, gradient: bool) -> None:
    simulator = TwoModes(dimension=3, share=share, gradient=gradient)
    x = {"x": row(*PLACE)}
    before, after = searched(simulator, x, (row(*PLACE), 0.1))
    exact = float(simulator.log_evidence(x))
    assert before.verdict == "exact"  # what weights alone certify
    assert float(before.evidence.log_evidence) == pytest.approx(exact + math.log1p(-share), abs=0.02)
    assert after.standing.verdict == "corrected"
    error = float(after.standing.evidence.log_evidence_error)
    assert float(after.standing.evidence.log_evidence) == pytest.approx(exact, abs=5 * error)
    assert after.missed == pytest.approx(share, abs=0.05)
    assert after.uncovered < 0.005
    assert "where q has hardly a draw: it was added" in after.note
    # the headline gap is that of q, which lacks the mode
    assert float(after.standing.evidence.kl_gap) > -math.log1p(-share) - 0.02


def test_a_q_that_lacks_nothing_is_left_alone() -> None:
    simulator = TwoModes(dimension=3, share=0.2)
    x = {"x": row(*PLACE)}
    other = row(*(-p for p in PLACE))
    before, after = searched(simulator, x, (row(*PLACE), 0.1), (other, 0.1))
    assert after.standing is before
    assert after.missed == 0
    assert after.uncovered < 0.005
    assert after.note == ""


def test_a_q_that_has_a_mode_poorly_is_a_matter_of_its_weights() -> None:
    """A component five times too wide and one of a hundredth of the draws: weights see both."""
    simulator = TwoModes(dimension=2, share=0.5)
    x = {"x": row(1.4, -1.9)}
    posterior = Bare(simulator)
    landscape = Landscape(simulator, posterior.prior, x, generator=torch.Generator().manual_seed(2))
    modes = ((row(1.4, -1.9), 0.3), (row(-1.4, 1.9), 0.1))
    before = standing(posterior, x, at(landscape, *modes, share=(0.98, 0.02)))
    found = search(cast(Posterior, posterior), x, before.draws, settings=SETTINGS.search, seed=1, index=0)
    assert lack_of(found, before.proposal, float(before.evidence.log_evidence), before.count).share < 0.005


def test_where_every_draw_has_weight_zero_all_is_lacking() -> None:
    simulator = TwoModes(dimension=2, share=0.5)
    x = {"x": row(1.4, -1.9)}
    posterior = Bare(simulator)
    landscape = Landscape(simulator, posterior.prior, x, generator=torch.Generator().manual_seed(2))
    far = at(landscape, (row(0.0, 0.0), 0.01))
    draws = weigh(far, simulator, posterior.prior, x, draws=100, generator=torch.Generator().manual_seed(1))
    found = search(cast(Posterior, posterior), x, draws, settings=SETTINGS.search, seed=1, index=0)
    assert lack_of(found, far, -math.inf, 100).share == 1.0


def test_a_mode_at_the_cut_of_a_circle() -> None:
    """The phase 2 pi - 0.02 is at both ends of the interval; q has the other phase alone."""
    simulator = TwoPhases()
    x = {"x": row(math.cos(-0.04), math.sin(-0.04))}
    before, after = searched(simulator, x, (row(math.pi - 0.02, 1.0), 0.07))
    assert before.verdict in ("exact", "corrected")
    assert after.standing.verdict == "corrected"
    gained = float(after.standing.evidence.log_evidence - before.evidence.log_evidence)
    assert gained == pytest.approx(math.log(2), abs=0.05)


def test_the_density_of_a_fitted_mixture_is_that_of_its_draws() -> None:
    """<m2 / m1> over draws of m1 is one, with an angle whose component reaches over the cut."""
    simulator = TwoPhases()
    landscape = Landscape(
        simulator, prior_of(simulator), {"x": row(1.0, 0.0)}, generator=torch.Generator().manual_seed(2)
    )
    narrow = at(landscape, (row(0.05, 1.0), 0.2))
    wide = at(landscape, (row(6.2, 1.1), 0.5))
    theta, log_q, _ = wide.draw(20_000, torch.Generator().manual_seed(1))
    assert bool(prior_of(simulator).log_prob(theta).isfinite().all())
    ratio = (narrow.log_q(theta) - log_q).exp()
    assert float((ratio.mean() - 1) / (ratio.std() / 20_000**0.5)) == pytest.approx(0, abs=4)


def test_twins_stand_a_turn_away() -> None:
    mixture = StudentMixture(np.array([0.5, 0.5]), np.array([[3.1, 0.0], [0.0, 0.0]]), np.array([0.2 * np.eye(2)] * 2))
    doubled = with_twins(mixture, [0])
    assert doubled.mean[:, 0].tolist() == pytest.approx([3.1, 0.0, 3.1 - 2 * math.pi])
    assert doubled.weight.sum() == pytest.approx(1)
    assert with_twins(mixture, []) is mixture


def test_which_rows_are_searched() -> None:
    never, always = (InferSettings(search=SearchSettings(when=w)) for w in ("never", "always"))  # pyright: ignore
    auto = InferSettings(search=SearchSettings(sample=4))
    assert rows_to_search(never, 10, narrow=True) == set()
    assert rows_to_search(always, 10, narrow=False) == set(range(10))
    assert rows_to_search(auto, 1, narrow=False) == {0}
    assert rows_to_search(auto, 100, narrow=False) == {0, 25, 50, 75}
    assert len(rows_to_search(auto, 100, narrow=True)) == 20


def test_draws_that_a_search_starts_from_do_not_have_to_exist() -> None:
    simulator = TwoModes(dimension=2)
    nothing = torch.full((1, 1), torch.nan, dtype=torch.float64)
    draws = WeightedDraws(torch.zeros(1, 1, 2, dtype=torch.float64), nothing, nothing, nothing, nothing)
    found: Found = search(
        cast(Posterior, Bare(simulator)), {"x": row(1.0, 1.0)}, draws, settings=SETTINGS.search, seed=1, index=0
    )
    assert len(found.optima) >= 1
    assert isinstance(found.mixture, StudentMixture)


def test_a_spike_that_any_rung_has_met_is_a_start() -> None:
    """A refinement was turned away for a draw that would carry 141 % of all weight, and what was delivered knew nothing of it."""
    simulator = TwoModes(dimension=2, share=0.3, width=0.5, second_width=1e-3)
    x = {"x": row(1.4, -1.9)}
    posterior = Bare(simulator)
    landscape = Landscape(simulator, posterior.prior, x, generator=torch.Generator().manual_seed(2))
    before = standing(posterior, x, at(landscape, (row(1.4, -1.9), 0.5)))
    met = row(-1.4005, 1.9003)
    found = search(cast(Posterior, posterior), x, before.draws, met, settings=SETTINGS.search, seed=1, index=0)
    lack = lack_of(found, before.proposal, float(before.evidence.log_evidence), before.count)
    assert lack.share == pytest.approx(0.3, abs=0.05)


def test_the_mirror_image_is_a_start() -> None:
    """In six parameters no prior draw meets a basin a quarter as wide as the other: -theta is tried."""
    simulator = TwoModes(dimension=6, share=0.3, width=0.4, second_width=0.1)
    place = (1.4, -1.9, 0.8, 1.1, -1.3, 0.9)
    before, after = searched(simulator, {"x": row(*place)}, (row(*place), 0.4))
    assert before.verdict == "exact"
    assert after.standing.verdict == "corrected"
    assert after.missed == pytest.approx(0.3, abs=0.05)
