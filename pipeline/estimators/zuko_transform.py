r"""Transforms of zuko's flows, by name, between our affine map and our base.

    zuko_nsf    autoregressive rational-quadratic splines (Durkan et al. 2019, https://arxiv.org/abs/1906.04032)
    zuko_maf    autoregressive affine maps (Papamakarios et al. 2017, https://arxiv.org/abs/1705.07057)
    zuko_nice   affine couplings (Dinh et al. 2016, Real NVP, https://arxiv.org/abs/1605.08803)
    zuko_bpf    autoregressive Bernstein polynomials (Sick et al. 2020, https://arxiv.org/abs/2004.00464)

The autoregressive ones give a density in one pass and a draw in D; zuko_bpf also inverts by bisection, to 1e-6.

Left out, because their log_prob need not be a normalised density on R^D, or their draws do not follow it: NAF,
UNAF and SOSPF clip softly to [-11, 11] between layers, beyond which mass is lost, and invert on [-10, 10] alone;
GF saturates where erf does. With random weights in one dimension their integrals were 0.001 (NAF), 0.98 (UNAF, one
layer) and 0.96 (GF, base widened by 1.5). GMM has no reparameterised draws; CNF integrates an equation for every
density.
"""

from __future__ import annotations

from functools import partial

import torch
from nflows.transforms.base import Transform
from torch import Size, Tensor, nn

from pipeline.estimators.argument_checks import argument_checks_kept
from pipeline.settings import FlowSettings

with argument_checks_kept():
    import zuko


class ZukoTransform(Transform):
    """The composed transform of one of zuko's flows, from u to noise.

    Args:
        dimension: D.
        context: C.
        settings: kind and sizes.
    """

    def __init__(self, dimension: int, context: int, settings: FlowSettings) -> None:
        super().__init__()
        self.lazy: zuko.lazy.LazyTransform = _flow(dimension, context, settings).transform

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u -> noise, and log |d noise / du|."""
        return _detached_as_asked(self.lazy(context).call_and_ladj(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """noise -> u, and log |du / d noise|."""
        return _detached_as_asked(self.lazy(context).inv.call_and_ladj(inputs))


def _detached_as_asked(result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Bernstein polynomials differentiate themselves, and hand their graph on under `no_grad` too."""
    return result if torch.is_grad_enabled() else (result[0].detach(), result[1].detach())


def _flow(dimension: int, context: int, settings: FlowSettings) -> zuko.lazy.Flow:
    """The flow of which we take the transform."""
    bins, bound = settings.bins, settings.tail_bound
    elementwise: dict[str, tuple[object, list[tuple[int, ...]]]] = {
        "zuko_nsf": (partial(zuko.transforms.MonotonicRQSTransform, bound=bound), [(bins,), (bins,), (bins - 1,)]),
        "zuko_maf": (zuko.transforms.MonotonicAffineTransform, [(), ()]),
        "zuko_nice": (zuko.transforms.MonotonicAffineTransform, [(), ()]),
        "zuko_bpf": (partial(zuko.transforms.BoundedBernsteinTransform, bound=bound), [(bins + 1,)]),
    }
    univariate, shapes = elementwise[settings.kind]
    build = zuko.flows.NICE if settings.kind == "zuko_nice" else zuko.flows.MAF
    return build(
        dimension,
        context,
        transforms=settings.transforms,
        univariate=univariate,
        shapes=[Size(s) for s in shapes],
        hidden_features=[settings.hidden] * settings.blocks,
        activation=nn.SiLU,
    )
