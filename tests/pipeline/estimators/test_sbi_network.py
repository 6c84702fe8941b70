"""sbi's estimators in the place of our network: seeded draws, their density, and what they cannot do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sbi.neural_nets import posterior_nn
from torch import Tensor
from torch.distributions import MultivariateNormal, constraints

from pipeline.errors import InputError
from pipeline.estimators.network import Condition, draw_in_blocks
from pipeline.estimators.sbi_network import PriorWithinSupport, SbiNetwork, architecture_from, new_sbi_network
from simulators.linear_gaussian import LinearGaussian

MODELS = ("nsf", "maf", "maf_rqs", "mdn", "zuko_nsf", "zuko_maf", "zuko_nice")
SMALL: dict[str, Any] = {"hidden_features": 12, "num_transforms": 2, "num_bins": 4, "num_components": 2}


def network(model: str = "maf") -> SbiNetwork:
    """As sbi builds it, its z-scoring fitted to data that are not standard."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta, x = 1 + 3 * torch.randn(100, 3), 2 * torch.randn(100, 5) - 4
        return SbiNetwork(posterior_nn(model, **SMALL)(theta, x)).eval().requires_grad_(False)


def x_of(rows: int) -> Tensor:
    return 2 * torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 4


def condition(q: SbiNetwork, rows: int) -> Condition:
    return q.condition(q.read(LinearGaussian(), {"x": x_of(rows)}))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("model", MODELS)
def test_draws_follow_the_generator_alone_and_carry_their_own_density(model: str) -> None:
    q = network(model)
    at = condition(q, 4)
    state = torch.get_rng_state()
    theta, log_q = q.draw(at, 6, generator=stream(), dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, _ = q.draw(at, 6, generator=stream(), dtype=torch.float64)
    torch.set_rng_state(state)
    other, _ = q.draw(at, 6, generator=stream(1), dtype=torch.float64)
    assert theta.shape == (6, 4, 3)
    assert log_q.shape == (6, 4)
    assert theta.dtype == log_q.dtype == torch.float64
    assert torch.equal(theta, again)
    assert not torch.equal(theta, other)
    torch.testing.assert_close(q.log_q(theta, at), log_q, rtol=0, atol=1e-5)
    alone = Condition(*(part[2:3] for part in at))  # row 2 belongs to observation 2
    torch.testing.assert_close(q.log_q(theta[:, 2:3], alone), log_q[:, 2:3], rtol=0, atol=1e-5)


def test_sbis_own_sample_and_log_prob_mixes_observations() -> None:
    """The reason why `draw` does not use it; where sbi repairs it, this test says so."""
    estimator = network("nsf").estimator
    with torch.no_grad():
        theta, log_q = estimator.sample_and_log_prob(torch.Size((6,)), x_of(4).float())
        assert float((estimator.log_prob(theta, x_of(4).float()) - log_q).abs().max()) > 1e-2


def test_rebuilt_network_has_the_same_density_bit_for_bit() -> None:
    for model in MODELS:
        q = network(model)
        again = new_sbi_network(architecture_from({"model": model, **SMALL}, "test"), dimension=3, features=5).eval()
        theta, _ = q.draw(condition(q, 4), 6, generator=stream())
        assert not torch.equal(again.log_q(theta, condition(q, 4)), q.log_q(theta, condition(q, 4)))
        again.load_state_dict(q.state_dict())
        assert torch.equal(again.log_q(theta, condition(q, 4)), q.log_q(theta, condition(q, 4)))


def test_many_draws_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    q = network()
    monkeypatch.setattr("pipeline.estimators.network.BLOCK", 12)
    offered: Any = q  # what `draw_in_blocks` asks of a network
    theta, log_q = draw_in_blocks(offered, condition(q, 4), 8, generator=stream())
    assert theta.shape == (8, 4, 3)
    assert len(theta.unique(dim=0)) == 8  # no block repeats another
    torch.testing.assert_close(q.log_q(theta, condition(q, 4)), log_q, rtol=0, atol=1e-5)
    assert draw_in_blocks(offered, condition(q, 4), 0, generator=stream())[0].shape == (0, 4, 3)


def test_what_it_cannot_do_is_said() -> None:
    q = network()
    at = condition(q, 2)
    assert not q.refinable
    with pytest.raises(InputError, match=r"base distribution cannot be widened \(asked for 1.5 times\)"):
        q.draw(at, 2, generator=stream(), base_scale=1.5)
    with pytest.raises(InputError, match=r"cannot be widened"):
        q.log_q(torch.zeros(1, 2, 3), at, base_scale=1.5)
    with pytest.raises(InputError, match=r"no path gradient"):
        q.draw(at, 2, generator=stream(), path_gradient=True)
    with pytest.raises(InputError, match=r"gives 6 numbers of x \(observables\), the sbi network reads 5"):
        q.read(LinearGaussian(size=6), {"x": torch.zeros(2, 6)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "foo"}, r"file: sbi network: model: .*got 'foo'"),
        ({"hidden_features": 5}, r"sbi network: model: Field required"),
        ({"model": "nsf", "layers": 5}, r"unknown argument 'layers'; known: model"),
        ({"model": "nsf", "hidden_features": 10**9}, r"hidden_features: .*2048"),
        ({"model": "nsf", "embedding": {"kernel": 5}}, r"unknown argument 'embedding.kernel'"),
        ({"model": "zuko_nsf", "z_score_theta": "transform_to_unconstrained"}, r"z_score_theta"),
    ],
)
def test_an_unsupported_architecture_is_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        architecture_from(values, "file")


class HalfPlane(MultivariateNormal):
    """A joint prior that raises outside its support, as torch's distributions may."""

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.greater_than(0.0), 1)

    def log_prob(self, value: Tensor) -> Tensor:
        if bool((value <= 0).any()):
            raise ValueError("outside")
        return super().log_prob(value) + math.log(4)


def test_joint_prior_is_zero_outside_its_support() -> None:
    joint = HalfPlane(torch.zeros(2), torch.eye(2))
    prior = PriorWithinSupport(joint)
    theta = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [0.5, 0.5]])
    assert prior.log_prob(theta)[1] == -torch.inf
    assert torch.equal(prior.log_prob(theta)[[0, 2]], joint.log_prob(theta[[0, 2]]))
    assert bool((prior.log_prob(-theta[:1]) == -torch.inf).all())


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_x_that_float32_does_not_hold_is_refused_in_one_line(scale: float) -> None:
    with pytest.raises(InputError, match=r"zero or infinite in float32"):
        network("mdn").read(LinearGaussian(), {"x": scale * x_of(3)})
