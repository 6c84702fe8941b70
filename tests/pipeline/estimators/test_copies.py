"""Copies side by side are what each would be alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.estimators.copies import ParallelLinear, clip_each, copies_of
from pipeline.estimators.network import Condition

MakeGaussian = Callable[..., Any]


@pytest.mark.parametrize("bias", [True, False])
def test_each_row_meets_its_own_weights(bias: bool) -> None:
    parallel = ParallelLinear(torch.nn.Linear(3, 2, bias=bias).double(), 4)
    with torch.no_grad():
        for p in parallel.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    x = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    got = parallel(x)
    for r in range(4):
        expected = x[:, r] @ parallel.weight[r].T + (parallel.bias[r] if parallel.bias is not None else 0.0)
        torch.testing.assert_close(got[:, r], expected)
    torch.testing.assert_close(parallel(x.reshape(20, 3)), got.reshape(20, 2))  # flattened as flows of rows do it
    torch.testing.assert_close(parallel(x[0]), got[0])


def test_copies_start_as_the_network_is(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=3, rows=4, shift=0.7, scale=1.3)
    copies = copies_of(case.network, 4)
    theta = torch.randn(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(copies.log_q(theta, case.condition), case.network.log_q(theta, case.condition))


def test_a_gradient_reaches_its_own_copy_alone(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2, rows=3)
    copies = copies_of(copies_of(case.network, 3), 3)  # a copy of copies is made of as many
    copies.flow.requires_grad_(True)
    theta = torch.randn(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    copies.log_q(theta, case.condition)[:, 1].sum().backward()
    gradients = [p.grad for p in copies.flow.parameters() if p.grad is not None]
    assert any(bool(g[1].abs().max() > 0) for g in gradients)
    assert all(float(g[[0, 2]].abs().max()) == 0 for g in gradients)


def test_a_copy_alone_equals_that_copy_among_others(make_gaussian: MakeGaussian) -> None:
    case = make_gaussian(dimension=2, rows=3, shift=0.5)
    alone = copies_of(case.network, 1)
    condition = Condition(*(t[1:2] for t in case.condition))
    theta = torch.randn(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = copies_of(case.network, 3).log_q(theta, case.condition)[:, 1]
    torch.testing.assert_close(alone.log_q(theta[:, 1:2], condition)[:, 0], together)


def test_norms_are_clipped_copy_by_copy() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2, 4))]
    for p, size in zip(parameters, (3.0, 4.0), strict=True):
        p.grad = torch.zeros_like(p)
        p.grad[0, 0], p.grad[1, 0] = size, size / 100
    clip_each(parameters, 1.0, copies=2)
    norms = torch.stack([p.grad.square().sum(1) for p in parameters if p.grad is not None]).sum(0).sqrt()
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.05]))
