"""Of what a calibration speaks: of simulations from the prior, or of those from the proposal alone.

Held-out simulations come from the proposal, so that a q without a peak that the proposal leaves out is calibrated on all of
them. Simulations from the prior would be no test of it: most posteriors of theirs lie outside of a narrow proposal, and none is
like the observation. What can be asked is whether the posteriors of the case's own observations have peaks that the proposal
does not reach; then the calibration says nothing of them, and does not pass. Continuous tails beyond an end of the proposal are
the weights' to mend, and the search of `infer` counts them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.estimators.support import SupportTransform
from pipeline.stages.peaks import posterior_peaks
from pipeline.stages.run import Run
from simulators.proposals import proposed_parameters

OBSERVATIONS = 20
"""Of a catalogue, from the first, whose peaks are looked for."""
MISSED = 0.01
"""Share of a posterior's mass under peaks outside the proposal above which the calibration does not pass."""
WITHIN = "within the proposal only: simulations from the prior were not tested"


@dataclass(frozen=True)
class Scope:
    """What the held-out simulations of a case cover.

    Attributes:
        of_proposal: theta came from a proposal.
        outside: of the mass under all peaks, the share of those that the proposal does not reach, of the observation
            where it is largest; NaN where no peaks could be looked for.
        observation: its identifier.
        where: the heaviest of those peaks, in words.
    """

    of_proposal: bool
    outside: float = math.nan
    observation: str = ""
    where: str = ""

    @property
    def misses_peaks(self) -> bool:
        """Whether peaks that matter lie outside the proposal."""
        return self.outside > MISSED

    @property
    def words(self) -> str:
        """`prior`, or what is not tested."""
        return WITHIN if self.of_proposal else "prior"

    def verdict(self, calibrated: bool) -> str:
        """The calibration in words; `calibrated`: no test of the ranks rejects."""
        ranks = "calibrated" if calibrated else "NOT calibrated"
        if self.misses_peaks:
            return (
                f"NOT passed: peaks that hold {100 * self.outside:.0f} % of the posterior of {self.observation!r} lie outside "
                f"simulate.proposal, the heaviest at {self.where} (`elboscope propose` lists them); within it {ranks}"
            )
        return (
            f"{ranks} within the proposal only (simulations from the prior were not tested)"
            if self.of_proposal
            else ranks
        )


def observed_file(run: Run) -> Path | None:
    """The case's observation, where there is one and theta comes from a proposal: the verdict then depends on it."""
    path = run.case.observation
    return path if run.case.simulate.proposal and path is not None and path.exists() else None


def scope_of(run: Run) -> Scope:
    """Look for peaks of the case's observations outside its proposal, with the simulator's own likelihood."""
    scope = Scope(of_proposal=bool(run.case.simulate.proposal))
    if observed_file(run) is None or run.learns_likelihood:
        return scope
    observed = run.observation()
    support = SupportTransform(run.prior)
    named = proposed_parameters(run.case.simulate.proposal)
    shown = [(d, p.name) for d, p in enumerate(run.simulator.parameters) if p.name in named]
    for n in range(min(len(observed), OBSERVATIONS)):
        x = {name: values[n : n + 1] for name, values in observed.x.items()}
        peaks = posterior_peaks(run.simulator, run.prior, x)
        if peaks is None or not len(peaks.log_mass):
            continue
        theta = support.to_theta(peaks.location)[0]
        is_outside = run.proposal.log_prob(theta) == -torch.inf
        outside = float(peaks.share[is_outside].sum())
        if not outside <= scope.outside:
            heaviest = theta[is_outside][:1].tolist()
            where = ", ".join(f"{name} {row[d]:.10g}" for row in heaviest for d, name in shown)
            scope = Scope(True, outside, observed.ids[n], where)
    return scope
