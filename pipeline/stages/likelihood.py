"""Stage `likelihood`: p(s(x) given theta) from simulations, where the simulator has no tractable likelihood, or hides it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pipeline.cost import Cost, Meter, cost_from, total_cost
from pipeline.diagnostics.calibration import Calibration, calibrate
from pipeline.errors import InputError
from pipeline.estimators.learned_likelihood import WithLearnedLikelihood, likelihood_from, model_header, summary_from
from pipeline.estimators.likelihood import SUMMARY, LikelihoodNetwork
from pipeline.estimators.posterior import new_network
from pipeline.estimators.summary import Summary, chosen_kind, kind_words, numbers_of
from pipeline.progress import console, progress_bar
from pipeline.rng import generator
from pipeline.schema import PROVENANCE, STAGE, SUMMARY_HASH
from pipeline.settings import CaseSettings
from pipeline.stages.run import Run, begin, finish, need_same_settings
from pipeline.stages.train import load_simulations
from pipeline.store import read_data, read_safetensors, reading, write_safetensors
from pipeline.training.data import TrainingSet, joined, training_set
from pipeline.training.gain import gain_by_parameter
from pipeline.training.likelihood import LEAST, Learner, set_levels
from pipeline.training.maximum_likelihood import Fitted
from simulators.protocol import Simulator

VERSION = 4
WATCHED = 2_000
"""Held-out simulations on which learning is stopped, at most; half of them where there are fewer than twice as many."""
TESTED, DRAWS = 1_000, 200
"""Held-out simulations whose s is ranked among draws of the ensemble given their theta, and such draws."""
DIAGNOSTICS = "diagnostics"
JOINT = "joint."
"""Of tensors of a posterior that was trained with the likelihood."""


def likelihood(run: Run) -> Path:
    """Learn the likelihood of this run's simulator from its simulations."""
    if not run.learns_likelihood:
        raise InputError(
            f"likelihood: simulator {run.simulator.name!r} has a log_likelihood of its own; to hide it set likelihood.when: always"
        )
    inputs = run.likelihood_inputs()
    need_same_settings(run, inputs["simulations"], "simulate")
    relevant = run.relevant("seed", "simulator", "simulate", "likelihood")
    if run.case.likelihood.joint.enabled:
        relevant["posterior"] = {k: getattr(run.case.train, k).model_dump(mode="json") for k in ("flow", "embedding")}
    key = begin(run, "likelihood", VERSION, relevant, inputs)
    output = run.output("likelihood")
    if key is None:
        return output
    held_out, training = load_simulations(run, run.simulator)
    for path in run.added_simulations():
        training = joined([training, _added(run, path)])
    count = min(WATCHED, len(held_out) // 2)
    watched, tested = held_out.rows(slice(count)), held_out.rows(slice(count, None))
    settings = run.case.likelihood
    summary = _given_summary(run, held_out.rows(slice(2)))
    together_or_each = 1 if settings.joint.enabled else settings.members
    trained = 1 + together_or_each + (summary is None and chosen_kind(settings.summary, run.simulator) == "learned")
    with progress_bar("likelihood", trained * settings.steps) as advance:
        resumable, spent = _resumable(run, key.key, key.meter, advance)
        learner = Learner(
            run.simulator,
            settings,
            training,
            watched,
            run.case.seed,
            advance,
            resumable,
            lambda n, features: new_network(run.case, WithLearnedLikelihood(run.simulator, n), features),
        )
        learned = learner.learn(summary)
    network = learned.network
    figures = set_levels(network, tested)
    calibration = rank_summaries(network, tested.rows(slice(TESTED)), seed=run.case.seed)
    gains = gain_by_parameter(network, tested.rows(slice(TESTED)), seed=run.case.seed)
    blind = [name for name, gain in gains.items() if gain.is_none]
    names = [f"s{n}" for n in network.summary.kept.tolist()]
    diagnostics = figures | learned.held_out | {
        "simulations": len(training),
        "tested": min(len(tested), TESTED),
        "calibrated": bool(calibration.passed),
        "ks_p_value": dict(zip(names, np.asarray(calibration.ks_p_value).tolist(), strict=True)),
        "tarp_p_value": float(calibration.tarp.p_value),
        "steps": learned.steps,
        "gain_by_parameter": {name: asdict(gain) for name, gain in gains.items()},
        "blind_to": blind,
    }  # fmt: skip
    header = model_header(network) | {DIAGNOSTICS: json.dumps(diagnostics, sort_keys=True)}
    posterior = {} if learned.posterior is None else learned.posterior.state_dict()
    tensors = network.state_dict() | {JOINT + k: v for k, v in posterior.items()}
    write_safetensors(output, tensors, key.attributes(total_cost(spent)) | header)
    for leftover in _folder(run).glob("likelihood-*.safetensors"):
        leftover.unlink()
    word = "calibrated" if calibration.passed else "NOT calibrated"
    console.print(
        f"likelihood: of {network.summary.shape.kept} numbers of {kind_words(network.summary.shape.kind)}; ranks of held-out ones {word}, "
        f"least p-value {calibration.least_p_value:.3f} of {len(calibration.ks_p_value) + 1} tests"
    )
    if blind:
        console.print(
            f"likelihood: it does not depend on {', '.join(blind)} (another value costs {', '.join(str(gains[n]) for n in blind)}); "
            "if the data do, check that the summary keeps it, and likelihood.steps and learning_rate"
        )
    spread = (
        f", spread of {settings.members} members {figures['held_out_spread']:.3f} nats" if settings.members > 1 else ""
    )
    return finish(run, key, f"held-out log p(s|theta) {figures['held_out_log_prob']:.3f}{spread}")


def rank_summaries(network: LikelihoodNetwork, data: TrainingSet, *, seed: int) -> Calibration:
    """SBC of the likelihood itself: each held-out s among draws of the ensemble given its theta, and TARP of both."""
    if len(data) < LEAST:
        raise InputError(
            f"likelihood: only {len(data)} held-out simulations are left to test it on; raise simulate.held_out"
        )
    read = network.read(data.x)
    stream = generator(seed, "likelihood-ranks", device=data.theta.device)
    draws = network.sample(data.theta, read, DRAWS, generator=stream)
    s = read[SUMMARY] + network.summary.noise(len(data), stream)
    return calibrate(network.summary.standardized(s)[0].cpu(), draws.cpu(), seed=seed)


def load_likelihood(path: Path, simulator: Simulator) -> WithLearnedLikelihood:
    """The simulator with the likelihood that this stage has learned, on the CPU.

    Raises:
        InputError: not a file of this stage, or of another simulator.
    """
    tensors, header = _read(path)
    return likelihood_from(tensors, header, simulator, source=str(path))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file of this stage."""
    tensors, header = read_safetensors(path)
    if header.get(STAGE) != "likelihood":
        raise InputError(f"{path}: not a likelihood learned by Elboscope")
    return {k: v for k, v in tensors.items() if not k.startswith(JOINT)}, header


def joint_posterior(path: Path) -> dict[str, Tensor]:
    """Weights of the posterior that was trained with the likelihood.

    Raises:
        InputError: none was.
    """
    tensors, _ = read_safetensors(path)
    found = {k.removeprefix(JOINT): v for k, v in tensors.items() if k.startswith(JOINT)}
    if not found:
        raise InputError(
            f"{path}: holds no posterior, it was not trained with likelihood.joint.enabled; run `elboscope likelihood` again"
        )
    return found


def diagnostics_of(path: Path) -> dict[str, Any]:
    """What the stage found on held-out simulations, and the digest of the summary."""
    _, header = read_safetensors(path)
    with reading(path):
        return json.loads(header[DIAGNOSTICS]) | {SUMMARY_HASH: header[SUMMARY_HASH]}


def _added(run: Run, path: Path) -> TrainingSet:
    """Simulations of a round; where their theta came from does not matter to p(s|theta)."""
    data = read_data(path, observables=run.simulator.observables, parameters=run.simulator.parameters)
    assert data.theta is not None
    return training_set(run.simulator, data.theta, data.x, prior=run.prior, proposal=run.prior, device=run.device)


def _given_summary(run: Run, data: TrainingSet) -> Summary | None:
    """The summary of another model, where the settings name its file; `data` are a few simulations of this one."""
    path = run.case.likelihood.summary.file or run.first_summary()
    if path is None:
        return None
    tensors, header = _read(path)
    summary = summary_from(tensors, header, run.simulator, source=str(path)).to(run.device)
    given, read = numbers_of(summary.shape.kind, run.simulator, data.x).shape[1], summary.shape.read
    if given != read:
        raise InputError(
            f"likelihood.summary.file: {path} reads {read} numbers, simulator {run.simulator.name!r} gives {given}"
        )
    console.print(f"likelihood: summary of {path}")
    return summary


def _folder(run: Run) -> Path:
    return run.output("likelihood").parent / "checkpoints"


def _resumable(run: Run, key: str, meter: Meter, advance: Callable[..., None]) -> tuple[Any, list[Cost | None]]:
    """Each member is kept when it is done, and a killed run takes it from there; and a list of what each has cost."""
    settings: CaseSettings = run.case

    spent: list[Cost | None] = []

    def member(index: int, network: nn.Module, make: Callable[[nn.Module], Fitted]) -> Fitted:
        path = _folder(run) / f"likelihood-{index}.safetensors"
        if path.is_file():
            tensors, header = read_safetensors(path)
            if header.get("key") == key:
                with reading(path):
                    network.load_state_dict(tensors)
                    fitted = Fitted(network, float(header["held_out"]), int(header["steps"]))
                    cost = cost_from(header.get(PROVENANCE))
                network.eval().requires_grad_(False)
                advance(settings.likelihood.steps)
                spent.append(cost)
                return fitted
        fitted = make(network)
        state: dict[str, Tensor] = dict(fitted.network.state_dict())
        cost = meter.lap()
        spent.append(cost)
        found = {"key": key, "held_out": repr(fitted.held_out), "steps": fitted.steps}
        write_safetensors(path, state, found | {PROVENANCE: cost.text()})
        return fitted

    return member, spent
