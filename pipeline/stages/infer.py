"""Stage `infer`: posteriors and certificates of observations, into `inference.h5` (netCDF-4)."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import torch
from rich.table import Table

from pipeline.errors import InputError
from pipeline.estimators.importance import Evidence
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.progress import console
from pipeline.schema import CERTIFICATE, STAGE, VERDICTS
from pipeline.settings import CaseSettings, InferSettings
from pipeline.stages.ladder import Outcome, climb, one_row
from pipeline.stages.run import Run, begin, finish, load_observation, need_same_settings, with_digests
from pipeline.store import DataSet, complete_or_absent, content_key, input_digest, read_attribute, read_key, stamp
from simulators.protocol import has_likelihood

VERSION = 2
FULL_IDENTITIES = 5


def infer(run: Run) -> Path:
    """Posteriors of the case's observation, with the network that this run trained."""
    run.need_likelihood("infer")
    observation = run.case.observation
    data = run.observation()
    assert observation is not None
    inputs = {"posterior": run.input("train"), "observation": observation}
    need_same_settings(run, inputs["posterior"], "train")
    key = begin(run, "infer", VERSION, run.relevant("seed", "simulator", "infer"), inputs)
    output = run.output("infer")
    if key is None:
        return output
    posterior = load_posterior(inputs["posterior"], case=run.case, device=run.device)
    outcomes = _climb_all(posterior, data, run.case.infer, run.case.seed)
    write_inference(output, posterior, data, outcomes, key.attributes())
    print_certificates(data.ids, outcomes)
    return finish(run, key, "")


def infer_observations(
    posterior_path: Path,
    observations: Path,
    output: Path,
    *,
    settings: InferSettings,
    case: CaseSettings | None,
    seed: int,
    device: torch.device,
) -> Path:
    """Posteriors of any observations with any trained posterior, outside a run."""
    inputs = {"posterior": input_digest(posterior_path), "observation": input_digest(observations)}
    named = with_digests(case.dump("simulator")["simulator"]) if case else None  # else the posterior's own
    relevant = {"infer": settings.model_dump(mode="json"), "seed": seed, "simulator": named}
    key = content_key("infer", VERSION, relevant, inputs)
    if read_key(output) == key:
        console.print(f"infer: {output} is up to date")
        return output
    if output.exists() and read_attribute(output, STAGE) != "infer":
        raise InputError(f"{output}: exists and was not written by `elboscope infer`; choose another --out")
    started = time.monotonic()
    posterior = load_posterior(posterior_path, case=case, device=device)
    if not has_likelihood(posterior.simulator):
        raise InputError(
            f"infer: simulator {posterior.simulator.name!r} has no log_likelihood, which certificates need"
        )
    data = load_observation(posterior.simulator, observations)
    outcomes = _climb_all(posterior, data, settings, seed)
    resolved = posterior.case.dump() | {"infer": settings.model_dump(mode="json"), "seed": seed}
    write_inference(
        output,
        posterior,
        data,
        outcomes,
        stamp(stage="infer", key=key, settings=resolved, inputs=inputs, started=started),
    )
    print_certificates(data.ids, outcomes)
    console.print(f"infer: {output} ({time.monotonic() - started:.1f} s)")
    return output


def _climb_all(posterior: Posterior, data: DataSet, settings: InferSettings, seed: int) -> list[Outcome]:
    x = {k: v.to(posterior.device) for k, v in data.x.items()}
    return [climb(posterior, one_row(x, n), settings=settings, seed=seed, index=n) for n in range(len(data))]


def print_certificates(ids: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """One line an observation, and for a few of them the evidence identity in full."""
    table = Table(box=None, pad_edge=False)
    for column in ("observation", "verdict", "log evidence", "gap", "ESS fraction", "pareto k"):
        table.add_column(column, justify="left" if column in ("observation", "verdict") else "right", no_wrap=True)
    for identifier, o in zip(ids, outcomes, strict=True):
        rows = [(identifier, o.verdict, o.evidence)]
        if o.verdict == "refined":
            rows.append(("", "amortized", o.amortized))
        for name, label, e in rows:
            evidence = f"{float(e.log_evidence):.3f} ± {float(e.log_evidence_error):.4f}"
            table.add_row(
                name,
                label,
                evidence,
                f"{float(e.kl_gap):.4f}",
                f"{float(e.ess_fraction):.3f}",
                f"{float(e.pareto_k):.2f}",
            )
    console.print(table)
    for identifier, o in zip(ids, outcomes, strict=True):
        if len(ids) <= FULL_IDENTITIES:
            e = o.evidence
            terms = f"{float(e.elbo):.3f} = reconstruction {float(e.reconstruction):.3f} - regularization {float(e.regularization):.3f}"
            console.print(f"{identifier}: ELBO {terms} nats")
        if o.note or o.verdict == "failed":
            console.print(f"{identifier}: {o.verdict}: {VERDICTS[o.verdict]}. {o.note}")


# ---------------------------------------------------------------- inference.h5


def write_inference(
    path: Path, posterior: Posterior, data: DataSet, outcomes: Sequence[Outcome], attributes: Mapping[str, Any]
) -> None:
    """Write `inference.h5` (layout: `pipeline.schema`), complete or absent; ArviZ and h5py open it."""
    image = io.BytesIO()  # in memory first, for the reason given in `store.write_hdf5`
    with h5netcdf.File(image, "w") as file:
        file.attrs.update(attributes)
        file.attrs["parameters"] = json.dumps(list(posterior.parameters))
        _write_draws(file, posterior, data.ids, outcomes)
        _write_proposals(file, posterior, data.ids, outcomes)
        _write_certificates(file, data.ids, outcomes)
        _write_observed(file, posterior, data)
    with complete_or_absent(path) as temporary:
        temporary.write_bytes(image.getvalue())


def _variable(group: Any, name: str, dimensions: tuple[str, ...], values: Any, **attributes: str) -> None:
    array = np.asarray(values)
    if array.dtype.kind in "UO":
        import h5py

        variable = group.create_variable(name, dimensions, dtype=h5py.string_dtype())
        variable[...] = array.astype(object)
    else:
        variable = group.create_variable(name, dimensions, data=array, fletcher32=True, chunks=array.shape)
    variable.attrs.update({k: v for k, v in attributes.items() if v})


def _dimensions(group: Any, ids: Sequence[str], **sizes: int) -> None:
    """Create dimensions with coordinate variables, as xarray expects them."""
    group.dimensions = {**sizes, "observation": len(ids)}
    for name, size in sizes.items():
        _variable(group, name, (name,), np.arange(size))
    _variable(group, "observation", ("observation",), np.array(ids))


def _write_draws(file: Any, posterior: Posterior, ids: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    group = file.create_group("posterior")
    group.attrs["inference_library"] = "elboscope"
    theta = torch.stack([o.theta for o in outcomes], dim=1).cpu().numpy()  # (draws, N, D)
    _dimensions(group, ids, chain=1, draw=len(theta))
    for d, p in enumerate(posterior.simulator.parameters):
        _variable(
            group, p.name, ("chain", "draw", "observation"), theta[None, :, :, d], units=p.unit, long_name=p.label
        )


def _write_proposals(file: Any, posterior: Posterior, ids: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    group = file.create_group("proposal")
    _dimensions(group, ids, proposal_draw=len(outcomes[0].proposals.theta))
    theta = torch.cat([o.proposals.theta for o in outcomes], dim=1).cpu().numpy()
    for d, p in enumerate(posterior.simulator.parameters):
        _variable(group, p.name, ("proposal_draw", "observation"), theta[:, :, d], units=p.unit, long_name=p.label)
    for name in ("log_q", "log_likelihood", "log_joint", "log_weight"):
        values = torch.cat([getattr(o.proposals, name) for o in outcomes], dim=1).cpu().numpy()
        _variable(group, name, ("proposal_draw", "observation"), values, units="nat")


def certificate_values(outcome: Outcome) -> dict[str, float]:
    """Numbers of a certificate by their names in `schema.CERTIFICATE`."""
    own = {f.name: float(getattr(outcome.evidence, f.name)) for f in fields(Evidence)}
    amortized = {f"amortized_{f.name}": float(getattr(outcome.amortized, f.name)) for f in fields(Evidence)}
    other = {"repeated_fraction": outcome.repeated_fraction, "likelihood_calls": float(outcome.likelihood_calls)}
    amortized["amortized_kl_gap"] = own["log_evidence"] - amortized["amortized_elbo"]
    values = own | amortized | other
    return {name: values[name] for name in CERTIFICATE}


def _write_certificates(file: Any, ids: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    group = file.create_group("certificate")
    _dimensions(group, ids)
    values = [certificate_values(o) for o in outcomes]
    for name, meaning in CERTIFICATE.items():
        _variable(group, name, ("observation",), np.array([v[name] for v in values]), long_name=meaning)
    _variable(
        group,
        "verdict",
        ("observation",),
        np.array([o.verdict for o in outcomes]),
        long_name="; ".join(f"{k}: {v}" for k, v in VERDICTS.items()),
    )
    _variable(group, "note", ("observation",), np.array([o.note for o in outcomes]))


def _write_observed(file: Any, posterior: Posterior, data: DataSet) -> None:
    group = file.create_group("observed_data")
    observables = posterior.simulator.observables
    sizes = {f"{o.name}_dim_{i}": size for o in observables for i, size in enumerate(o.shape)}
    _dimensions(group, data.ids, **sizes)
    for o in observables:
        dimensions = ("observation", *(f"{o.name}_dim_{i}" for i in range(len(o.shape))))
        _variable(group, o.name, dimensions, data.x[o.name].cpu().numpy(), units=o.unit, role=o.role, long_name=o.label)
