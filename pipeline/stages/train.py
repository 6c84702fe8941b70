"""Stage `train`: the schedule of phases on stored simulations, into `posterior.safetensors`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.estimators.network import PosteriorNetwork
from pipeline.estimators.posterior import Posterior, new_network
from pipeline.estimators.typicality import Typicality
from pipeline.progress import console
from pipeline.rng import derived_seed
from pipeline.stages.run import Run, begin, finish, need_same_settings
from pipeline.stages.simulate import HELD_OUT
from pipeline.store import open_hdf5, read_data, write_text
from pipeline.training.data import FreshSimulations, TrainingSet, training_set
from pipeline.training.schedule import format_history, train_schedule
from simulators.priors import to_device
from simulators.protocol import Simulator

VERSION = 4
HELD_OUT_ROWS = 512
"""Held-out simulations used for checks while training; the rest is left to `validate` (typicality is ranked by all)."""


def train(run: Run) -> Path:
    """Train q(theta given x) on the simulations of this run."""
    simulations = run.input("simulate")
    need_same_settings(run, simulations, "simulate")
    relevant = run.relevant("seed", "simulator", "simulate", "train")
    inputs = {"simulations": simulations} | ({"likelihood": run.input("likelihood")} if run.learns_likelihood else {})
    key = begin(run, "train", VERSION, relevant, inputs)
    output = run.output("train")
    if key is None:
        return output
    _say_what_the_proposal_means(run)
    all_held_out, training = load_simulations(run, run.model)
    held_out = all_held_out.rows(slice(HELD_OUT_ROWS))
    network = _initial_network(run, training)
    prior = to_device(run.prior, run.device)
    proposal = prior if run.proposal is run.prior else to_device(run.proposal, run.device)
    fresh = FreshSimulations(run.model, prior, proposal, run.device)
    trained = train_schedule(
        network,
        case=run.case,
        phases=run.phases,
        simulator=run.model,
        prior=prior,
        proposal=proposal,
        training=fresh if run.case.train.data == "online" else training,
        held_out=held_out,
        folder=run.folder / "checkpoints",
        key=key.key,
    )
    history = format_history(trained.history)
    write_text(run.folder / "training.csv", history)
    outcomes = json.dumps([asdict(o) for o in trained.phases])
    counts = {"refused": trained.refused, "skipped": trained.skipped}
    attributes = key.attributes() | {"history": history, "phases": outcomes} | counts
    posterior = Posterior(
        run.case, run.model, network, typicality_model=_simulations_seen(network, training, all_held_out)
    )
    posterior.save(output, attributes=attributes)
    if trained.refused:
        console.print(f"train: {trained.refused} draws had no finite likelihood or prior: no weight, no gradient")
    if trained.skipped:
        console.print(f"train: {trained.skipped} steps had a gradient that was not finite, and were left out")
    final = next(o for o in reversed(trained.phases) if o.kept).after
    names = ("forward_log_q", "elbo", "ess_fraction")
    figures = ", ".join(f"{n} {final[f'held_out_{n}']:.3f}" for n in names if f"held_out_{n}" in final)
    return finish(run, key, f"held-out {figures}")


def load_simulations(run: Run, simulator: Simulator) -> tuple[TrainingSet, TrainingSet]:
    """Held-out and training simulations on the device of the run, as `simulator`, its likelihood learned or not, reads them."""
    path = run.input("simulate")
    data = read_data(path, observables=run.simulator.observables, parameters=run.simulator.parameters)
    if data.theta is None:
        raise InputError(f"{path}: /theta is missing")
    with open_hdf5(path) as file:
        count = int(np.asarray(file.attrs[HELD_OUT]))
    parts = []
    for name, rows in (("held-out", data.rows(0, count)), ("training", data.rows(count, len(data)))):
        part = rows.without_failed()
        if len(part) < len(rows):
            console.print(f"train: {len(rows) - len(part)} of {len(rows)} {name} simulations failed and are left out")
        if not len(part):
            raise InputError(f"{path}: all {name} simulations failed")
        assert part.theta is not None
        parts.append(
            training_set(simulator, part.theta, part.x, prior=run.prior, proposal=run.proposal, device=run.device)
        )
    return parts[0], parts[1]


def _simulations_seen(network: PosteriorNetwork, training: TrainingSet, held_out: TrainingSet) -> Typicality | None:
    """What tells whether an observation is like the simulations; None, and a line that says so, where there are too few."""
    try:
        return Typicality.fit(network.eval(), training.inputs, held_out.inputs)
    except InputError as error:
        console.print(f"train: no typicality of observations: {error}")
        return None


def _initial_network(run: Run, training: TrainingSet) -> PosteriorNetwork:
    """A network with weights drawn from the seed, standardised on the training set; or the one that joint training has left."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(run.case.seed, "train-initial"))
        network = new_network(run.case, run.model, training.inputs.features.shape[1])
    network = network.to(run.device)
    if run.learns_likelihood and run.case.likelihood.joint.enabled:
        from pipeline.stages.likelihood import joint_posterior

        network.load_state_dict(joint_posterior(run.input("likelihood")))
        return network
    network.standardize(training.theta, training.inputs)
    return network


def _say_what_the_proposal_means(run: Run) -> None:
    """A forward_kl phase under a proposal learns the proposal's posterior: never in silence."""
    if not run.case.simulate.proposal:
        return
    phases = run.phases
    unweighted = [i for i, p in enumerate(phases) if "forward_kl" in p.weights and not p.weighted]
    if unweighted:
        replaced = ", ".join(run.case.simulate.proposal)
        last = (
            "the weights of the certificate correct it"
            if len(phases) - 1 in unweighted or not phases[-1].needs_likelihood
            else f"phase {len(phases) - 1} ({phases[-1].label}) targets the prior's"
        )
        console.print(
            f"train: theta comes from a proposal ({replaced}): forward_kl in phase {', '.join(map(str, unweighted))} learns the proposal's posterior; {last}"
        )
