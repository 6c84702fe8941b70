"""Stage `validate`: are the delivered posteriors calibrated on held-out simulations?

Where theta was drawn from a proposal, ranks are uniform only under the posterior that has the proposal as its
prior. The same q is then weighted with the proposal's density in place of the prior's. A simulation in which
that leaves too few effective draws, or weights with too heavy a tail (Pareto k), is not tested, as its certificate
would not vouch for it; whether it is depends on its data alone, and ranks stay uniform in any subset that is chosen by
the data. What the proposal leaves out is in none of them: `calibration_scope` says so, and looks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from pipeline.diagnostics.calibration import Calibration, calibrate
from pipeline.errors import InputError
from pipeline.estimators.importance import ess_fraction
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.estimators.proposal import Amortized, weigh
from pipeline.progress import console, progress_bar
from pipeline.rng import generator
from pipeline.stages.calibration_scope import Scope, observed_file, scope_of
from pipeline.stages.parts import Parts, Share
from pipeline.stages.run import Run, begin, finish, need_same_settings
from pipeline.stages.simulate import HELD_OUT
from pipeline.store import DataSet, create_dataset, open_hdf5, read_data, write_hdf5
from simulators.protocol import Data, has_likelihood

VERSION = 4
BLOCK = 25
"""Simulations weighed at once: bounds memory."""
LEAST_TESTED = 50


@dataclass(frozen=True)
class HeldOutDraws:
    """Delivered draws of N held-out simulations.

    Attributes:
        theta: (L, N, D).
        ess_fraction: of q against the prior's posterior, (N,); NaN unweighted.
        calibration_ess: effective draws of the posterior whose ranks are tested, (N,); infinite unweighted.
        calibration_pareto_k: of their weights, (N,); minus infinity unweighted.
    """

    theta: Tensor
    ess_fraction: Tensor
    calibration_ess: Tensor
    calibration_pareto_k: Tensor


def validate(run: Run, *, share: Share | None = None) -> Path:
    """SBC ranks, coverage and TARP of the amortized posterior on simulations that training never saw.

    With `share` only the draws that are the part of one of several jobs are made.
    """
    if run.case.simulate.proposal and not run.case.validation.weighted:
        raise InputError(
            "validate.weighted: false needs theta from the prior: with a proposal only weights make ranks uniform"
        )
    inputs = {"posterior": run.input("train"), "simulations": run.input("simulate")}
    observed = observed_file(run)
    inputs |= {} if observed is None else {"observation": observed}
    need_same_settings(run, inputs["simulations"], "simulate")
    need_same_settings(run, inputs["posterior"], "train")
    key = begin(run, "validate", VERSION, run.relevant("seed", "simulator", "validate"), inputs)
    output = run.output("validate")
    if key is None:
        return output
    data = held_out_simulations(run)
    posterior = load_posterior(inputs["posterior"], case=run.case, device=run.device)
    starts = range(0, len(data), BLOCK)
    parts = Parts(output, "validate", key.key, tuple(map(str, starts)), key.meter)
    _deliver(run, posterior, data, parts, share)
    if share is not None:
        return output
    draws = _collect(parts)
    least, most = run.case.validation.least_ess, run.case.validation.most_pareto_k
    tested = ((draws.calibration_ess >= least) & (draws.calibration_pareto_k <= most)).cpu()
    if int(tested.sum()) < LEAST_TESTED:
        raise InputError(
            f"validate: only {int(tested.sum())} of {len(data)} simulations have {least:g} effective draws of the tested "
            f"posterior and weights whose Pareto k is at most {most:g}; raise validate.proposals, "
            + (
                "widen simulate.proposal towards the prior"
                if run.case.simulate.proposal
                else "or test q itself: validate.weighted: false"
            )
        )
    assert data.theta is not None
    calibration = calibrate(data.theta[tested], draws.theta.cpu()[:, tested], seed=run.case.seed)
    scope = scope_of(run)
    write_hdf5(
        output,
        lambda file: _fill(file, run, data.theta, draws, tested, calibration, scope),
        key.attributes(parts.cost),
    )
    parts.remove()
    console.print(
        f"validate: {scope.verdict(calibration.passed)} on {int(tested.sum())} of {len(data)} held-out simulations: least p-value "
        f"{calibration.least_p_value:.3f} of {calibration.tests} tests"
    )
    if not bool(draws.ess_fraction.isfinite().all()):
        return finish(run, key, "draws of q as they are, unweighted")
    median, mean = float(draws.ess_fraction.median()), float(draws.ess_fraction.mean())
    return finish(run, key, f"amortized ess_fraction on held-out simulations: mean {mean:.3f}, median {median:.3f}")


def held_out_simulations(run: Run) -> DataSet:
    """The last `validate.simulations` held-out rows: those before them were used to watch training."""
    path = run.input("simulate")
    wanted = run.case.validation.simulations
    with open_hdf5(path) as file:
        count = int(np.asarray(file.attrs[HELD_OUT]))
    if wanted > count:
        raise InputError(
            f"validate.simulations is {wanted}, but only {count} simulations were held out; raise simulate.held_out"
        )
    data = read_data(
        path,
        observables=run.simulator.observables,
        parameters=run.simulator.parameters,
        rows=slice(count - wanted, count),
    ).without_failed()
    if len(data) < wanted:
        console.print(f"validate: {wanted - len(data)} of {wanted} held-out simulations failed and are left out")
    return data


def _deliver(run: Run, posterior: Posterior, data: DataSet, parts: Parts, share: Share | None) -> None:
    """Write the draws of each block of simulations that is missing."""
    settings = run.case.validation
    with progress_bar("validate", len(data)) as advance:
        for block, missing in parts.mine(share):
            start = block * BLOCK
            rows = data.rows(start, min(start + BLOCK, len(data)))
            if missing:
                x = posterior.data(rows.x)
                stream = generator(run.case.seed, "validate", block, device=run.device)
                if settings.weighted and has_likelihood(posterior.simulator):
                    draws = _weighted_draws(run, posterior, x, stream)
                else:
                    theta, _ = posterior.sample_and_log_prob((settings.draws,), x, generator=stream)
                    unknown = torch.full(theta.shape[1:2], torch.nan, dtype=torch.float64)
                    draws = HeldOutDraws(
                        theta, unknown, torch.full_like(unknown, torch.inf), torch.full_like(unknown, -torch.inf)
                    )
                write_hdf5(parts.paths[block], partial(_write_draws, draws=draws), parts.attributes(block))
            advance(len(rows))


def _write_draws(file: h5py.File, *, draws: HeldOutDraws) -> None:
    for field in fields(draws):
        create_dataset(file, field.name, getattr(draws, field.name).cpu().numpy())


def _collect(parts: Parts) -> HeldOutDraws:
    found: dict[str, list[Tensor]] = {field.name: [] for field in fields(HeldOutDraws)}
    for path in parts.paths:
        with open_hdf5(path) as file:
            for name, values in found.items():
                dataset: Any = file[name]
                values.append(torch.from_numpy(dataset[...]))
    numbers = {name: torch.cat(values) for name, values in found.items() if name != "theta"}
    return HeldOutDraws(torch.cat(found["theta"], 1), **numbers)


def _weighted_draws(run: Run, posterior: Posterior, x: Data, stream: torch.Generator) -> HeldOutDraws:
    """Draws as they are delivered; where theta came from a proposal, of the posterior that has the proposal as its prior."""
    settings = run.case.validation
    options: dict[str, Any] = {"proposals": settings.proposals, "least_ess": settings.least_ess}
    tested = posterior.weighted(**options, prior=run.proposal if run.case.simulate.proposal else None)
    found = tested.deliver(settings.draws, x, generator=stream)
    amortized = found.ess_fraction
    if run.case.simulate.proposal:  # the posterior that q was trained for is another one
        q = Amortized(posterior.network, posterior.condition(x))
        of_q = weigh(q, posterior.simulator, posterior.prior, x, draws=settings.proposals, generator=stream)
        amortized = ess_fraction(of_q.log_weight)
    return HeldOutDraws(found.theta, amortized, found.ess, found.pareto_k)


def _fill(
    file: h5py.File,
    run: Run,
    theta_true: Tensor | None,
    draws: HeldOutDraws,
    tested: Tensor,
    calibration: Calibration,
    scope: Scope,
) -> None:
    assert theta_true is not None
    group = file.create_group("calibration")
    group.attrs["parameters"] = [p.name for p in run.simulator.parameters]
    group.attrs["tested_posterior"] = "proposal as prior" if run.case.simulate.proposal else "prior"
    create_dataset(group, "theta_true", theta_true.numpy())
    create_dataset(group, "theta_draws", draws.theta.cpu().numpy())
    create_dataset(group, "ess_fraction", draws.ess_fraction.cpu().numpy())
    create_dataset(group, "calibration_ess", draws.calibration_ess.cpu().numpy())
    create_dataset(group, "calibration_pareto_k", draws.calibration_pareto_k.cpu().numpy())
    create_dataset(group, "tested", tested.numpy())
    create_dataset(group, "ranks", calibration.ranks)
    create_dataset(group, "ks_p_value", calibration.ks_p_value)
    create_dataset(group, "outside", calibration.outside)
    create_dataset(group, "outside_p_value", calibration.outside_p_value)
    create_dataset(group, "tarp_alpha", calibration.tarp.alpha)
    create_dataset(group, "tarp_expected_coverage", calibration.tarp.expected_coverage)
    group.attrs["tarp_p_value"] = calibration.tarp.p_value
    group.attrs["passed"] = calibration.passed and not scope.misses_peaks
    group.attrs["scope"] = scope.words
    group.attrs["outside_proposal"] = scope.outside
    group.attrs["verdict"] = scope.verdict(calibration.passed)
