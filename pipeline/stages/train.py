"""Stage `train`: the schedule of phases on stored simulations, into `posterior.safetensors`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.distributions import Distribution

from pipeline.errors import InputError
from pipeline.estimators.network import NetworkInput, PosteriorNetwork
from pipeline.estimators.posterior import Posterior, new_network
from pipeline.estimators.typicality import Typicality, reference_of
from pipeline.progress import console
from pipeline.rng import derived_seed, generator
from pipeline.stages.contract import need_one_stream
from pipeline.stages.run import Run, StageKey, begin, finish, need_same_settings
from pipeline.stages.simulate import HELD_OUT
from pipeline.store import open_hdf5, write_text
from pipeline.training.data import FreshNoise, FreshSimulations, HostSet, Source, TrainingSet
from pipeline.training.gain import Gain, gains_of, words_of
from pipeline.training.launch import launch
from pipeline.training.outcome import Trained
from pipeline.training.prepared import prepared
from pipeline.training.processes import Processes
from pipeline.training.rows import SimulationRows
from pipeline.training.schedule import format_history, train_schedule
from pipeline.training.storage import load, storage_of, stored_simulations
from pipeline.training.stream import StreamedSet
from pipeline.training.together import together
from simulators.noise_free import WithSignal
from simulators.priors import sample, to_device
from simulators.proposals import proposed_parameters
from simulators.protocol import Simulator

VERSION = 6
HELD_OUT_ROWS = 512
"""Held-out simulations used for checks while training; the rest is left to `validate` (typicality is ranked by all)."""


def train(run: Run) -> Path:
    """Train q(theta given x) on the simulations of this run, in several processes where `train.devices` or a launcher says so."""
    with together(gpu=run.device.type == "cuda") as processes:
        return _train(run, processes)


def _train(run: Run, processes: Processes) -> Path:
    """As one of `processes`; alone where `train.devices` asks for more, it starts them."""
    simulations = run.input("simulate")
    need_same_settings(run, simulations, "simulate")
    fresh_noise = run.case.train.noise == "fresh"
    rows, held_out_count = simulation_rows(run, stored_signals(run) if fresh_noise else run.model)
    storage = storage_of(
        rows,
        held_out_count,
        memory_gb=run.case.train.memory_gb,
        batch=max(p.batch for p in run.phases),
        device=run.device,
    )
    # the order in which rows come is part of the content; all that hold the set in memory have the same
    order = {"order": None if storage.plan is None else asdict(storage.plan)}
    relevant = run.relevant("seed", "simulator", "simulate", "train") | order
    inputs = {"simulations": simulations} | ({"likelihood": run.input("likelihood")} if run.learns_likelihood else {})
    key = begin(run, "train", VERSION, relevant, inputs)
    output = run.output("train")
    if key is None:
        return output
    devices = _devices(run)
    if processes.world == 1 and devices > 1:
        _launch(run, devices)
        return output
    _say_what_the_proposal_means(run)
    _say_what_failed(rows, held_out_count)
    console.print(f"train: {storage}")
    # fresh noise is for training alone: what is held out is read as `run.model` reads it
    as_is = simulation_rows(run, run.model)[0] if fresh_noise else rows
    held_out = load(as_is, 0, held_out_count, device=run.device)
    training = stored_simulations(rows, held_out_count, storage, device=run.device)
    network, reference = _initial_network(run, training.head)
    prior = to_device(run.prior, run.device)
    proposal = prior if run.proposal is run.prior else to_device(run.proposal, run.device)
    source = _source(run, training, network, prior, proposal)
    del training  # with its features as they came, twice as large as what the network reads of them
    trained = train_schedule(
        network,
        meter=key.meter,
        case=run.case,
        phases=run.phases,
        simulator=run.model,
        prior=prior,
        proposal=proposal,
        training=source,
        held_out=held_out.rows(slice(HELD_OUT_ROWS)),
        folder=run.folder / "checkpoints",
        key=key.key,
        processes=processes,
    )
    if not processes.first:
        return output
    gains = gains_of(network.eval(), held_out, prior=prior)
    return _save(run, key, trained, network, _simulations_seen(network, reference, held_out), gains)


def _source(
    run: Run,
    stored: TrainingSet | HostSet | StreamedSet,
    network: PosteriorNetwork,
    prior: Distribution,
    proposal: Distribution,
) -> Source:
    """Where training pairs come from."""
    if run.case.train.data == "online":
        stream = generator(run.case.seed, "contract", device=run.device)
        need_one_stream(run.simulator, sample(proposal, 2, stream), seed=run.case.seed)
        return FreshSimulations(run.model, prior, proposal, run.device)
    if run.case.train.noise == "fresh":
        return FreshNoise(stored, stored_signals(run))
    return prepared(stored, network)


def _save(
    run: Run,
    key: StageKey,
    trained: Trained,
    network: PosteriorNetwork,
    typicality_model: Typicality | None,
    gains: tuple[Gain, Gain],
) -> Path:
    """Write the posterior and its training log, and say what was reached."""
    history = format_history(trained.history)
    write_text(run.folder / "training.csv", history)
    outcomes = json.dumps([asdict(o) for o in trained.phases])
    counts = {"refused": trained.refused, "skipped": trained.skipped}
    posterior = Posterior(run.case, run.model, network, typicality_model=typicality_model)
    over_prior, words = gains[0], words_of(*gains)
    learned = {
        "gain_over_prior": over_prior.mean,
        "gain_over_prior_error": over_prior.error,
        "learned_nothing": words,
    }
    posterior.save(
        run.output("train"),
        attributes=key.attributes(trained.cost) | {"history": history, "phases": outcomes} | counts | learned,
    )
    if words:
        console.print(f"train: {words}")
    if trained.refused:
        console.print(f"train: {trained.refused} draws had no finite likelihood or prior: no weight, no gradient")
    if trained.skipped:
        console.print(f"train: {trained.skipped} steps had a gradient that was not finite, and were left out")
    final = next(o for o in reversed(trained.phases) if o.kept).after
    names = ("forward_log_q", "elbo", "ess_fraction")
    figures = ", ".join(f"{n} {final[f'held_out_{n}']:.3f}" for n in names if f"held_out_{n}" in final)
    return finish(run, key, f"held-out {figures}")


def _devices(run: Run) -> int:
    """Processes that `train.devices` asks for."""
    asked, gpu = run.case.train.devices, run.device.type == "cuda"
    if asked == "auto":
        return torch.cuda.device_count() if gpu else 1
    if gpu and asked > torch.cuda.device_count():
        raise InputError(f"train.devices is {asked}, but torch sees {torch.cuda.device_count()} GPUs")
    return asked


def _launch(run: Run, devices: int) -> None:
    """Train in processes of their own, which read the settings as they are now."""
    settings = run.folder / "settings" / "train.devices.yaml"
    write_text(settings, yaml.safe_dump(run.case.dump(), sort_keys=False))
    launch(
        ["train", str(settings), "--run-dir", str(run.folder), "--round", str(run.round)],
        devices,
        logs=run.folder / "logs",
        threads=run.case.threads,
    )


def stored_signals(run: Run) -> WithSignal:
    """`run.model`, whose stored signals are observed anew.

    Raises:
        InputError: they are not stored.
    """
    if not run.case.simulate.signal:
        raise InputError("train.noise: fresh needs the noise-free signals: set simulate.signal: true")
    return WithSignal(run.model)


def simulation_rows(run: Run, simulator: Simulator) -> tuple[SimulationRows, int]:
    """The simulations of this run as `simulator` reads them, and how many of them, the first ones, are held out."""
    path = run.input("simulate")
    rows = SimulationRows(path, simulator, prior=run.prior, proposal=run.proposal)
    with open_hdf5(path) as file:
        return rows, int(np.asarray(file.attrs[HELD_OUT]))


def load_simulations(run: Run, simulator: Simulator) -> tuple[TrainingSet, TrainingSet]:
    """Held-out and training simulations on the device of the run, as `simulator`, its likelihood learned or not, reads them."""
    rows, count = simulation_rows(run, simulator)
    _say_what_failed(rows, count)
    return load(rows, 0, count, device=run.device), load(rows, count, rows.total, device=run.device)


def _say_what_failed(rows: SimulationRows, held_out: int) -> None:
    for name, start, stop in (("held-out", 0, held_out), ("training", held_out, rows.total)):
        failed = stop - start - rows.usable(start, stop)
        if failed:
            console.print(f"train: {failed} of {stop - start} {name} simulations failed and are left out")


def _simulations_seen(network: PosteriorNetwork, reference: NetworkInput, held_out: TrainingSet) -> Typicality | None:
    """What tells whether an observation is like the simulations; None, and a line that says so, where there are too few."""
    try:
        return Typicality.fit(network.eval(), reference, held_out.inputs)
    except InputError as error:
        console.print(f"train: no typicality of observations: {error}")
        return None


def _initial_network(run: Run, training: TrainingSet) -> tuple[PosteriorNetwork, NetworkInput]:
    """A network with weights drawn from the seed, standardised on the training set; or the one that joint training has left.

    With it the simulations that observations will be compared with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(run.case.seed, "train-initial"))
        network = new_network(run.case, run.model, training.inputs.features.shape[1])
    network = network.to(run.device)
    if run.learns_likelihood and run.case.likelihood.joint.enabled:
        from pipeline.stages.likelihood import joint_posterior

        network.load_state_dict(joint_posterior(run.input("likelihood")))
    else:
        network.standardize(training.theta, training.inputs)
    return network, reference_of(training.inputs)


def _say_what_the_proposal_means(run: Run) -> None:
    """A forward_kl phase under a proposal learns the proposal's posterior: never in silence."""
    if not run.case.simulate.proposal:
        return
    phases = run.phases
    unweighted = [i for i, p in enumerate(phases) if "forward_kl" in p.weights and not p.weighted]
    if unweighted:
        replaced = ", ".join(proposed_parameters(run.case.simulate.proposal))
        last = (
            "the weights of the certificate correct it"
            if len(phases) - 1 in unweighted or not phases[-1].needs_likelihood
            else f"phase {len(phases) - 1} ({phases[-1].label}) targets the prior's"
        )
        console.print(
            f"train: theta comes from a proposal ({replaced}): forward_kl in phase {', '.join(map(str, unweighted))} learns the proposal's posterior; {last}"
        )
