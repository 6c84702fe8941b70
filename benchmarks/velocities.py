"""Cost of velocities of HD 164922 (401 points, two eccentric planets, three jitters) against radvel, one thread.

    python -m benchmarks.velocities

radvel has no gradient: the cost of one by central differences, two calls a parameter, stands beside ours by autograd. A
simulation of radvel's is its model at all epochs, and NumPy's noise and offsets. CPU time of the process, best of several
rounds, both sides in one run. radvel is an oracle of the tests: `make dev`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from simulators.multi_instrument_velocity import MultiInstrumentVelocity
from simulators.unconstrained import UnconstrainedPrior

DATA = Path(__file__).resolve().parents[1] / "data" / "hd164922.h5"
ROUNDS = 5
BATCH = 1_000
STARS = 64


def simulator() -> MultiInstrumentVelocity:
    """HD 164922 with a jitter for each instrument."""
    shape = {"secosw": {"uniform": [-1, 1]}, "sesinw": {"uniform": [-1, 1]}, "logk": {"uniform": [-2.3, 4.6]}}
    planets: list[Any] = [
        {"period": {"uniform": [900, 1600]}, "conjunction": {"uniform": [2456200, 2457300]}} | shape,
        {"period": {"uniform": [60, 95]}, "conjunction": {"uniform": [2456241, 2456316]}} | shape,
    ]
    jit = {name: {"uniform": [0, 10]} for name in ("k", "j", "a")}
    return MultiInstrumentVelocity(planets=planets, jit=jit, design={"observation": str(DATA)})


def radvel_calls(
    model: MultiInstrumentVelocity, theta: np.ndarray, x: dict[str, torch.Tensor]
) -> tuple[Callable[[], float], Callable[[], np.ndarray]]:
    """radvel's composite likelihood at theta, offsets marginalised by radvel; and a simulation with its model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import radvel
    parameters = radvel.Parameters(2, basis="per tc secosw sesinw logk")
    values = dict(zip([p.name for p in model.parameters], theta.tolist(), strict=True))
    for name in (f"{n}{p}" for p in (1, 2) for n in ("per", "tc", "logk", "secosw", "sesinw")):
        parameters[name] = radvel.Parameter(value=values[name])
    parameters["dvdt"], parameters["curv"] = radvel.Parameter(value=0.0), radvel.Parameter(value=0.0)
    orbit, parts = radvel.RVModel(parameters, time_base=2456778), []
    for i, name in enumerate(model.instruments):
        of = x["instrument"][0] == i
        t, v, error = (x[key][0][of].double().numpy() for key in ("time", "velocity", "velocity_error"))
        part = radvel.likelihood.RVLikelihood(orbit, t, v, error, suffix=f"_{name}")
        part.params[f"gamma_{name}"] = radvel.Parameter(value=0.0, vary=False, linear=True)
        part.params[f"jit_{name}"] = radvel.Parameter(value=values[f"jit_{name}"])
        parts.append(part)
    composite = radvel.likelihood.CompositeLikelihood(parts)
    composite.vector.dict_to_vector()
    time, error = (x[name][0].double().numpy() for name in ("time", "velocity_error"))
    code = x["instrument"][0].numpy().astype(int)
    jitter = np.array([values[f"jit_{name}"] for name in model.instruments])[code]
    stream = np.random.default_rng(0)

    def simulate() -> np.ndarray:
        noise = np.hypot(error, jitter) * stream.standard_normal(len(time))
        return orbit(time) + noise + (model.offset_scale * stream.standard_normal(len(model.instruments)))[code]

    return lambda: float(composite.logprob()), simulate


def microseconds(call: Callable[[], object], number: int, repeat: int = 1) -> float:
    """CPU time of one of `number` units of work done by a call, best of `ROUNDS` (us)."""
    call()
    best = np.inf
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(repeat):
            call()
        best = min(best, (time.process_time() - start) / repeat)
    return 1e6 * best / number


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    model = simulator()
    x, _ = model.read_observation(DATA)
    location, _ = model.pilot(x)
    theta = UnconstrainedPrior.of(model.parameters).theta(location)
    many = theta.expand(BATCH, 1, -1).clone()
    theirs, their_simulation = radvel_calls(model, theta[0].numpy(), x)
    difference = abs(theirs() - float(model.log_likelihood(theta, x)))

    def gradient() -> object:
        return torch.autograd.grad(model.log_likelihood(points, x).sum(), points)

    points = many[:64].clone().requires_grad_()
    with torch.no_grad():
        ours = microseconds(lambda: model.log_likelihood(many, x), BATCH)
        alone = microseconds(lambda: model.log_likelihood(theta, x), 1, repeat=20)
        stream = torch.Generator().manual_seed(0)
        draws = theta.expand(256, -1)
        simulation = microseconds(lambda: model.simulate(draws, generator=stream), 256)
        stars = model.simulate(theta.expand(STARS, -1), generator=stream)
        # a clone is another star to the simulator, which keeps the fits of the latest
        fit = microseconds(lambda: model.pilot({k: v.clone() for k, v in stars.items()}), STARS)
    by_autograd, radvel_call = microseconds(gradient, 64), microseconds(theirs, 1, repeat=100)
    their_simulation_us = microseconds(their_simulation, 1, repeat=100)
    by_differences = 2 * len(model.parameters) * radvel_call
    typer.echo(f"log likelihoods differ by {difference:.1e}")
    typer.echo("| CPU time, one thread | ours, us | radvel, us | ratio |")
    typer.echo("|---|---|---|---|")
    typer.echo(f"| log likelihood, batch of {BATCH} | {ours:.0f} | {radvel_call:.0f} | {radvel_call / ours:.1f} |")
    typer.echo(f"| log likelihood, one theta | {alone:.0f} | {radvel_call:.0f} | {radvel_call / alone:.1f} |")
    typer.echo(
        f"| with gradient, batch of 64 (radvel: differences) | {by_autograd:.0f} | {by_differences:.0f} | {by_differences / by_autograd:.1f} |"
    )
    typer.echo(
        f"| simulation, batch of 256 | {simulation:.0f} | {their_simulation_us:.0f} | {their_simulation_us / simulation:.1f} |"
    )
    typer.echo(f"| first guess (periodograms and fit), batch of {STARS} | {fit:.0f} | | |")


if __name__ == "__main__":
    main()
