"""`elboscope check`: find mistakes in a case in seconds, before anything long is started."""

from __future__ import annotations

from torch import Tensor

from pipeline.errors import InputError
from pipeline.estimators.support import unconstrained_dimension
from pipeline.progress import console
from pipeline.rng import generator
from pipeline.stages.contract import need_context_kept, need_one_stream, need_steady_inputs
from pipeline.stages.contract_likelihood import need_gradient, need_likelihood
from pipeline.stages.run import Run
from pipeline.stages.shard import not_finite, numbers
from simulators.one_form import masks_of
from simulators.priors import need_in_support, sample
from simulators.protocol import Data, Simulator, has_likelihood, observe, signal_of, simulate_with_reasons

ROWS = 16


def check(run: Run) -> None:
    """Build the simulator, draw a few simulations, try its contract, read the observation.

    Raises:
        InputError: whatever is wrong, in one line.
    """
    simulator = run.simulator
    theta = _draw_theta(run)
    theta, x = _simulations(run, theta)
    need_one_stream(simulator, theta[:2], seed=run.case.seed)
    need_context_kept(simulator, theta[:1], {k: v[:1] for k, v in x.items()}, seed=run.case.seed)
    features = need_steady_inputs(simulator, x, dimension=unconstrained_dimension(run.prior))
    console.print(
        f"{len(simulator.parameters)} parameters: {', '.join(f'{p.name} [{p.unit}]' if p.unit else p.name for p in simulator.parameters)}"
    )
    console.print(
        f"observables: {', '.join(f'{o.name} {o.shape} [{o.unit}] {o.role}' for o in simulator.observables)}; {features.shape[1]} features"
    )
    _say_masks(simulator)
    _weigh(run, theta, x)
    if run.case.observation is not None:
        data = run.observation()
        console.print(f"observation {run.case.observation}: {len(data)} row(s): {', '.join(data.ids[:5])}")
    console.print(f"schedule: {', '.join(f'{p.label} {p.steps} steps' for p in run.phases)}; device {run.device}")
    console.print("ok")


def _draw_theta(run: Run) -> Tensor:
    """Draws of the proposal (N, D), inside the prior's support and with a prior density each."""
    theta = sample(run.proposal, ROWS, generator(run.case.seed, "check", device=run.device))
    need_in_support(run.prior, theta.cpu(), "simulate.proposal")
    for parameter, column in zip(run.simulator.parameters, theta.T, strict=True):
        if len(column.unique()) < ROWS:
            raise InputError(
                f"simulator {run.simulator.name!r}: {ROWS} draws of {parameter.name!r} hold {len(column.unique())} different numbers: give its prior "
                "float64 numbers, torch.tensor(2457000.5, dtype=torch.float64) or distribution_from_spec; float32 has steps of 0.25 there"
            )
    density = run.prior.log_prob(theta.cpu())
    if tuple(density.shape) != (ROWS,) or not bool(density.isfinite().all()):
        raise InputError(
            f"simulator {run.simulator.name!r}: log_prob of the prior gave shape {tuple(density.shape)}, expected ({ROWS},), all finite at its own draws"
        )
    return theta


def _simulations(run: Run, theta: Tensor) -> tuple[Tensor, Data]:
    """theta and x of the simulations that succeed, and those that do not counted."""
    stream = generator(run.case.seed, "check", 1, device=run.device)
    x, failures = simulate_with_reasons(run.simulator, theta, generator=stream)
    failures = failures | not_finite(x, known=failures)
    if run.case.simulate.signal:
        signal = signal_of(run.simulator, theta[:2], None, generator=stream)
        observe(run.simulator, signal, theta[:2], generator=stream)
    if not failures:
        return theta, x
    first = min(failures)
    words = f"{len(failures)} of {ROWS} simulations failed, the first at theta = ({numbers(theta[first])}): {failures[first].reason}"
    if len(failures) == ROWS:
        raise InputError(f"simulator {run.simulator.name!r}: {words}")
    console.print(words)
    good = [i for i in range(ROWS) if i not in failures]
    return theta[good], {k: v[good] for k, v in x.items()}


def _say_masks(simulator: Simulator) -> None:
    """Say where `ingest` would read a mask that no observable names."""
    used = set(masks_of(simulator.observables).values())
    for o in simulator.observables:
        if o.role == "context" and not o.unit and o.shape and "mask" in o.name and o.name not in used:
            console.print(
                f"context {o.name!r} is named by no observable: if it is 1 where numbers are there and 0 where they are absent, declare "
                f"present={o.name!r} with each observable that it masks"
            )


def _weigh(run: Run, theta: Tensor, x: Data) -> None:
    simulator = run.simulator
    needing = [p for p in run.phases if p.needs_likelihood]
    if has_likelihood(simulator):
        values = need_likelihood(simulator, theta, x)
        console.print(f"log_likelihood of simulations: {float(values.min()):.1f} to {float(values.max()):.1f}")
        if not run.learns_likelihood:
            _climb(run, theta, x)
    if run.learns_likelihood:
        console.print(f"the likelihood is learned from {run.case.simulate.count} simulations: stage likelihood")
    elif not has_likelihood(simulator):
        console.print("no log_likelihood: objective forward_kl only, and no certificates")
        for phase in needing:
            raise InputError(
                f"train.phases: objective {phase.label} needs log_likelihood, which simulator {simulator.name!r} has not"
            )


def _climb(run: Run, theta: Tensor, x: Data) -> None:
    """A likelihood without gradient is refused where training climbs it, and else said."""
    try:
        need_gradient(run.simulator, theta, x)
    except InputError as error:
        if any({"elbo", "iwelbo"} & set(p.weights) for p in run.phases):
            raise
        console.print(str(error))
