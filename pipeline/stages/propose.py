"""A proposal for training, read off the observation: boxes around every peak of its posterior that could matter.

A posterior that is a thousandth of its prior is met by one draw of the prior in a thousand for each parameter. The network
learns most from simulations like the observation; q targets the prior all the same, and its certificate says so. What no
box holds, no simulation is like: a peak that is left out here is missing until the search of `infer` finds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.distributions import Distribution

from pipeline.errors import InputError
from pipeline.estimators.support import SupportTransform
from pipeline.stages.peaks import LogJoint, posterior_peaks, reach, starts
from pipeline.stages.run import Run
from simulators.priors import IndependentPrior
from simulators.protocol import Data, pilot_of

OWN_SHARE, LEAST_SHARE = 5e-3, 1e-4
"""Of the posterior mass: peaks with less than the first share one box, those with less than the second are left out. Laplace's
estimate is off by a factor of a few where peaks are skewed."""

NEAR_END = 0.05
"""Of a range: so near to an end of the support it is taken to reach it."""


@dataclass(frozen=True)
class Box:
    """Ranges around one peak, or around several small ones.

    Attributes:
        ranges: lower and upper end of each parameter.
        share: of the posterior mass under all peaks, by Laplace's estimate; NaN where there is no likelihood to tell.
        peaks: how many it holds.
    """

    ranges: dict[str, tuple[float, float]]
    share: float
    peaks: int = 1

    @property
    def weight(self) -> float:
        """In the mixture, not yet scaled: with the root of the share an estimate that is off by four costs a factor of two."""
        return math.sqrt(self.share) if math.isfinite(self.share) else 1.0


def propose(run: Run, *, widths: float = 5.0) -> list[Box]:
    r"""Boxes for the first observation of the case, the heaviest peak first.

    $T(l_d \mp w s_d)$ with location l and scale s of each peak on the unconstrained space, those of the posterior where the
    simulator has a differentiable likelihood (and further where it stays high: `peaks.reach`), and of the pilot otherwise;
    inside the prior's support by construction.

    Args:
        widths: w.

    Raises:
        InputError: nothing to start from, a joint or periodic prior, or widths that are not positive.
    """
    if not (widths > 0 and math.isfinite(widths)):
        raise InputError(f"propose: --widths must be positive, got {widths:g}")
    if not isinstance(run.prior, IndependentPrior) or any(p.periodic for p in run.simulator.parameters):
        raise InputError("propose: needs a prior of its own for each parameter, none of them periodic")
    x = {name: values[:1] for name, values in run.observation().x.items()}
    support = SupportTransform(run.prior)
    *ends, share = _peaks(run, support, x, widths)
    low, high = (support.to_theta(end)[0] for end in ends)
    own = (share.isnan() | (share >= OWN_SHARE)).nonzero()[:, 0].tolist()
    small = [k for k in range(len(share)) if k not in own]
    names = [p.name for p in run.simulator.parameters]
    boxes = []
    for peaks in [*([k] for k in own), *([small] if small else [])]:
        ends = zip(names, run.prior.marginals, low[peaks].amin(0).tolist(), high[peaks].amax(0).tolist(), strict=True)
        ranges = {name: _rounded(name, *_to_the_end(prior, *pair)) for name, prior, *pair in ends}
        boxes.append(Box(ranges, float(share[peaks].sum()), len(peaks)))
    return boxes


def proposal_yaml(run: Run, *, widths: float = 5.0) -> str:
    """`propose`, as it goes into a config."""
    boxes = propose(run, widths=widths)
    lines = ["simulate:", "  proposal:"]
    if len(boxes) == 1:
        lines += [f"    {text}" for text in _range_lines(boxes[0])]
        return "\n".join(lines) + "\n"
    lines.append("    mixture:")
    total = sum(box.weight for box in boxes)
    for number, box in enumerate(boxes, 1):
        what = f"peak {number}" if box.peaks == 1 else f"{box.peaks} small peaks"
        strength = f"{box.share:.2g} of the posterior" if math.isfinite(box.share) else "of unknown strength"
        lines.append(f"      - weight: {box.weight / total:.3g} # {what}: {strength}")
        lines += [f"        {text}" for text in _range_lines(box)]
    return "\n".join(lines) + "\n"


def _range_lines(box: Box) -> list[str]:
    """`name: {uniform: [low, high]}` for each parameter, numbers as YAML reads them."""
    ranges = {name: yaml.safe_dump(list(pair), default_flow_style=True).strip() for name, pair in box.ranges.items()}
    return [f"{name}: {{uniform: {text}}}" for name, text in ranges.items()]


@torch.no_grad()
def _peaks(run: Run, support: SupportTransform, x: Data, widths: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of the ranges on the unconstrained space, (K, D) each, and share of the posterior, (K,); of peaks that could matter."""
    simulator = run.simulator
    found = None if run.learns_likelihood else posterior_peaks(simulator, run.prior, x)
    if found is not None:
        if not len(found.log_mass):
            raise InputError("propose: the posterior is zero at every start: write simulate.proposal yourself")
        kept = found.share >= LEAST_SHARE
        log_joint = LogJoint(simulator, support, run.prior, x)
        low, high = reach(log_joint, found, widths)
        return low[kept], high[kept], found.share[kept]
    pilot = pilot_of(simulator, x)
    if pilot is None:
        raise InputError(
            f"propose: simulator {simulator.name!r} has no pilot, nor candidates and a likelihood with a gradient: write "
            "simulate.proposal yourself"
        )
    location = starts(simulator, support, x)
    location = location[1:] if len(location) > 1 else location  # the pilot is the first of the candidates
    unknown = location.new_full((len(location),), torch.nan if len(location) > 1 else 1.0)
    half = widths * pilot[1].double()
    return location - half, location + half, unknown


def _to_the_end(prior: Distribution, low: float, high: float) -> tuple[float, float]:
    """A range that all but reaches an end of the support reaches it: jitters of zero, which are infinitely far in u, among them."""
    support: Any = prior.support
    near = NEAR_END * (high - low)
    lowest, highest = (
        float(getattr(support, "lower_bound", -math.inf)),
        float(getattr(support, "upper_bound", math.inf)),
    )
    return (lowest if low - lowest < near else low), (highest if highest - high < near else high)


def _rounded(name: str, low: float, high: float) -> tuple[float, float]:
    """Ends to a thousandth of their distance, inwards, so that they stay inside the support.

    Raises:
        InputError: floating-point numbers of this size cannot tell them apart.
    """
    if not high > low:
        raise InputError(
            f"propose: {name}: the posterior at {low!r} is narrower than the steps of floating-point numbers there: measure "
            "the parameter from a zero nearer to it"
        )
    digits = math.ceil(3 - math.log10(high - low))
    unit = 10.0**-digits
    rounded_low, rounded_high = round(low, digits), round(high, digits)
    inner_low = rounded_low if rounded_low >= low else round(rounded_low + unit, digits)
    inner_high = rounded_high if rounded_high <= high else round(rounded_high - unit, digits)
    return (inner_low, inner_high) if inner_low < inner_high else (low, high)
