"""Observed data: read, checked against the simulator, and found again where a stage made something of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.store import DataSet, is_data_file, open_hdf5, read_data, reading
from simulators.one_form import in_one_form
from simulators.protocol import Simulator, read_observation
from simulators.returned import read_of

if TYPE_CHECKING:
    from pipeline.stages.run import Run


def load_observation(simulator: Simulator, path: Path) -> DataSet:
    """Read observations: our HDF5 layout, or whatever file or folder the simulator's `read_observation` takes.

    Raises:
        InputError: one line that says what does not fit.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if is_data_file(path):
        return one_form_of(simulator, read_data(path, observables=simulator.observables))
    try:
        with reading(path):
            x, ids = read_observation(simulator, path)
    except (ValueError, OSError) as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    if len(ids) == 0:
        raise InputError(f"{path}: has no rows")
    x = in_one_form(simulator, read_of(simulator, x, rows=len(ids), source=str(path)))
    for o in simulator.observables:
        bad = int((~torch.isfinite(x[o.name])).sum())
        if bad:
            raise InputError(f"{path}: {o.name}: {bad} of {x[o.name].numel()} values are NaN or infinite")
    return DataSet(x, None, tuple(ids))


def one_form_of(simulator: Simulator, data: DataSet) -> DataSet:
    """The same observations, as `simulators.one_form` has them."""
    return replace(data, x=in_one_form(simulator, data.x))


def inferred_observation(run: Run, inference: Path) -> DataSet:
    """The observed data of the case, which must be those that `inference` speaks of.

    Raises:
        InputError: `infer` was given other data, with --observation for instance.
    """
    data = run.observation()
    with open_hdf5(inference) as file:
        group: Any = file["observed_data"]
        same = all(
            o.name in group and np.array_equal(group[o.name][...], data.x[o.name].cpu().numpy())
            for o in run.simulator.observables
        )
    if not same:
        raise InputError(
            f"{inference}: made for other data than {run.case.observation}: give the same --observation, or run `elboscope infer` again"
        )
    return data
