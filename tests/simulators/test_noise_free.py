"""Signal and noise apart: the same x as at once, and new noise of the right size on an old signal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from simulators.linear_gaussian import LinearGaussian
from simulators.noise_free import WithSignal
from simulators.priors import prior_of, sample
from simulators.protocol import data_observables, has_signal, network_features, signal_of
from simulators.radial_velocity import RadialVelocity
from simulators.registry import create

PLANET = {"period": 20.9, "conjunction": 2072.8, "logk": {"normal": [1.6, 0.5]}}
DESIGN = {"points": 12, "baseline": 100, "start": 2364, "error": 1.7, "error_scatter": 0.3}
SIMULATORS = [
    LinearGaussian(dimension=2, size=4),
    RadialVelocity(planets=[PLANET], jit={"normal": [1.1, 0.5]}, design=DESIGN),  # pyright: ignore[reportArgumentType]
]


@pytest.fixture(params=SIMULATORS, ids=lambda s: s.name)
def case(request: pytest.FixtureRequest) -> tuple[Any, WithSignal, torch.Tensor]:
    simulator = request.param
    return simulator, WithSignal(simulator), sample(prior_of(simulator), 400, torch.Generator().manual_seed(1))


def test_x_is_what_the_simulator_makes_at_once(case: tuple[Any, WithSignal, torch.Tensor]) -> None:
    simulator, stored, theta = case
    one, other = (s.simulate(theta, None, generator=torch.Generator().manual_seed(2)) for s in (simulator, stored))
    assert set(other) == {o.name for o in stored.observables} > set(one)
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert torch.equal(network_features(stored, other), network_features(simulator, one))
    assert stored.parameters is simulator.parameters
    assert stored.log_likelihood(theta, one).shape == (400,)
    assert copy.deepcopy(stored).name == simulator.name


def test_new_noise_on_an_old_signal(case: tuple[Any, WithSignal, torch.Tensor]) -> None:
    """Two observations of one signal differ by twice the noise, and share their conditions."""
    simulator, stored, theta = case
    x = stored.simulate(theta, None, generator=torch.Generator().manual_seed(2))
    again, third = (stored.observe_again(x, theta, generator=torch.Generator().manual_seed(s)) for s in (3, 4))
    assert set(again) == {o.name for o in simulator.observables}
    for o in simulator.observables:
        assert torch.equal(again[o.name], x[o.name]) is (o.role == "context")
    name = data_observables(simulator)[0].name
    first = (x[name] - x[f"signal_{name}"]).std()
    # 400 rows or more of numbers of which an offset is shared by 12: 5 / sqrt(2 * 400)
    assert float((again[name] - third[name]).std() / first) == pytest.approx(2**0.5, rel=0.18)
    assert float((again[name] - x[f"signal_{name}"]).std() / first) == pytest.approx(1, rel=0.18)


def test_a_simulator_of_one_step_says_so() -> None:
    simulator = create("two_moons")
    assert not has_signal(simulator)
    with pytest.raises(ValueError, match="'two_moons' has no `signal` and `observe`"):
        signal_of(simulator, torch.zeros(1, 2), None, generator=torch.Generator())
