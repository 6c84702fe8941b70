r"""Rounds for one observation: simulate more where q puts its mass, learn the likelihood again, until nothing changes.

    theta  ~  0.8 [ draws of q(theta|x), each displaced by half the posterior's width ]  +  0.2 p(theta)

The likelihood p(s|theta) does not depend on where theta was drawn, and neither does the ELBO: nothing is to be corrected for
(with forward KL the posterior would be that of the proposal). The summary is that of the first round, so that evidences
of all rounds are of the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cost import Meter
from pipeline.errors import InputError
from pipeline.estimators.standardize import location_and_scale
from pipeline.estimators.support import SupportTransform
from pipeline.progress import console, progress_bar
from pipeline.rng import generator
from pipeline.stages.infer import infer
from pipeline.stages.likelihood import likelihood
from pipeline.stages.run import Run
from pipeline.stages.train import train
from pipeline.store import (
    check_sum,
    complete_or_absent,
    content_key,
    input_digest,
    open_hdf5,
    read_key,
    record_sums,
    stamp,
    write_data,
)
from simulators.priors import sample
from simulators.protocol import context_of, simulate

VERSION = 2
FROM_Q, BROADER = 0.8, 0.5
BLOCK = 4_096
"""Simulations between two points at which a run may stop."""
LEARNED = ("likelihood", "train", "infer")
AGREE = 2.0
"""Standard errors within which two rounds have the same evidence."""


@dataclass(frozen=True)
class Found:
    """What a round says of the observation: log evidence with its errors (Monte Carlo, networks), share of draws outside."""

    log_evidence: float
    error: float
    outside: float
    verdict: str


def learn_in_rounds(run: Run) -> None:
    """Likelihood, q and posterior of the case's observation in up to `rounds` rounds; the last becomes that of the run.

    Raises:
        InputError: no learned likelihood, or not exactly one observation.
    """
    if not run.learns_likelihood:
        raise InputError(
            f"rounds: simulator {run.simulator.name!r} has a log_likelihood, nothing is learned; set rounds: 1"
        )
    observed = run.observation()
    if len(observed) != 1:
        raise InputError(f"rounds: expected one observation, got {len(observed)}; set rounds: 1")
    before: Found | None = None
    this = run
    for number in range(1, run.case.rounds + 1):
        this = replace(run, round=number)
        for stage in (likelihood, train, infer):
            stage(this)
        found = found_in(this.output("infer"))
        stable = before is not None and is_stable(before, found, run.case.infer.most_outside)
        console.print(_line(number, before, found, stable))
        if stable or number == run.case.rounds:
            break
        simulate_round(this)
        before = found
    _forget_later_rounds(run, this.round)
    for stage in LEARNED:
        _adopt(run, stage, this.output(stage))


def simulate_round(run: Run) -> Path:
    """Simulations around the posterior of a round, under the observing conditions of the observation."""
    inference, output = run.output("infer"), run.round_simulations(run.round)
    count = run.case.likelihood.round_simulations or run.case.simulate.count
    settings = run.relevant("seed", "simulator") | {"count": count}
    inputs = {"inference": input_digest(inference)}
    key = content_key("round", VERSION, settings, inputs)
    if read_key(output) == key:
        console.print(f"rounds: {output} is up to date")
        return output
    meter = Meter()
    stream = generator(run.case.seed, "round", run.round, device=run.device)
    theta = propose(run, _delivered(run, inference).to(run.device), count, stream)
    context = {k: v.to(run.device) for k, v in context_of(run.simulator, run.observation().x).items()}
    parts = []
    with progress_bar(f"round {run.round}", count) as advance:
        for some in theta.split(BLOCK):
            repeated = {k: v.expand(len(some), *v.shape[1:]) for k, v in context.items()}
            parts.append(simulate(run.simulator, some, repeated or None, generator=stream))
            advance(len(some))
    x = {o.name: torch.cat([p[o.name] for p in parts]) for o in run.simulator.observables}
    bad = sum(int((~v.isfinite()).sum()) for v in x.values())
    if bad:
        raise InputError(f"simulator {run.simulator.name!r}: {bad} values are NaN or infinite near the posterior")
    write_data(
        output,
        observables=run.simulator.observables,
        parameters=run.simulator.parameters,
        x=x,
        theta=theta,
        attributes=stamp(stage="round", key=key, settings=run.case.dump(), inputs=inputs, cost=meter.lap()),
    )
    console.print(f"rounds: {output} {count} simulations")
    return output


def propose(run: Run, draws: Tensor, count: int, stream: torch.Generator) -> Tensor:
    r"""theta of new simulations, (count, D): on the unconstrained space $v + h L \epsilon$, $h = 1/2$, $L L^T$ the draws' covariance."""
    support = SupportTransform(run.prior, [p.periodic for p in run.simulator.parameters])
    v = support.to_unconstrained(draws.double().cpu())
    near = round(FROM_Q * count)
    chosen = v[torch.randint(len(v), (near,), generator=stream, device=stream.device).cpu()]
    mean, scale = location_and_scale(v)
    width = torch.where(scale > 0, 1 / scale, 0.0)
    z = (v - mean) * scale  # of order one, whatever the unit of theta
    covariance = torch.cov(z.T).reshape(v.shape[1], v.shape[1]) + 1e-12 * torch.eye(v.shape[1], dtype=v.dtype)
    noise = torch.randn(near, v.shape[1], generator=stream, device=stream.device, dtype=v.dtype).cpu()
    moved, _ = support.to_theta(chosen + BROADER * width * (noise @ torch.linalg.cholesky(covariance).T))
    far = sample(run.prior, count - near, stream).double().cpu()
    return torch.cat([moved, far]).to(stream.device)


def found_in(inference: Path) -> Found:
    """Evidence and trust of the first observation of an inference file."""
    with open_hdf5(inference) as file:
        c: Any = file["certificate"]
        monte_carlo, networks = float(c["log_evidence_error"][0]), float(c["surrogate_error"][0])
        return Found(
            float(c["log_evidence"][0]),
            math.hypot(monte_carlo, networks),
            float(c["surrogate_outside"][0]),
            c["verdict"].asstr()[0],
        )


def is_stable(before: Found, now: Found, most_outside: float) -> bool:
    """Whether another round would be in vain: the same evidence within the errors, and draws inside what was simulated."""
    apart = abs(now.log_evidence - before.log_evidence)
    return (
        now.verdict != "failed" and now.outside <= most_outside and apart <= AGREE * math.hypot(before.error, now.error)
    )


def _line(number: int, before: Found | None, now: Found, stable: bool) -> str:
    change = "" if before is None else f", {now.log_evidence - before.log_evidence:+.3f} from the round before"
    end = ": stable" if stable else ""
    return f"rounds: {number}: log evidence {now.log_evidence:.3f} ± {now.error:.3f}{change}, {100 * now.outside:.1f} % of draws outside what was simulated{end}"


def _delivered(run: Run, inference: Path) -> Tensor:
    """Delivered draws of the first observation, (L, D)."""
    with open_hdf5(inference) as file:
        group: Any = file["posterior"]
        columns: Mapping[str, Any] = {p.name: group[p.name][0, :, 0] for p in run.simulator.parameters}
    return torch.from_numpy(np.stack(list(columns.values()), axis=1)).double()


def _forget_later_rounds(run: Run, last: int) -> None:
    """Simulations that an earlier run with other settings added after what is now the last round."""
    for number in range(last, run.case.rounds + 1):
        run.round_simulations(number).unlink(missing_ok=True)


def _adopt(run: Run, stage: str, source: Path) -> None:
    """The output of the last round under the name of the run's own."""
    target = run.output(stage)
    if read_key(source) == read_key(target):
        return
    check_sum(source)
    run.sums(stage).unlink(missing_ok=True)
    with complete_or_absent(target) as temporary:
        temporary.write_bytes(source.read_bytes())
    record_sums(run.folder, stage, [target])
