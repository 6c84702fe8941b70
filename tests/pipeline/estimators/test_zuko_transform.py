"""zuko's transforms by name: of the sizes asked for, and one way fast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from zuko.transforms import MonotonicRQSTransform

from pipeline.estimators.zuko_transform import ZukoTransform
from pipeline.settings import FlowSettings

KINDS = ["zuko_nsf", "zuko_maf", "zuko_nice", "zuko_bpf"]


def transform(kind: Any, **sizes: Any) -> ZukoTransform:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ZukoTransform(3, 2, FlowSettings(kind=kind, **({"transforms": 4, "hidden": 7, "blocks": 3} | sizes)))


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_the_settings(kind: str) -> None:
    layers = transform(kind).lazy.transforms
    assert len(layers) == 4  # pyright: ignore[reportArgumentType]
    weights = [p for p in layers[0].parameters() if p.dim() == 2]  # pyright: ignore[reportIndexIssue]
    assert [len(w) for w in weights[:-1]] == [7, 7, 7]


def test_bins_and_bound_reach_the_spline() -> None:
    lazy = transform("zuko_nsf", bins=6, tail_bound=2.5).lazy.transforms[0]  # pyright: ignore[reportIndexIssue]
    assert lazy.shapes == [(6,), (6,), (5,)]
    spline = lazy.univariate(torch.zeros(6), torch.zeros(6), torch.zeros(5))
    assert isinstance(spline, MonotonicRQSTransform)
    assert float(spline.horizontal[-1]) == 2.5


@pytest.mark.parametrize("kind", ["zuko_nsf", "zuko_maf", "zuko_bpf"])
def test_a_density_is_one_pass_and_a_draw_one_a_component_and_its_jacobian(kind: str) -> None:
    flow = transform(kind, transforms=1)
    passes: list[int] = []
    network = flow.lazy.transforms[0].hyper  # pyright: ignore[reportIndexIssue]
    network.register_forward_hook(lambda *_: passes.append(1))
    u, context = torch.zeros(5, 3), torch.ones(5, 2)
    flow(u, context)
    assert len(passes) == 1
    flow.inverse(u, context)
    assert len(passes) == 1 + 3 + 1
