"""Which schedule a case gets where it names none."""

from __future__ import annotations

import pytest

from pipeline.settings import PhaseSettings, TrainSettings
from pipeline.training.auto import SCARCE, schedule, share_out


def leading(phase: PhaseSettings) -> str:
    return max(phase.weights, key=lambda name: phase.weights[name])


@pytest.mark.parametrize(
    ("data", "has_likelihood", "simulations", "from_prior", "objectives"),
    [
        ("file", False, 100, True, ["forward_kl"]),  # nothing else is possible
        ("online", False, 100, False, ["forward_kl"]),
        ("file", True, SCARCE, True, ["forward_kl"]),
        ("file", True, SCARCE, False, ["forward_kl", "elbo"]),  # the first alone would learn the proposal's posterior
        ("online", True, 100, True, ["forward_kl"]),  # the file is for checks only
        ("file", True, SCARCE - 1, True, ["forward_kl", "wake"]),
        ("file", True, SCARCE - 1, False, ["forward_kl", "wake"]),
    ],
)
def test_likelihood_proposal_and_number_of_simulations_decide(
    data: str, has_likelihood: bool, simulations: int, from_prior: bool, objectives: list[str]
) -> None:
    settings = TrainSettings.model_validate({"data": data})
    chosen = schedule(settings, has_likelihood=has_likelihood, simulations=simulations, from_prior=from_prior)
    assert [leading(phase) for phase in chosen] == objectives
    assert all(phase.memory for phase in chosen if leading(phase) == "wake")
    assert all(has_likelihood or not phase.needs_likelihood for phase in chosen)


def test_what_the_case_names_is_what_it_gets_and_steps_scale_either() -> None:
    given = (PhaseSettings(objective="elbo", steps=30), PhaseSettings(objective="wake", steps=10, draws=4))
    assert schedule(TrainSettings(phases=given), has_likelihood=True, simulations=10) == given
    scaled = schedule(TrainSettings(phases=given, steps=400), has_likelihood=True, simulations=10)
    assert scaled == share_out(given, 400)
    assert [p.steps for p in scaled] == [300, 100]
    chosen = schedule(TrainSettings(steps=50), has_likelihood=True, simulations=10**6)
    assert sum(p.steps for p in chosen) == 50


def phases(*steps: int) -> tuple[PhaseSettings, ...]:
    return tuple(PhaseSettings(objective="elbo", steps=n) for n in steps)


@pytest.mark.parametrize(
    ("given", "total", "expected"),
    [
        ((6000, 1000), 700, (600, 100)),
        ((6000, 1000), 14_000, (12_000, 2000)),
        ((1, 1, 1), 10, (3, 4, 3)),
        ((1000, 1000, 1000, 1), 50, (17, 16, 17, 1)),  # none is left out
    ],
)
def test_steps_are_shared_among_the_phases(given: tuple[int, ...], total: int, expected: tuple[int, ...]) -> None:
    scheduled = share_out(phases(*given), total)
    assert tuple(p.steps for p in scheduled) == expected
    assert all(p.objective == "elbo" for p in scheduled)


def test_shared_steps_add_up() -> None:
    for total in range(7, 60):
        for given in ((3, 5, 7), (1, 2, 3, 4), (6000, 1000)):
            steps = [p.steps for p in share_out(phases(*given), total)]
            assert sum(steps) == total
            assert all(abs(n - g * total / sum(given)) <= 1 for n, g in zip(steps, given, strict=True))
