"""Stage `compare`: emcee and nautilus on the same likelihood and prior, and how far each is from us."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch.distributions import Distribution

from pipeline.baselines.emcee_sampler import run_emcee
from pipeline.baselines.evidence_check import EvidenceCheck, evidence_from_draws
from pipeline.baselines.nautilus_sampler import run_nautilus
from pipeline.baselines.result import BaselineResult, Density
from pipeline.diagnostics.c2st import c2st
from pipeline.diagnostics.distances import MarginalDistances, marginal_distances
from pipeline.errors import InputError
from pipeline.estimators.importance import systematic_resample
from pipeline.interrupt import stop_if_asked
from pipeline.progress import console, progress_bar
from pipeline.rng import derived_seed, generator
from pipeline.schema import PROVENANCE
from pipeline.stages.costs import cost_in_words, inference_cost
from pipeline.stages.ladder import one_row
from pipeline.stages.observed import inferred_observation
from pipeline.stages.parts import Parts, Share
from pipeline.stages.run import Run, begin, finish
from pipeline.store import create_dataset, open_hdf5, write_hdf5
from simulators import protocol
from simulators.priors import IndependentPrior
from simulators.protocol import Data, Simulator

VERSION = 1
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One baseline on one observation, against our delivered posterior."""

    result: BaselineResult
    check: EvidenceCheck
    c2st: float
    distances: MarginalDistances


def compare(run: Run, *, share: Share | None = None) -> Path:
    """Run the baselines on the first observations of the case, on the CPU; with `share` on those of one of several jobs."""
    run.need_likelihood("compare")
    inference = run.input("infer")
    key = begin(run, "compare", VERSION, run.relevant("seed", "simulator", "compare"), {"inference": inference})
    output = run.output("compare")
    if key is None:
        return output
    data = inferred_observation(run, inference)
    identifiers = data.ids[: run.case.compare.observations]
    parts = Parts(output, "compare", key.key, tuple(identifiers), key.meter)
    for n, missing in parts.mine(share):
        if not missing:
            continue
        ours, evidence = our_draws(run, inference, n)
        comparisons = _compare_one(run, one_row(data.x, n), ours, n)
        on = "the learned likelihood" if run.learns_likelihood else ""
        _print(identifiers[n], comparisons, evidence, inference, on=on)
        write_hdf5(
            parts.paths[n], partial(_fill, identifier=identifiers[n], comparisons=comparisons), parts.attributes(n)
        )
        stop_if_asked()
    if share is not None:
        return output
    console.print(cost_in_words(run, inference))
    write_hdf5(output, lambda file: _join(file, parts), key.attributes(parts.cost))
    parts.remove()
    return finish(run, key, "")


def our_draws(run: Run, inference: Path, observation: int) -> tuple[Array, float]:
    """`compare.draws` equally weighted draws (S, D) resampled from the weighted ones, and our log evidence.

    Where weighted draws were not stored, or MCMC sampled, the delivered draws, as many as there are.
    """
    with open_hdf5(inference) as file:
        names = json.loads(str(file.attrs["parameters"]))
        certificate: Any = file["certificate"]
        if "proposal" not in file or certificate["verdict"].asstr()[observation] == "sampled":
            delivered: Any = file["posterior"]
            theta = np.stack([delivered[n][0, :, observation] for n in names], axis=1)
            return theta[: run.case.compare.draws], float(certificate["log_evidence"][observation])
        group: Any = file["proposal"]
        theta = np.stack([group[n][:, observation] for n in names], axis=1)  # pyright: ignore[reportIndexIssue]
        log_weight = torch.from_numpy(group["log_weight"][:, observation])  # pyright: ignore[reportIndexIssue]
        evidence = float(certificate["log_evidence"][observation])  # pyright: ignore[reportIndexIssue]
    stream = generator(run.case.seed, "compare-ours", observation)
    index, _ = systematic_resample(log_weight[:, None], run.case.compare.draws, generator=stream)
    return theta[index[:, 0].numpy()], evidence


def _compare_one(run: Run, x: Data, ours: Array, index: int) -> list[Comparison]:
    settings = run.case.compare
    likelihood, joint = densities(run.model_on(torch.device("cpu")), run.prior, x)
    seed = run.case.seed
    results: list[BaselineResult] = []
    if settings.emcee.enabled:
        calls = settings.emcee.walkers * (settings.emcee.steps + settings.emcee.burn_in)
        with _calls_bar("emcee", calls) as progress:
            start = ours[np.linspace(0, len(ours) - 1, settings.emcee.walkers).astype(int)]
            e = settings.emcee
            results.append(
                run_emcee(
                    joint,
                    start,
                    steps=e.steps,
                    burn_in=e.burn_in,
                    seed=derived_seed(seed, "emcee", index),
                    progress=progress,
                )
            )
    if settings.nautilus.enabled:
        if not isinstance(run.prior, IndependentPrior):
            raise InputError("compare.nautilus needs independent priors; set compare.nautilus.enabled: false")
        with _calls_bar("nautilus", None) as progress:
            n = settings.nautilus
            results.append(
                run_nautilus(
                    likelihood,
                    prior_quantile(run.prior),
                    len(run.simulator.parameters),
                    live_points=n.live_points,
                    effective_draws=n.effective_draws,
                    seed=derived_seed(seed, "nautilus", index),
                    progress=progress,
                )
            )
    comparisons = []
    for result in results:
        with console.status(f"{result.name}: two-sample test and check of the evidence"):
            check = evidence_from_draws(result.draws, joint, seed=derived_seed(seed, "evidence-check", index))
            score = c2st(_thin(result.draws, settings.draws), ours, seed=1, jobs=os.cpu_count() or 1)
            comparisons.append(Comparison(result, check, score, marginal_distances(result.draws, ours)))
    return comparisons


def densities(simulator: Simulator, prior: Distribution, x: Data) -> tuple[Density, Density]:
    """log likelihood and log joint of one observation as NumPy functions (B, D) -> (B,), float64."""

    @torch.no_grad()
    def log_likelihood(theta: Array) -> Array:
        return protocol.log_likelihood(simulator, torch.from_numpy(np.ascontiguousarray(theta))[:, None], x)[
            :, 0
        ].numpy()

    @torch.no_grad()
    def log_joint(theta: Array) -> Array:
        log_prior = prior.log_prob(torch.from_numpy(np.ascontiguousarray(theta))).numpy()
        inside = np.isfinite(log_prior)
        values = np.full(len(theta), -np.inf)
        if inside.any():
            values[inside] = log_likelihood(theta[inside]) + log_prior[inside]
        return values

    return log_likelihood, log_joint


def prior_quantile(prior: IndependentPrior) -> Density:
    """Unit cube to theta, (B, D) -> (B, D)."""
    return lambda cube: prior.icdf(torch.from_numpy(np.ascontiguousarray(cube))).numpy()


def _thin(draws: Array, count: int) -> Array:
    """At most `count` draws, evenly spaced in the chain."""
    return draws if len(draws) <= count else draws[np.linspace(0, len(draws) - 1, count).astype(int)]


@contextmanager
def _calls_bar(name: str, total: int | None) -> Iterator[Callable[[int, int | None], None]]:
    """A bar over likelihood calls; a signal stops at the next call."""
    with progress_bar(name, total or 1) as advance:
        seen = 0

        def progress(calls: int, expected: int | None) -> None:
            nonlocal seen
            advance(calls - seen, note=f"{calls} likelihood calls", total=expected or calls)
            seen = calls

        yield progress


def _print(identifier: str, comparisons: list[Comparison], our_evidence: float, inference: Path, *, on: str) -> None:
    """We and the baselines side by side, as columns; our cost is the mean over the observations of `infer`."""
    our_cost, _ = inference_cost(inference)
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{identifier}: baselines{f' on {on}' if on else ''}")
    table.add_column("elboscope", justify="right")
    for c in comparisons:
        table.add_column(c.result.name, justify="right")
    stated = [
        "-" if c.result.log_evidence is None else f"{c.result.log_evidence:.3f} ± {c.result.log_evidence_error:.3f}"
        for c in comparisons
    ]
    checked = [f"{c.check.log_evidence:.3f} ± {c.check.log_evidence_error:.3f}" for c in comparisons]
    results = [c.result for c in comparisons]
    rows = {
        "log evidence, stated": [f"{our_evidence:.3f}", *stated],
        "log evidence, checked": ["-", *checked],
        "C2ST against our draws (0.5 is equality)": ["-", *(f"{c.c2st:.3f}" for c in comparisons)],
        "largest shift of a mean [sd]": ["-", *(f"{np.abs(c.distances.mean_shift).max():.3f}" for c in comparisons)],
        "likelihood calls": [f"{r.likelihood_calls:.0f}" for r in (our_cost, *results)],
        "wall time [s]": [f"{r.wall_time_s:.1f}" for r in (our_cost, *results)],
        "CPU time [s]": [f"{r.cpu_time_s:.1f}" for r in (our_cost, *results)],
        "converged": ["-", *("yes" if r.converged else "NO" for r in results)],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)


def _fill(file: h5py.File, *, identifier: str, comparisons: list[Comparison]) -> None:
    for c in comparisons:
        r = c.result
        group = file.create_group(f"{identifier}/{r.name}")
        create_dataset(group, "draws", r.draws)
        for name in ("mean_shift", "width_ratio", "wasserstein"):
            create_dataset(group, name, getattr(c.distances, name))
        group.attrs["c2st"] = c.c2st
        group.attrs["converged"] = r.converged
        group.attrs["likelihood_calls"] = r.likelihood_calls
        group.attrs["checks"] = json.dumps(r.checks, sort_keys=True)
        if r.log_evidence is not None:
            group.attrs["log_evidence"], group.attrs["log_evidence_error"] = r.log_evidence, r.log_evidence_error
        for name in ("log_evidence", "log_evidence_error", "ess_fraction", "pareto_k"):
            group.attrs[f"checked_{name}"] = getattr(c.check, name)
        group.attrs[PROVENANCE] = json.dumps({"wall_time_s": r.wall_time_s, "cpu_time_s": r.cpu_time_s})


def _join(file: h5py.File, parts: Parts) -> None:
    for identifier, path in zip(parts.names, parts.paths, strict=True):
        with open_hdf5(path) as part:
            if identifier in part:  # no baseline is enabled otherwise
                part.copy(identifier, file, name=identifier)
