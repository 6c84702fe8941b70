"""Stage `validate`: are the delivered posteriors calibrated on held-out simulations?

Where theta was drawn from a proposal, ranks are uniform only under the posterior that has the proposal as its
prior. The same q is then weighted with the proposal's density in place of the prior's. A simulation in which
that leaves too few effective draws is not tested; whether it is depends on its data alone, and ranks stay uniform
in any subset that is chosen by the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from pipeline.diagnostics.calibration import Calibration, calibrate
from pipeline.errors import InputError
from pipeline.estimators.importance import WeightedDraws, ess_fraction, systematic_resample
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.estimators.proposal import Amortized, weigh
from pipeline.progress import console, progress_bar
from pipeline.rng import generator
from pipeline.stages.ladder import one_row
from pipeline.stages.run import Run, begin, finish, need_same_settings
from pipeline.stages.simulate import HELD_OUT
from pipeline.store import DataSet, create_dataset, open_hdf5, read_data, write_hdf5
from simulators.priors import to_device
from simulators.protocol import Data, has_likelihood

VERSION = 1
BLOCK = 25
"""Simulations weighed at once: bounds memory."""
MORE_DRAWS = 5
LEAST_TESTED = 50


@dataclass(frozen=True)
class HeldOutDraws:
    """Delivered draws of N held-out simulations.

    Attributes:
        theta: (L, N, D).
        ess_fraction: of q against the prior's posterior, (N,); NaN without a likelihood.
        calibration_ess: effective draws of the posterior whose ranks are tested, (N,); L without a likelihood.
    """

    theta: Tensor
    ess_fraction: Tensor
    calibration_ess: Tensor


def validate(run: Run) -> Path:
    """SBC ranks, coverage and TARP of the amortized posterior on simulations that training never saw."""
    inputs = {"posterior": run.input("train"), "simulations": run.input("simulate")}
    need_same_settings(run, inputs["simulations"], "simulate")
    need_same_settings(run, inputs["posterior"], "train")
    key = begin(run, "validate", VERSION, run.relevant("seed", "simulator", "validate"), inputs)
    output = run.output("validate")
    if key is None:
        return output
    data = held_out_simulations(run)
    posterior = load_posterior(inputs["posterior"], case=run.case, device=run.device)
    draws = _deliver(run, posterior, data)
    tested = (draws.calibration_ess >= run.case.validation.least_ess).cpu()
    if int(tested.sum()) < LEAST_TESTED:
        raise InputError(
            f"validate: only {int(tested.sum())} of {len(data)} simulations have {run.case.validation.least_ess:g} effective "
            "draws of the tested posterior; raise validate.proposals, or widen simulate.proposal towards the prior"
        )
    assert data.theta is not None
    calibration = calibrate(data.theta[tested], draws.theta.cpu()[:, tested], seed=run.case.seed)
    write_hdf5(output, lambda file: _fill(file, run, data.theta, draws, tested, calibration), key.attributes())
    verdict = "calibrated" if calibration.passed else "NOT calibrated"
    console.print(
        f"validate: {verdict} on {int(tested.sum())} of {len(data)} held-out simulations: least p-value "
        f"{calibration.least_p_value:.3f} of {len(calibration.ks_p_value) + 1} tests"
    )
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
    return read_data(
        path,
        observables=run.simulator.observables,
        parameters=run.simulator.parameters,
        rows=slice(count - wanted, count),
    )


def _deliver(run: Run, posterior: Posterior, data: DataSet) -> HeldOutDraws:
    settings = run.case.validation
    parts: list[HeldOutDraws] = []
    with progress_bar("validate", len(data)) as advance:
        for block, start in enumerate(range(0, len(data), BLOCK)):
            x = posterior.data(data.rows(start, start + BLOCK).x)
            stream = generator(run.case.seed, "validate", block, device=run.device)
            if has_likelihood(run.simulator):
                parts.append(_weighted_draws(run, posterior, x, stream))
            else:
                theta, _ = posterior.sample_and_log_prob((settings.draws,), x, generator=stream)
                unknown = torch.full(theta.shape[1:2], torch.nan, dtype=torch.float64)
                parts.append(HeldOutDraws(theta, unknown, torch.full_like(unknown, torch.inf)))
            advance(parts[-1].theta.shape[1])
    return HeldOutDraws(
        torch.cat([p.theta for p in parts], 1),
        torch.cat([p.ess_fraction for p in parts]),
        torch.cat([p.calibration_ess for p in parts]),
    )


def _weighted_draws(run: Run, posterior: Posterior, x: Data, stream: torch.Generator) -> HeldOutDraws:
    """Draws of the posterior that has the proposal as its prior, resampled from weighted draws of q.

    Where data say little, most of q may lie where the proposal has no density; such simulations get more draws.
    """
    settings = run.case.validation
    proposal = to_device(run.proposal, run.device)

    def weighted(rows: Data, count: int) -> tuple[WeightedDraws, Tensor]:
        q = Amortized(posterior.network, posterior.condition(rows))
        draws = weigh(q, posterior.simulator, posterior.prior, rows, draws=count, generator=stream)
        return draws, draws.log_likelihood + proposal.log_prob(draws.theta) - draws.log_q

    draws, log_weight = weighted(x, settings.proposals)
    index, _ = systematic_resample(log_weight, settings.draws, generator=stream)
    theta = draws.theta.gather(0, index[..., None].expand(-1, -1, draws.theta.shape[-1]))
    ess = ess_fraction(log_weight) * settings.proposals
    for row in (ess < settings.least_ess).nonzero()[:, 0].tolist():
        count = MORE_DRAWS * settings.proposals
        again, log_weight = weighted(one_row(x, row), count)
        index, _ = systematic_resample(log_weight, settings.draws, generator=stream)
        theta[:, row], ess[row] = again.theta[index[:, 0], 0], ess_fraction(log_weight)[0] * count
    return HeldOutDraws(theta, ess_fraction(draws.log_weight), ess)


def _fill(
    file: h5py.File, run: Run, theta_true: Tensor | None, draws: HeldOutDraws, tested: Tensor, calibration: Calibration
) -> None:
    assert theta_true is not None
    group = file.create_group("calibration")
    group.attrs["parameters"] = [p.name for p in run.simulator.parameters]
    group.attrs["tested_posterior"] = "proposal as prior" if run.case.simulate.proposal else "prior"
    create_dataset(group, "theta_true", theta_true.numpy())
    create_dataset(group, "theta_draws", draws.theta.cpu().numpy())
    create_dataset(group, "ess_fraction", draws.ess_fraction.cpu().numpy())
    create_dataset(group, "calibration_ess", draws.calibration_ess.cpu().numpy())
    create_dataset(group, "tested", tested.numpy())
    create_dataset(group, "ranks", calibration.ranks)
    create_dataset(group, "ks_p_value", calibration.ks_p_value)
    create_dataset(group, "tarp_alpha", calibration.tarp.alpha)
    create_dataset(group, "tarp_expected_coverage", calibration.tarp.expected_coverage)
    group.attrs["tarp_p_value"] = calibration.tarp.p_value
    group.attrs["passed"] = calibration.passed
