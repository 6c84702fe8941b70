"""The observations of a catalogue, read from `inference.h5` for what a population speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from pipeline.config import build_simulator
from pipeline.diagnostics.population import Catalogue, distinct_share
from pipeline.errors import InputError
from pipeline.schema import SETTINGS
from pipeline.settings import CaseSettings
from pipeline.stages.population_settings import PopulationSettings
from pipeline.store import check_sum, open_hdf5, read_attribute, refuse_own_code, stored_case
from simulators.priors import IndependentPrior, prior_of
from simulators.protocol import Simulator

READ = 1 << 22
"""Numbers read from a file at once."""


@dataclass(frozen=True)
class Members:
    """The observations of a catalogue that a population is inferred from.

    Attributes:
        catalogue: their draws.
        ids: N identifiers.
        left_out: identifiers of those with verdict `failed`.
        prior: of the parameters that have a population, in the order of the settings.
        stored: draws of each in the file; those of the catalogue may be fewer.
    """

    catalogue: Catalogue
    ids: tuple[str, ...]
    left_out: tuple[str, ...]
    prior: Distribution
    stored: int


def read_members(path: Path, settings: PopulationSettings, *, case: CaseSettings | None = None) -> Members:
    """Draws of the observations in `inference.h5` that have not failed, block by block.

    Args:
        case: names the simulator where it is the user's own file.

    Raises:
        InputError: not a file of `infer`, a parameter that it does not have, or no prior for the parameters alone.
    """
    if path.is_file():
        check_sum(path)
    simulator = _simulator_of(path, case)
    names = [p.name for p in simulator.parameters]
    for name in settings.parameters:
        if name not in names:
            raise InputError(f"population: {path} has no parameter {name!r}; it has {', '.join(names)}")
    columns = [names.index(name) for name in settings.parameters]
    prior = _prior_of_some(simulator, columns, len(names))
    with open_hdf5(path) as file:
        verdicts = [_text(v) for v in _dataset(file, "certificate/verdict")[:]]
        ids = [_text(v) for v in _dataset(file, "posterior/observation")[:]]
        evidence = np.asarray(_dataset(file, "certificate/log_evidence")[:], dtype=np.float64)
        good = np.flatnonzero([v != "failed" for v in verdicts])
        if len(good) == 0:
            raise InputError(f"{path}: all {len(ids)} observations have verdict failed: nothing to infer from")
        datasets = [_dataset(file, f"posterior/{name}") for name in settings.parameters]
        stored = int(datasets[0].shape[1])
        draws = _draws_to_use(settings, stored, len(good))
        theta = torch.stack([_read_draws(d, good, draws) for d in datasets], dim=-1)
    log_prior = torch.cat([prior.log_prob(part).double() for part in theta.split(max(1, READ // draws))])
    if not bool(log_prior.isfinite().all()):
        raise InputError(
            f"{path}: {int((~log_prior.isfinite()).sum())} draws have no density under the prior of simulator {simulator.name!r}: made with another one?"
        )
    catalogue = Catalogue(
        theta={name: theta[..., i].contiguous() for i, name in enumerate(settings.parameters)},
        log_prior=log_prior,
        log_evidence=torch.from_numpy(evidence[good]),
        distinct=distinct_share(theta[..., 0]),
    )
    failed = sorted(set(range(len(ids))) - set(good.tolist()))
    return Members(catalogue, tuple(ids[n] for n in good), tuple(ids[n] for n in failed), prior, stored)


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    item = file.get(name)
    if not isinstance(item, h5py.Dataset):
        raise InputError(f"{file.filename}: not a file of `elboscope infer`, or a damaged one (no {name})")
    return item


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _draws_to_use(settings: PopulationSettings, stored: int, observations: int) -> int:
    """As many as asked for, else as many as fit into memory: parameters and log prior, float64."""
    if settings.draws is not None and settings.draws > stored:
        raise InputError(f"population: draws: {settings.draws} asked for, the file has {stored} of each observation")
    fit = int(settings.memory_gb * 1e9 / (8 * 2 * (len(settings.parameters) + 1) * observations))
    if fit < 1:
        raise InputError(f"population: not one draw of {observations} observations fits into memory_gb; raise it")
    return settings.draws or min(stored, fit)


def _read_draws(dataset: h5py.Dataset, rows: NDArray[np.intp], draws: int) -> Tensor:
    """The first `draws` draws of some observations, (N, draws), from (1, S, all observations) in parts.

    Delivered draws are in random order, so that the first of them are as good as any.
    """
    step = max(1, READ // draws)
    parts = []
    for start in range(0, dataset.shape[2], step):
        stop = min(start + step, dataset.shape[2])
        chosen = rows[(rows >= start) & (rows < stop)] - start
        if len(chosen):
            parts.append(np.asarray(dataset[0, :draws, start:stop], dtype=np.float64)[:, chosen].T)
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts)))


def _simulator_of(path: Path, case: CaseSettings | None) -> Simulator:
    if case is None:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        case = stored_case(read_attribute(path, SETTINGS), path)
        refuse_own_code(case, path)
    return build_simulator(case.simulator)


def _prior_of_some(simulator: Simulator, columns: Sequence[int], parameters: int) -> Distribution:
    """Prior of some parameters alone."""
    prior = prior_of(simulator)
    if isinstance(prior, IndependentPrior):
        return IndependentPrior([prior.marginals[c] for c in columns])
    if list(columns) != list(range(parameters)):
        raise InputError(
            f"population: simulator {simulator.name!r} has a joint prior: give a family for all of its parameters, in their order"
        )
    return prior
