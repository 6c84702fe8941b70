"""Refinement on one observation: it reaches the exact evidence, and touches nothing but its copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.estimators.importance import Evidence, summarize
from pipeline.estimators.network import PosteriorNetwork
from pipeline.estimators.proposal import Amortized, weigh
from pipeline.settings import RefineSettings
from pipeline.training.refinement import refine

MakeGaussian = Callable[..., Any]
SETTINGS = RefineSettings(steps=150, draws=64, learning_rate=2e-2)


def refined(
    case: Any, *, seed: int = 0, settings: RefineSettings = SETTINGS, told: list[Any] | None = None
) -> PosteriorNetwork:
    return refine(
        case.network,
        case.condition,
        simulator=case.simulator,
        prior=case.prior,
        x=case.x,
        settings=settings,
        generator=torch.Generator().manual_seed(seed),
        advance=None if told is None else lambda count, note=None: told.append((count, note)),
    )


def figures(case: Any, network: PosteriorNetwork) -> Evidence:
    q = Amortized(network, case.condition)
    return summarize(
        weigh(q, case.simulator, case.prior, case.x, draws=4000, generator=torch.Generator().manual_seed(1))
    )


@pytest.mark.parametrize(("shift", "scale"), [(1.5, 2.0), (-1.0, 0.5)])
def test_a_wrong_q_reaches_the_evidence(make_gaussian: MakeGaussian, shift: float, scale: float) -> None:
    case = make_gaussian(dimension=2, rows=1, shift=shift, scale=scale)
    before, after = figures(case, case.network), figures(case, refined(case))
    assert float(before.kl_gap) > 0.5
    assert float(after.kl_gap) < 0.01
    assert float(after.ess_fraction) > 0.97
    assert float(after.log_evidence) == pytest.approx(
        float(case.log_evidence), abs=max(5 * float(after.log_evidence_error), 1e-3)
    )
    assert float(after.elbo) == pytest.approx(float(case.log_evidence), abs=0.01)


def test_the_amortized_network_is_left_as_it_was_bit_for_bit(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2, rows=1, shift=1.0)
    before = {name: values.clone() for name, values in case.network.state_dict().items()}
    asked = [p.requires_grad for p in case.network.parameters()]
    copy = refined(case, settings=SETTINGS.model_copy(update={"steps": 20}))
    after = case.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(values, after[name]) for name, values in before.items())
    assert [p.requires_grad for p in case.network.parameters()] == asked
    assert all(p.grad is None for p in case.network.parameters())
    assert not any(p.requires_grad for p in copy.parameters())
    moved = {name for name, values in copy.state_dict().items() if not torch.equal(values, before[name])}
    assert moved
    assert all(name.startswith("flow.") for name in moved)  # the embedding is that of the amortized q


def test_gradients_are_path_gradients(make_gaussian: MakeGaussian, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the posterior every other estimator is noise."""
    asked: list[bool] = []
    original = PosteriorNetwork.draw

    def draw(self: PosteriorNetwork, *arguments: Any, path_gradient: bool = False, **options: Any) -> Any:
        asked.append(path_gradient)
        return original(self, *arguments, path_gradient=path_gradient, **options)

    monkeypatch.setattr(PosteriorNetwork, "draw", draw)
    refined(make_gaussian(dimension=2, rows=1), settings=SETTINGS.model_copy(update={"steps": 5}))
    assert asked == [True] * 5


def test_frozen_networks_can_be_refined(make_gaussian: MakeGaussian) -> None:
    """As `infer` does it: loaded for use alone, under no_grad."""
    case = make_gaussian(dimension=2, rows=1, shift=1.0)
    case.network.requires_grad_(False)
    with torch.no_grad():
        copy = refined(case)
    assert float(figures(case, copy).kl_gap) < 0.05


def test_the_generator_decides_and_every_step_is_told(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2, rows=1, shift=1.0)
    short = SETTINGS.model_copy(update={"steps": 25})
    told: list[Any] = []
    one, again, other = (
        refined(case, settings=short, told=told),
        refined(case, settings=short),
        refined(case, settings=short, seed=1),
    )
    states = [list(n.state_dict().values()) for n in (one, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True))
    assert [count for count, _ in told] == [1] * 25
    assert [i for i, (_, note) in enumerate(told) if note] == [0, 10, 20]
    assert told[0][1].startswith("ELBO -")
