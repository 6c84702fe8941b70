"""`inference.h5`: written a part of the catalogue at a time, and put together (layout: `pipeline.schema`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from pipeline.estimators.importance import Evidence
from pipeline.progress import progress_bar
from pipeline.schema import CERTIFICATE, PREDICTIVE, VERDICTS
from pipeline.settings import InferSettings
from pipeline.stages.netcdf import create_dimensions, create_variable, write_netcdf
from pipeline.stages.outcome import Outcome, Search
from pipeline.store import DataSet, open_hdf5
from simulators.protocol import Simulator, data_observables

WEIGHTS = ("log_q", "log_likelihood", "log_joint", "log_weight")
CHUNK_NUMBERS = 131_072
MEANING_OF_ATYPICAL = "1 where typicality or a predictive check rejects at infer.atypical_below, shared among them"


def write_inference(
    path: Path,
    simulator: Simulator,
    data: DataSet,
    outcomes: Sequence[Outcome],
    *,
    ids: Sequence[str] | None = None,
    settings: InferSettings,
    store_proposals: bool,
    attributes: Mapping[str, Any],
) -> None:
    """Posteriors and certificates of N observations, complete or absent; ArviZ and h5py open the file.

    Args:
        ids: of the outcomes, where they are not one for each row of data.
    """
    names_of = data.ids if ids is None else ids

    def fill(file: Any) -> None:
        _write_draws(file, simulator, names_of, outcomes)
        if store_proposals:
            _write_proposals(file, simulator, names_of, outcomes)
        _write_certificates(file, simulator, names_of, outcomes, settings)
        _write_observed(file, simulator, data)

    names = json.dumps([p.name for p in simulator.parameters])
    write_netcdf(path, fill, dict(attributes) | {"parameters": names})


def _write_draws(file: Any, simulator: Simulator, ids: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    group = file.create_group("posterior")
    group.attrs["inference_library"] = "elboscope"
    theta = torch.stack([o.theta for o in outcomes], dim=1).cpu().numpy()  # (draws, N, D)
    create_dimensions(group, chain=1, draw=len(theta), observation=ids)
    for d, p in enumerate(simulator.parameters):
        values = theta[None, :, :, d]
        create_variable(group, p.name, ("chain", "draw", "observation"), values, units=p.unit, long_name=p.label)


def _write_proposals(file: Any, simulator: Simulator, ids: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Weighted draws, padded with NaN where an observation needed fewer than another."""
    group = file.create_group("proposal")
    most = max(len(o.proposals.log_q) for o in outcomes)
    create_dimensions(group, proposal_draw=most, observation=ids)
    for d, p in enumerate(simulator.parameters):
        values = _padded([o.proposals.theta[:, 0, d] for o in outcomes], most)
        create_variable(group, p.name, ("proposal_draw", "observation"), values, units=p.unit, long_name=p.label)
    for name in WEIGHTS:
        values = _padded([getattr(o.proposals, name)[:, 0] for o in outcomes], most)
        create_variable(group, name, ("proposal_draw", "observation"), values, units="nat")


def _padded(columns: Sequence[Tensor], rows: int) -> np.ndarray:
    values = np.full((rows, len(columns)), np.nan)
    for n, column in enumerate(columns):
        values[: len(column), n] = column.cpu().numpy()
    return values


def certificate_values(outcome: Outcome) -> dict[str, float]:
    """Numbers of a certificate by their names in `schema.CERTIFICATE`."""
    own = {f.name: float(getattr(outcome.evidence, f.name)) for f in fields(Evidence)}
    amortized = {f"amortized_{f.name}": float(getattr(outcome.amortized, f.name)) for f in fields(Evidence)}
    amortized["amortized_kl_gap"] = own["log_evidence"] - amortized["amortized_elbo"]
    other = {
        "proposals": float(len(outcome.proposals.log_q)),
        "repeated_fraction": outcome.repeated_fraction,
        "likelihood_calls": float(outcome.likelihood_calls),
        "r_hat": outcome.r_hat,
        "inputs_held": outcome.inputs_held,
        "typicality": outcome.examined.typicality,
        "predictive": outcome.examined.predictive.get("log_likelihood", float("nan")),
        "predictive_failed": outcome.examined.predictive_failed,
    }
    other |= {f"search_{f.name}": getattr(outcome.search, f.name) for f in fields(Search)}
    values = dict.fromkeys(CERTIFICATE, float("nan")) | own | amortized | other | dict(outcome.examined.surrogate)
    return {name: values[name] for name in CERTIFICATE}


def _write_certificates(
    file: Any, simulator: Simulator, ids: Sequence[str], outcomes: Sequence[Outcome], settings: InferSettings
) -> None:
    group = file.create_group("certificate")
    create_dimensions(group, observation=ids)
    each = ("observation",)
    values = [certificate_values(o) for o in outcomes]
    for name, meaning in CERTIFICATE.items():
        create_variable(group, name, each, np.array([v[name] for v in values]), long_name=meaning)
    for name in (o.name for o in data_observables(simulator) if settings.predictive_draws):
        numbers = np.array([o.examined.predictive.get(name, np.nan) for o in outcomes])
        create_variable(group, f"{PREDICTIVE}{name}", each, numbers, long_name=f"the same for {name} alone")
    atypical = np.array([o.is_atypical(settings.atypical_below) for o in outcomes], dtype=np.int8)
    create_variable(group, "atypical", each, atypical, long_name=MEANING_OF_ATYPICAL)
    meaning = "; ".join(f"{k}: {v}" for k, v in VERDICTS.items())
    create_variable(group, "verdict", each, np.array([o.verdict for o in outcomes]), long_name=meaning)
    create_variable(group, "note", each, np.array([o.note for o in outcomes]))


def _write_observed(file: Any, simulator: Simulator, data: DataSet) -> None:
    group = file.create_group("observed_data")
    sizes = {f"{o.name}_dim_{i}": size for o in simulator.observables for i, size in enumerate(o.shape)}
    create_dimensions(group, **sizes, observation=data.ids)
    for o in simulator.observables:
        dimensions = ("observation", *(f"{o.name}_dim_{i}" for i in range(len(o.shape))))
        values = data.x[o.name].cpu().numpy()
        create_variable(group, o.name, dimensions, values, units=o.unit, role=o.role, long_name=o.label)


# ---------------------------------------------------------------- parts into one


def join_parts(parts: Sequence[Path], path: Path, attributes: Mapping[str, Any]) -> None:
    """One file from those of the parts of a catalogue, in order; one part's worth of one variable is in memory at once.

    Raises:
        InputError: the disk is full; the parts stay.
    """
    sizes = [_sizes(part) for part in parts]
    total = {
        name: sum(s[name] for s in sizes) if name == "observation" else max(s[name] for s in sizes) for name in sizes[0]
    }

    def fill(file: Any) -> None:
        with open_hdf5(parts[0]) as first, progress_bar("join", len(parts)) as advance:
            file.attrs["parameters"] = first.attrs["parameters"]
            for name, group in first.items():
                _declare(file.create_group(name), group, total)
            start = 0
            for part, size in zip(parts, sizes, strict=True):
                with open_hdf5(part) as source:
                    for name, group in source.items():
                        _copy(file[name], group, slice(start, start + size["observation"]))
                start += size["observation"]
                advance(1)

    write_netcdf(path, fill, attributes)


def _sizes(part: Path) -> dict[str, int]:
    """Length of every dimension of a part, by name."""
    with open_hdf5(part) as file:
        return {
            name: len(variable)
            for group in file.values()
            for name, variable in group.items()
            if "CLASS" in variable.attrs  # a netCDF dimension
        }


def _declare(target: Any, source: h5py.Group, total: Mapping[str, int]) -> None:
    """Dimensions and empty variables of a group, sized for the whole catalogue."""
    coordinates = [name for name, v in source.items() if "CLASS" in v.attrs]
    target.dimensions = {name: total[name] for name in coordinates}
    target.attrs.update({k: v for k, v in source.attrs.items() if not k.startswith("_")})
    for name, variable in source.items():
        dimensions = _dimensions(name, variable)
        shape = tuple(total[d] for d in dimensions)
        if variable.dtype.kind == "O":
            made = target.create_variable(name, dimensions, dtype=h5py.string_dtype())
        else:
            chunks = _chunks(dimensions, shape)
            made = target.create_variable(
                name,
                dimensions,
                dtype=variable.dtype,
                fletcher32=True,
                chunks=chunks,
                fillvalue=_nothing(variable.dtype),
            )
        made.attrs.update({k: variable.attrs[k] for k in ("units", "long_name", "role") if k in variable.attrs})
        if name in coordinates and name != "observation":
            made[...] = np.arange(total[name])


def _nothing(dtype: np.dtype[Any]) -> Any:
    return np.nan if dtype.kind == "f" else 0


def _dimensions(name: str, variable: Any) -> tuple[str, ...]:
    """Names of a variable's dimensions; a coordinate is its own."""
    if "CLASS" in variable.attrs:
        return (name,)
    return tuple(str(scale[0].name).rsplit("/", 1)[-1] for scale in variable.dims)


def _chunks(dimensions: Sequence[str], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Whole rows along every dimension but that of observations, about a megabyte in all."""
    other = int(np.prod([n for d, n in zip(dimensions, shape, strict=True) if d != "observation"]))
    rows = max(1, CHUNK_NUMBERS // max(other, 1))
    return tuple(min(rows, n) if d == "observation" else n for d, n in zip(dimensions, shape, strict=True))


def _copy(target: Any, source: h5py.Group, rows: slice) -> None:
    """A part's variables into their rows of the whole."""
    for name, variable in source.items():
        dimensions = _dimensions(name, variable)
        if "observation" not in dimensions:
            continue  # a coordinate of another dimension
        place = tuple(
            rows if d == "observation" else slice(0, n) for d, n in zip(dimensions, variable.shape, strict=True)
        )
        target[name][place] = variable.asstr()[...] if variable.dtype.kind == "O" else variable[...]
