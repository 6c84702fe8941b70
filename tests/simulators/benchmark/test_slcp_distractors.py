"""slcp_distractors: the eight numbers that matter, the 92 that do not, and where they stand."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch
from scipy.stats import kstest, t

from simulators.benchmark.slcp import Slcp
from simulators.benchmark.slcp_distractors import SlcpDistractors, fixed_numbers


def test_the_observed_signal_is_found_among_the_distractors(reference: Path) -> None:
    simulator = SlcpDistractors()
    with h5py.File(reference / "reference" / "slcp.h5") as file:
        assert torch.equal(simulator.permutation, torch.from_numpy(file["distractor_permutation"][()]))
        for number in range(1, 6):
            signal, everything = (
                torch.from_numpy(file[f"observation_{number:02d}/{name}"][()])[None] for name in ("x", "x_distractors")
            )
            theta = torch.tensor([[0.7, -2.9, -1.0, -0.9, 0.6]], dtype=torch.float64)
            expected = Slcp().log_likelihood(theta, {"x": signal})
            torch.testing.assert_close(simulator.log_likelihood(theta, {"x": everything}), expected)


@pytest.mark.parametrize("number", range(5))
def test_reference_draws_follow_the_joint_density(observed, stein, number: int) -> None:
    _, x, draws = observed("slcp", dataset="x_distractors")[number]
    assert float(stein(SlcpDistractors(), x, draws, bound=3).abs().max()) < 5


def test_simulated_signal_is_that_of_slcp() -> None:
    theta = torch.tensor([[0.7, -2.9, -1.0, -0.9, 0.6]], dtype=torch.float64).expand(50, -1)
    x = SlcpDistractors().simulate(theta, generator=torch.Generator().manual_seed(3))["x"]
    alone = Slcp().simulate(theta, generator=torch.Generator().manual_seed(3))["x"]
    position = {float(v): i for i, v in enumerate(x[0])}
    columns = [position[float(v)] for v in alone[0]]
    assert torch.equal(x[:, columns], alone)


@pytest.mark.parametrize("direction", range(6))
def test_distractors_are_a_mixture_of_student_distributions(direction: int) -> None:
    """Any linear combination is a mixture of univariate t_2, with location a.mu_k and scale |A_k^T a|."""
    simulator = SlcpDistractors()
    values = simulator.distractors(
        torch.zeros(5000, 5, dtype=torch.float64), generator=torch.Generator().manual_seed(2)
    )
    a = torch.randn(92, dtype=torch.float64, generator=torch.Generator().manual_seed(direction))
    if direction < 3:
        a = torch.eye(92, dtype=torch.float64)[[0, 45, 91][direction]]
    locations, factors, _ = fixed_numbers()
    location, scale = (locations @ a).numpy(), (factors.transpose(1, 2) @ a).norm(dim=1).numpy()
    test = kstest((values @ a).numpy(), lambda v: t.cdf((v[:, None] - location) / scale, 2).mean(1))
    assert test.pvalue > 1e-4


def test_fixed_numbers_are_those_of_the_benchmark() -> None:
    """First entries of the file `gmm.torch` and of `permutation_idx.torch` of sbibm 1.1.0."""
    locations, factors, permutation = fixed_numbers()
    expected = torch.tensor([7.45071229516849, -2.0739645175677697, 9.715328071510388], dtype=torch.float64)
    torch.testing.assert_close(locations[0, :3], expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(float(factors[0, 0, 0]), 3.423324718497607, rtol=1e-14, atol=0)
    assert permutation[:10].tolist() == [87, 47, 39, 9, 25, 21, 26, 94, 41, 30]


def test_features_are_tame() -> None:
    simulator = SlcpDistractors()
    x = simulator.simulate(torch.zeros(2000, 5), generator=torch.Generator().manual_seed(0))
    assert float(x["x"].abs().max()) > 1000
    assert float(simulator.features(x).abs().max()) < 15
