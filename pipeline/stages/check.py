"""`elboscope check`: find mistakes in a case in seconds, before anything long is started."""

from __future__ import annotations

import torch

from pipeline.errors import InputError
from pipeline.estimators.network import network_input
from pipeline.progress import console
from pipeline.rng import generator
from pipeline.stages.run import Run
from pipeline.stages.shard import checked, not_finite, numbers
from simulators.priors import sample
from simulators.protocol import has_likelihood, log_likelihood, simulate_with_reasons

ROWS = 16


def check(run: Run) -> None:
    """Build the simulator, draw a few simulations, weigh them, read the observation.

    Raises:
        InputError: whatever is wrong, in one line.
    """
    simulator = run.simulator
    stream = generator(run.case.seed, "check")
    theta = sample(run.proposal, ROWS, stream)
    x, failures = simulate_with_reasons(simulator, theta, generator=stream)
    x = {o.name: checked(simulator, x, o, ROWS) for o in simulator.observables}
    failures = failures | not_finite(x, known=failures)
    if failures:
        first = min(failures)
        words = f"{len(failures)} of {ROWS} simulations failed, the first at theta = ({numbers(theta[first])}): {failures[first].reason}"
        if len(failures) == ROWS:
            raise InputError(f"simulator {simulator.name!r}: {words}")
        console.print(words)
        good = [i for i in range(ROWS) if i not in failures]
        theta, x = theta[good], {k: v[good] for k, v in x.items()}
    features = network_input(simulator, x).features
    if not bool(features.isfinite().all()):
        raise InputError(f"simulator {simulator.name!r}: features of simulated data are not finite")
    console.print(
        f"{len(simulator.parameters)} parameters: {', '.join(f'{p.name} [{p.unit}]' if p.unit else p.name for p in simulator.parameters)}"
    )
    console.print(
        f"observables: {', '.join(f'{o.name} {o.shape} [{o.unit}] {o.role}' for o in simulator.observables)}; {features.shape[1]} features"
    )
    if has_likelihood(simulator):
        values = log_likelihood(simulator, theta, x)
        if tuple(values.shape) != (len(theta),) or bool(torch.isnan(values).any()):
            raise InputError(
                f"simulator {simulator.name!r}: log_likelihood gave shape {tuple(values.shape)} or NaN, expected ({len(theta)},)"
            )
        console.print(f"log_likelihood of simulations: {float(values.min()):.1f} to {float(values.max()):.1f}")
    if run.learns_likelihood:
        console.print(f"the likelihood is learned from {run.case.simulate.count} simulations: stage likelihood")
    elif not has_likelihood(simulator):
        console.print("no log_likelihood: objective forward_kl only, and no certificates")
        for phase in (p for p in run.phases if p.needs_likelihood):
            raise InputError(
                f"train.phases: objective {phase.label} needs log_likelihood, which simulator {simulator.name!r} has not"
            )
    if run.case.observation is not None:
        data = run.observation()
        console.print(f"observation {run.case.observation}: {len(data)} row(s): {', '.join(data.ids[:5])}")
    console.print(f"schedule: {', '.join(f'{p.label} {p.steps} steps' for p in run.phases)}; device {run.device}")
    console.print("ok")
