"""A proposal for training, read off the observation: the simulator's first guess and a few of its scales around it.

A posterior that is a thousandth of its prior is met by one draw of the prior in a thousand for each parameter. The network
learns most from simulations like the observation; q targets the prior all the same, and its certificate says so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.estimators.support import SupportTransform
from pipeline.stages.run import Run
from simulators.priors import IndependentPrior
from simulators.protocol import pilot_of


def propose(run: Run, *, widths: float = 5.0) -> dict[str, tuple[float, float]]:
    r"""Lower and upper end of a uniform proposal of each parameter, of the first observation of the case.

    $T(l_d \mp w s_d)$ with location l and scale s of the pilot on the unconstrained space; inside the prior's support by
    construction. Numbers are rounded to a thousandth of the range.

    Args:
        widths: w.

    Raises:
        InputError: no pilot, a joint or periodic prior, or widths that are not positive.
    """
    if not widths > 0:
        raise InputError(f"propose: --widths must be positive, got {widths:g}")
    if not isinstance(run.prior, IndependentPrior) or any(p.periodic for p in run.simulator.parameters):
        raise InputError("propose: needs a prior of its own for each parameter, none of them periodic")
    x = {name: values[:1] for name, values in run.observation().x.items()}
    pilot = pilot_of(run.simulator, x)
    if pilot is None:
        raise InputError(f"propose: simulator {run.simulator.name!r} has no pilot: write simulate.proposal yourself")
    support = SupportTransform(run.prior)
    low, high = (_theta(support, pilot[0] + sign * widths * pilot[1]) for sign in (-1, 1))
    names = [p.name for p in run.simulator.parameters]
    return {n: _rounded(float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)}


def proposal_yaml(run: Run, *, widths: float = 5.0) -> str:
    """`propose`, as it goes into a config."""
    lines = [f"    {name}: {{uniform: [{low}, {high}]}}" for name, (low, high) in propose(run, widths=widths).items()]
    return "\n".join(["simulate:", "  proposal:", *lines]) + "\n"


def _theta(support: SupportTransform, u: Tensor) -> Tensor:
    with torch.no_grad():
        return support.to_theta(u.double())[0][0]


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Ends to a thousandth of the range, inwards, so that they stay inside the support."""
    digits = max(0, math.ceil(3 - math.log10(high - low)))
    unit = 10**digits
    return math.ceil(low * unit) / unit, math.floor(high * unit) / unit
