"""Priors on the whole of R^D."""

from __future__ import annotations

import torch

from simulators.priors import distribution_from_spec
from simulators.protocol import Parameter
from simulators.unconstrained import UnconstrainedPrior

SPECS = ({"uniform": [-2, 0]}, {"normal": [1, 3]}, {"half_normal": 2}, {"beta": [2, 3]})


def prior() -> UnconstrainedPrior:
    return UnconstrainedPrior.of([Parameter(f"p{i}", distribution_from_spec(s)) for i, s in enumerate(SPECS)])


def test_the_density_of_u_has_integral_one() -> None:
    axis = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
    for spec in SPECS:
        one = UnconstrainedPrior.of([Parameter("p", distribution_from_spec(spec))])
        density = one.log_prob(axis[:, None]).exp()
        assert abs(float(torch.trapezoid(density, axis)) - 1) < 1e-6


def test_the_center_is_the_median_and_a_standard_deviation() -> None:
    location, spread = prior().center()
    median = torch.stack([m.icdf(torch.tensor(0.5, dtype=torch.float64)) for m in prior().marginals])
    torch.testing.assert_close(prior().theta(location), median)
    assert abs(float(location[1]) - 1) < 1e-9
    assert abs(float(spread[1]) / 3 - 1) < 0.01  # of N(1, 3), 16 to 84 % is two standard deviations
