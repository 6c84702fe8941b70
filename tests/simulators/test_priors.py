"""Priors from specifications, and their products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import LogNormal, MultivariateNormal, Normal, Uniform, biject_to

from simulators.priors import (
    IndependentPrior,
    distribution_from_spec,
    prior_of,
    sample,
    to_device,
)
from simulators.protocol import Parameter

FAMILIES: dict[str, tuple[list[float], Any]] = {
    "normal": ([1.0, 2.0], stats.norm(1, 2)),
    "uniform": ([-1.0, 3.0], stats.uniform(-1, 4)),
    "half_normal": ([2.0], stats.halfnorm(scale=2)),
    "log_normal": ([0.5, 0.3], stats.lognorm(0.3, scale=math.exp(0.5))),
    "beta": ([2.0, 5.0], stats.beta(2, 5)),
}


def all_families() -> IndependentPrior:
    return IndependentPrior([distribution_from_spec({name: numbers}) for name, (numbers, _) in FAMILIES.items()])


@pytest.mark.parametrize("family", FAMILIES)
def test_density_and_quantiles_are_scipys(family: str) -> None:
    numbers, oracle = FAMILIES[family]
    prior = distribution_from_spec({family: numbers})
    q = torch.tensor([0.01, 0.3, 0.5, 0.99], dtype=torch.float64)
    x = prior.icdf(q)
    assert x.dtype == torch.float64
    np.testing.assert_allclose(x.numpy(), oracle.ppf(q.numpy()), rtol=1e-10)
    np.testing.assert_allclose(prior.log_prob(x).numpy(), oracle.logpdf(x.numpy()), rtol=1e-10)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"gaussian": [0, 1]}, r"unknown distribution 'gaussian'; known: normal, uniform"),
        ({"normal": [0, -1]}, r"jit: normal \[0, -1\]: Expected parameter scale"),
        ({"uniform": [2, 1]}, r"jit: uniform \[2, 1\]"),
        ({"normal": [0]}, r"normal takes \[mean, standard deviation\], got \[0\]"),
        ({"log_normal": [1, 2, 3]}, r"log_normal takes \[mean and standard deviation"),
        ({"normal": ["a", 1]}, r"normal takes numbers"),
        ({"normal": None}, r"normal takes \[mean"),
        ({"normal": [0, math.inf]}, r"finite numbers"),
        ({"normal": [0, 1], "uniform": [0, 1]}, r"expected one of"),
        (3.0, r"expected one of"),
    ],
)
def test_a_bad_specification_says_what_was_expected(spec: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distribution_from_spec(spec, "jit")  # pyright: ignore[reportArgumentType]


def test_one_number_needs_no_list_and_text_of_a_number_is_one() -> None:
    assert float(distribution_from_spec({"half_normal": 2}).mean) == pytest.approx(2 * math.sqrt(2 / math.pi))
    as_text: Any = {"normal": ["1e-3", 1]}
    assert float(distribution_from_spec(as_text).mean) == 1e-3  # YAML 1.1 reads 1e-3 as text


def test_product_is_the_sum_of_logarithms() -> None:
    prior = all_families()
    theta = sample(prior, 50, torch.Generator().manual_seed(1))
    expected = sum(o.logpdf(theta[:, d].numpy()) for d, (_, o) in enumerate(FAMILIES.values()))
    np.testing.assert_allclose(prior.log_prob(theta).numpy(), expected, rtol=1e-10)
    assert prior.log_prob(theta.reshape(5, 10, -1)).shape == (5, 10)


def test_outside_the_support_is_minus_infinity_without_nan_in_the_gradient() -> None:
    prior = all_families()
    theta = sample(prior, 3, torch.Generator().manual_seed(1))
    theta[0, 1], theta[1, 2], theta[2, 4] = 7.0, -1.0, 1.5
    theta.requires_grad_()
    log_prob = prior.log_prob(theta)
    assert bool((log_prob == -torch.inf).all())
    (gradient,) = torch.autograd.grad(torch.where(log_prob.isfinite(), log_prob, 0.0).sum(), theta)
    assert bool(gradient.isfinite().all())


def test_support_maps_to_the_whole_space_and_back() -> None:
    prior = all_families()
    theta = sample(prior, 20, torch.Generator().manual_seed(2))
    transform = biject_to(prior.support)
    torch.testing.assert_close(transform(transform.inv(theta)), theta, rtol=1e-10, atol=1e-10)
    wild = transform(20 * torch.randn(1000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    assert bool(torch.isfinite(wild).all())


def test_quantile_function_of_the_product() -> None:
    prior = all_families()
    middle = prior.icdf(torch.full((2, 5), 0.5, dtype=torch.float64))
    np.testing.assert_allclose(middle[0].numpy(), [o.median() for _, o in FAMILIES.values()], rtol=1e-10)


def test_draws_depend_on_the_generator_alone() -> None:
    prior = all_families()
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = sample(prior, 4, torch.Generator().manual_seed(5))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, sample(prior, 4, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, sample(prior, 4, torch.Generator().manual_seed(6)))


def test_draws_have_the_moments_of_the_prior() -> None:
    prior = all_families()
    theta = sample(prior, 20_000, torch.Generator().manual_seed(7))
    error = prior.stddev / math.sqrt(20_000)
    assert bool(((theta.mean(0) - prior.mean).abs() < 5 * error).all())
    torch.testing.assert_close(theta.std(0), prior.stddev, rtol=0.05, atol=0)


def test_a_moved_copy_is_the_same_distribution() -> None:
    prior = all_families()
    theta = sample(prior, 4, torch.Generator().manual_seed(5))
    moved = to_device(prior, "cpu")
    assert moved is not prior
    assert torch.equal(moved.log_prob(theta), prior.log_prob(theta))


class Joint:
    """A simulator with a joint prior."""

    name = "joint"
    parameters = (Parameter("a"), Parameter("b"))
    prior = MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))


def test_prior_of_takes_the_joint_one_and_refuses_none() -> None:
    assert prior_of(Joint()) is Joint.prior  # pyright: ignore[reportArgumentType]

    class Without:
        name = "without"
        parameters = (Parameter("a"), Parameter("b"))

    with pytest.raises(ValueError, match=r"'without': no prior for a, b"):
        prior_of(Without())  # pyright: ignore[reportArgumentType]


class Days:
    """Priors as torch has them by default, in float32; the second made of parts."""

    name = "days"
    parameters = (
        Parameter("t0", Uniform(2_457_000.0, 2_457_001.0)),
        Parameter("strain", Normal(0.0, 1e-30)),
        Parameter("size", LogNormal(0.0, 1.0)),
    )


def test_priors_in_float32_are_used_in_float64() -> None:
    """Draws of t0 lay on four places a quarter of a day apart, and the square of 1e-30 is zero in float32."""
    prior = prior_of(Days())  # pyright: ignore[reportArgumentType]
    theta = sample(prior, 1_000, torch.Generator().manual_seed(1))
    assert theta.dtype == torch.float64
    assert [len(column.unique()) for column in theta.T] == [1_000, 1_000, 1_000]
    assert bool(prior.log_prob(theta).isfinite().all())
    assert prior.log_prob(theta).dtype == torch.float64


def test_a_prior_whose_numbers_float32_does_not_hold_is_refused() -> None:
    class Bright:
        name = "bright"
        parameters = (Parameter("luminosity", Normal(1e44, 1e43, validate_args=False)),)

    with pytest.raises(ValueError, match=r"prior of luminosity: .* give larger ones as torch.tensor"):
        prior_of(Bright())  # pyright: ignore[reportArgumentType]
