"""theta stays in the support of the prior, and the Jacobian of the way there is counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Dirichlet,
    Distribution,
    Exponential,
    HalfNormal,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)

from pipeline.estimators.support import SupportTransform
from simulators.priors import IndependentPrior


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


REAL = Normal(number(0), number(1))
NARROW = Uniform(number(1000), number(1001), validate_args=False)
UNIT = Beta(number(2), number(3))
POSITIVE = HalfNormal(number(2))
PRIORS: dict[str, Distribution] = {
    "real": IndependentPrior([REAL, REAL]),
    "interval": IndependentPrior([Uniform(number(-2), number(5), validate_args=False), UNIT]),
    "interval far from zero": IndependentPrior([NARROW]),
    "half-line": IndependentPrior([POSITIVE, LogNormal(number(0), number(1)), Exponential(number(2))]),
    "all kinds": IndependentPrior([REAL, NARROW, POSITIVE, UNIT, REAL]),
    "joint real": MultivariateNormal(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)),
    "joint interval": Independent(Uniform(numbers(-1, 3), numbers(1, 9), validate_args=False), 1),
    "joint half-line": Independent(HalfNormal(numbers(1, 2)), 1),
}


@pytest.fixture(params=PRIORS)
def prior(request: pytest.FixtureRequest) -> Distribution:
    return PRIORS[request.param]


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def inside(prior: Distribution, theta: Tensor) -> bool:
    """In the support, and where the density is not zero."""
    return bool(prior.support.check(theta).all() and prior.log_prob(theta).isfinite().all())


def test_theta_is_in_the_support_and_comes_back(prior: Distribution) -> None:
    transform = SupportTransform(prior)
    v = normal(40, 6, prior.event_shape[0])
    theta, log_det = transform.to_theta(v)
    assert theta.shape == v.shape
    assert log_det.shape == (40, 6)
    assert inside(prior, theta)
    torch.testing.assert_close(transform.to_unconstrained(theta), v, rtol=0, atol=1e-7)


def test_log_det_is_the_jacobians(prior: Distribution) -> None:
    transform = SupportTransform(prior)
    v = normal(8, prior.event_shape[0])
    _, log_det = transform.to_theta(v)
    for row, value in zip(v, log_det, strict=True):
        jacobian = torch.as_tensor(torch.autograd.functional.jacobian(lambda t: transform.to_theta(t)[0], row))
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], value, rtol=0, atol=1e-9)


def test_a_bounded_map_is_torchs(prior: Distribution) -> None:
    """biject_to(prior.support), in which the network's location and scale are declared to be."""
    v = normal(40, prior.event_shape[0])
    torch.testing.assert_close(
        SupportTransform(prior).to_theta(v)[0], torch.distributions.biject_to(prior.support)(v), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [30.0, 10.0, -10.0, -30.0])
def test_far_out_is_still_inside(prior: Distribution, dtype: torch.dtype, far: float) -> None:
    """Training is in float32, where a sigmoid is 1 from 17 on, and a uniform density is zero at its upper end."""
    transform = SupportTransform(prior)
    v = torch.full((2, prior.event_shape[0]), far, dtype=dtype, requires_grad=True)
    theta, log_det = transform.to_theta(v)
    assert theta.dtype == log_det.dtype == dtype
    assert inside(prior, theta.detach())
    assert bool(log_det.isfinite().all())
    (gradient,) = torch.autograd.grad(theta.sum() + log_det.sum(), v)
    assert bool(gradient.isfinite().all())
    assert bool(transform.to_unconstrained(theta.detach()).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_way_back_keeps_dtype_and_argument(prior: Distribution, dtype: torch.dtype) -> None:
    transform = SupportTransform(prior)
    v = normal(5, prior.event_shape[0], dtype=dtype)
    theta, log_det = transform.to_theta(v)
    assert theta.dtype == log_det.dtype == dtype
    before = theta.clone()
    assert transform.to_unconstrained(theta).dtype == dtype
    assert torch.equal(theta, before)
    assert torch.equal(v, normal(5, prior.event_shape[0], dtype=dtype))


def test_prior_draws_come_back_to_themselves(prior: Distribution) -> None:
    transform = SupportTransform(prior)
    torch.manual_seed(0)
    theta = prior.sample((200,))
    again, _ = transform.to_theta(transform.to_unconstrained(theta))
    torch.testing.assert_close(again, theta, rtol=1e-9, atol=1e-9)


def test_ends_of_an_interval_are_finite_on_the_line() -> None:
    """A simulation may lie on the edge itself, where the logit is infinite."""
    prior = PRIORS["interval"]
    v = SupportTransform(prior).to_unconstrained(numbers(-2, 0).expand(1, -1))
    assert bool(v.isfinite().all())
    assert bool((v < -30).all())


def test_density_of_a_uniform_theta_is_a_logistic() -> None:
    r"""$p(v) = p(\theta) |d\theta/dv| = \sigma(v) (1 - \sigma(v))$."""
    prior = IndependentPrior([NARROW])
    v = torch.linspace(-8, 8, 9, dtype=torch.float64)[:, None]
    theta, log_det = SupportTransform(prior).to_theta(v)
    expected = torch.nn.functional.logsigmoid(v) + torch.nn.functional.logsigmoid(-v)
    torch.testing.assert_close(prior.log_prob(theta) + log_det, expected[:, 0])


def test_bounds_are_kept_in_float64() -> None:
    """In float32 both bounds of this transit time would be 2457000."""
    epoch = IndependentPrior([Uniform(number(2457000.03), number(2457000.11), validate_args=False)])
    theta, _ = SupportTransform(epoch).to_theta(normal(200, 1))
    assert inside(epoch, theta)
    assert float(theta.std()) > 0.01


# ------------------------------------------------------------ simplex and circle


def simplex() -> Dirichlet:
    return Dirichlet(numbers(0.8, 2.0, 3.0, 1.5))


def test_simplex_is_torchs_stick_breaking_on_one_number_less() -> None:
    transform = SupportTransform(simplex())
    assert transform.dimension == 3
    v = normal(50, 6, 3)
    theta, log_det = transform.to_theta(v)
    reference = torch.distributions.biject_to(simplex().support)
    torch.testing.assert_close(theta, reference(v))
    torch.testing.assert_close(log_det, reference.log_abs_det_jacobian(v, theta))
    torch.testing.assert_close(transform.to_unconstrained(theta), v)


def test_density_on_the_simplex_integrates_to_one() -> None:
    """Dirichlet in the numbers v of its stick breaking: the density of the first D - 1 numbers and their Jacobian."""
    prior = Dirichlet(numbers(1.5, 2.0, 3.0))
    axis = torch.arange(-14, 14, 0.05, dtype=torch.float64)
    theta, log_det = SupportTransform(prior).to_theta(torch.cartesian_prod(axis, axis))
    total = (prior.log_prob(theta) + log_det).exp().sum() * 0.05**2
    assert float(total) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [30.0, -30.0])
def test_far_out_on_the_simplex_is_still_inside(dtype: torch.dtype, far: float) -> None:
    v = torch.full((2, 3), far, dtype=dtype, requires_grad=True)
    theta, log_det = SupportTransform(simplex()).to_theta(v)
    assert theta.dtype == log_det.dtype == dtype
    assert bool((theta > 0).all() and log_det.isfinite().all())
    torch.testing.assert_close(theta.detach().sum(-1), torch.ones(2, dtype=dtype))
    (gradient,) = torch.autograd.grad(theta.log().sum() + log_det.sum(), v)
    assert bool(gradient.isfinite().all())
    assert bool(SupportTransform(simplex()).to_unconstrained(theta.detach()).isfinite().all())


def circle() -> SupportTransform:
    prior = IndependentPrior([REAL, Uniform(number(10), number(370), validate_args=False), NARROW])
    return SupportTransform(prior, (False, True, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_periodic_parameter_is_an_angle_and_whole_turns_do_not_matter(dtype: torch.dtype) -> None:
    v = normal(60, 3, dtype=dtype)
    v[:4, 1] = torch.tensor([-torch.pi, torch.pi, 0.0, torch.pi - 1e-7])
    theta, log_det = circle().to_theta(v)
    assert bool(((theta[:, 1] >= 10) & (theta[:, 1] < 370)).all())
    assert float(theta[2, 1]) == pytest.approx(190, abs=1e-4)
    turned = v + torch.tensor([0.0, 4 * torch.pi, 0.0], dtype=dtype)
    difference = torch.deg2rad(circle().to_theta(turned)[0] - theta)[:, 1]
    assert float(torch.sin(difference / 2).abs().max()) < (1e-5 if dtype == torch.float32 else 1e-12)
    expected = SupportTransform(IndependentPrior([REAL, NARROW])).to_theta(v[:, [0, 2]])[1]
    torch.testing.assert_close(log_det, expected + math.log(180 / math.pi))
    back = circle().to_unconstrained(theta)[:, 1]
    assert bool(((back >= -3.1416) & (back <= 3.1416)).all())
    assert float(torch.sin((back - v[:, 1]) / 2).abs().max()) < (1e-5 if dtype == torch.float32 else 1e-12)


def test_periodic_components_of_a_joint_prior_are_refused() -> None:
    with pytest.raises(ValueError, match=r"periodic parameters need a prior of their own each"):
        SupportTransform(PRIORS["joint interval"], (True, False)).to_theta(normal(2, 2))
