"""Parameters, observables, and the functions that ask a simulator what it offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet, HalfNormal, Normal, Uniform

from simulators.linear_gaussian import LinearGaussian
from simulators.protocol import (
    Data,
    Observable,
    Parameter,
    Simulator,
    candidates_of,
    context_of,
    data_observables,
    has_likelihood,
    network_features,
    pilot_of,
    read_observation,
)


class Implicit:
    """The least that is a simulator: no likelihood, no features, no reader."""

    name = "implicit"
    parameters = (Parameter("rate"),)
    observables = (Observable("exposure", (), role="context", unit="s"), Observable("counts", (2, 3)))

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        counts = torch.rand((len(theta), 2, 3), generator=generator)
        return {"exposure": torch.ones(len(theta)), "counts": counts}


def test_parameter_refuses_what_is_no_identifier_or_unit() -> None:
    with pytest.raises(ValueError, match=r"parameter name 'mass 1': expected an identifier"):
        Parameter("mass 1")
    with pytest.raises(ValueError, match=r"parameter 'mass': 'solarmasses' is not an astropy unit"):
        Parameter("mass", unit="solarmasses")


def test_observable_refuses_a_role_or_scale_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"role must be 'data' or 'context', got 'noise'"):
        Observable("x", (3,), role="noise")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"scale must be 'linear' or 'log', got 'sqrt'"):
        Observable("x", (3,), scale="sqrt")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"observable name 'x y'"):
        Observable("x y", (3,))


def test_an_object_with_the_members_is_a_simulator() -> None:
    assert isinstance(Implicit(), Simulator)
    assert isinstance(LinearGaussian(), Simulator)
    assert not isinstance(object(), Simulator)


def test_what_a_simulator_offers_is_looked_up() -> None:
    simulator = Implicit()
    assert not has_likelihood(simulator)
    assert has_likelihood(LinearGaussian())
    assert [o.name for o in data_observables(simulator)] == ["counts"]


def test_default_features_are_every_observable_flattened() -> None:
    simulator = Implicit()
    x = simulator.simulate(torch.ones(4, 1), generator=torch.Generator().manual_seed(0))
    x["exposure"] = x["exposure"][:, None]
    assert list(context_of(simulator, x)) == ["exposure"]
    features = network_features(simulator, x)
    assert features.shape == (4, 7)
    torch.testing.assert_close(features[:, 1:], x["counts"].flatten(1))


def test_a_simulator_without_reader_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"simulator 'implicit' has no read_observation"):
        read_observation(Implicit(), tmp_path / "star.csv")


class Piloted(Implicit):
    """A guess of every posterior, as given."""

    def __init__(self, location: Tensor, scale: Tensor) -> None:
        self.guess = location, scale

    def pilot(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.guess


def test_a_pilot_is_optional_and_checked() -> None:
    x = {"exposure": torch.ones(4), "counts": torch.ones(4, 2, 3)}
    assert pilot_of(Implicit(), x) is None
    one = torch.ones(4, 1)
    assert pilot_of(Piloted(one, one), x) == (one, one)
    with pytest.raises(ValueError, match=r"pilot must give two tensors \(4, 1\), got \(4, 2\)"):
        pilot_of(Piloted(torch.ones(4, 2), one), x)
    for scale in (0 * one, torch.nan * one):
        with pytest.raises(ValueError, match=r"not finite, or a scale that is not positive"):
            pilot_of(Piloted(one, scale), x)


class Searched:
    """Says where to look for modes."""

    name = "searched"
    parameters = (
        Parameter("rate", HalfNormal(torch.tensor(1.0))),
        Parameter("share", Uniform(0.0, 2.0)),
        Parameter("level", Normal(0.0, 1.0)),
    )
    observables = (Observable("y", ()),)

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta

    def candidates(self, x: Mapping[str, Tensor]) -> Tensor:
        return self.theta


def test_candidates_are_optional_finite_and_inside_the_prior() -> None:
    x = {"y": torch.zeros(1)}
    assert candidates_of(Implicit(), {"counts": torch.zeros(1, 2, 3)}) is None
    theta = torch.tensor([[0.5, 1.5, 9.0], [-1.0, 2.5, -9.0], [0.0, 2.0, torch.nan], [0.5, -torch.inf, 0.0]])
    found = candidates_of(Searched(theta), x)  # pyright: ignore[reportArgumentType]
    assert found is not None
    # a thousandth of the way from an end to the median: 0.6745 of a half normal, 1 of the uniform
    expected = torch.tensor([[0.5, 1.5, 9.0], [0.0006745, 1.999, -9.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"candidates: expected x of one row, got 2"):
        candidates_of(Searched(theta), {"y": torch.zeros(2)})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"candidates must give a tensor \(C, 3\), got \(4, 2\)"):
        candidates_of(Searched(theta[:, :2]), x)  # pyright: ignore[reportArgumentType]


def test_candidates_outside_a_joint_prior_are_left_out() -> None:
    simulator = Searched(torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.7]]))
    simulator.prior = Dirichlet(torch.ones(3))  # pyright: ignore[reportAttributeAccessIssue]
    found = candidates_of(simulator, {"y": torch.zeros(1)})  # pyright: ignore[reportArgumentType]
    assert found is not None
    torch.testing.assert_close(found, simulator.theta[:1].double())
