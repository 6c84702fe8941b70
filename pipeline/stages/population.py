r"""Hyperparameters of a population from the delivered draws of a catalogue: no likelihood is evaluated anew.

    p(lambda | x_1 .. x_N)  ∝  p(lambda) prod_n  Z_n (1/S) sum_s p(theta_ns | lambda) / p(theta_ns)

Sampled by emcee; refused where the estimate is not to be trusted. No selection function: the catalogue is taken for a
fair sample of its population.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from torch.distributions import Distribution

from pipeline.baselines.emcee_sampler import run_emcee
from pipeline.cost import Meter
from pipeline.diagnostics.population import PopulationLikelihood, family_from
from pipeline.errors import InputError
from pipeline.progress import console, progress_bar
from pipeline.rng import derived_seed, generator
from pipeline.schema import STAGE
from pipeline.settings import CaseSettings
from pipeline.stages.members import Members, read_members
from pipeline.stages.netcdf import create_dimensions, create_variable, write_netcdf
from pipeline.stages.population_settings import PopulationSettings, arguments_of
from pipeline.stages.run import with_digests
from pipeline.store import content_key, input_digest, read_attribute, read_key, stamp
from simulators.priors import IndependentPrior, distribution_from_spec, in_support, sample

STAGE_NAME = "population"
VERSION = 1
CHECKED = 200
"""Draws of the hyperparameters at which effective draws and variance are computed."""
STARTS = 10
"""Draws of the hyperpriors for each walker, of which the best are taken."""


@dataclass(frozen=True)
class PopulationPosterior:
    """Draws of the hyperparameters and how far they can be trusted.

    Attributes:
        names: of the H hyperparameters.
        draws: (S, H), equally weighted.
        ids: of the N observations used.
        left_out: of those left out, with verdict `failed`.
        ess_at_mean: effective draws of each observation at the posterior mean, (N,).
        least_ess: least over draws of the hyperparameters, (N,).
        variance: of the estimated log likelihood at those draws, (T,).
        variance_at_mean: at the posterior mean.
        broken_variance, broken_ess: share of those draws beyond `most_variance`, or with an observation below `least_ess`.
        outside_prior: share of the population outside the prior's support, mean over draws of the hyperparameters.
        draws_used: of each observation.
        converged: whether emcee's checks were passed.
        checks: emcee's figures.
    """

    names: tuple[str, ...]
    draws: NDArray[np.float64]
    ids: tuple[str, ...]
    left_out: tuple[str, ...]
    ess_at_mean: NDArray[np.float64]
    least_ess: NDArray[np.float64]
    variance: NDArray[np.float64]
    variance_at_mean: float
    broken_variance: float
    broken_ess: float
    outside_prior: float
    draws_used: int
    converged: bool
    checks: Mapping[str, float]


# ---------------------------------------------------------------- sampling


def infer_population(members: Members, settings: PopulationSettings) -> PopulationPosterior:
    r"""Sample $p(\lambda) \prod_n Z_n \frac{1}{S} \sum_s p(\theta_{ns}|\lambda) / p(\theta_{ns})$ and judge the estimate.

    Raises:
        InputError: the hyperpriors hold no lambda under which every observation has a draw.
    """
    names = tuple(settings.hyperpriors)
    likelihood = PopulationLikelihood(
        {p: family_from(*arguments_of(spec), names) for p, spec in settings.parameters.items()}, members.catalogue
    )
    hyperprior = IndependentPrior([distribution_from_spec(settings.hyperpriors[n], n) for n in names])

    def log_density(hyper: NDArray[np.float64]) -> NDArray[np.float64]:
        points = torch.from_numpy(np.ascontiguousarray(hyper))
        total = hyperprior.log_prob(points)
        inside = total.isfinite()
        if bool(inside.any()):
            total[inside] += likelihood.log_likelihood(points[inside])
        return total.numpy()

    options = settings.sampler
    start = _start(log_density, hyperprior, settings)
    with progress_bar("sample", options.walkers * (options.steps + options.burn_in + 1)) as advance:
        done = [0]

        def progress(calls: int, expected: int | None) -> None:
            advance(calls - done[0])
            done[0] = calls

        result = run_emcee(
            log_density,
            start,
            steps=options.steps,
            burn_in=options.burn_in,
            seed=derived_seed(settings.seed, STAGE_NAME),
            progress=progress,
        )
    return _judged(result.draws, result.converged, result.checks, likelihood, members, settings)


def _start(log_density: Any, hyperprior: IndependentPrior, settings: PopulationSettings) -> NDArray[np.float64]:
    """The draws of the hyperpriors with the best density, one for each walker."""
    walkers = settings.sampler.walkers
    tried = sample(hyperprior, STARTS * walkers, generator(settings.seed, f"{STAGE_NAME}-start")).numpy()
    density = np.concatenate([log_density(part) for part in np.array_split(tried, STARTS)])
    if not np.isfinite(density).any():
        raise InputError(
            f"population: at each of {len(tried)} draws of the hyperpriors some observation has no draw with a density: widen the hyperpriors, or use a family with wider support"
        )
    return tried[np.argsort(-density)[:walkers]]


def _judged(
    draws: NDArray[np.float64],
    converged: bool,
    checks: Mapping[str, float],
    likelihood: PopulationLikelihood,
    members: Members,
    settings: PopulationSettings,
) -> PopulationPosterior:
    some = torch.from_numpy(np.ascontiguousarray(draws[:: max(1, len(draws) // CHECKED)]))
    ess = torch.cat([likelihood.ess(part) for part in some.split(16)])
    variance = likelihood.variance(ess)
    at_mean = likelihood.ess(torch.from_numpy(draws.mean(0))[None])
    return PopulationPosterior(
        names=tuple(settings.hyperpriors),
        draws=draws,
        ids=members.ids,
        left_out=members.left_out,
        ess_at_mean=at_mean[0].numpy(),
        least_ess=ess.amin(0).numpy(),
        variance=variance.numpy(),
        variance_at_mean=float(likelihood.variance(at_mean)),
        broken_variance=float((~(variance <= settings.most_variance)).double().mean()),
        broken_ess=float((~(ess.amin(1) >= settings.least_ess)).double().mean()),
        outside_prior=_outside(likelihood, members.prior, some, settings.seed),
        draws_used=likelihood.draws,
        converged=converged,
        checks=checks,
    )


def _outside(likelihood: PopulationLikelihood, prior: Distribution, hyper: Tensor, seed: int) -> float:
    """Share of the population outside the prior's support: 500 members for each row of lambda."""
    stream = generator(seed, f"{STAGE_NAME}-outside")
    theta = torch.stack([sample(f.at(hyper)[0], 500, stream)[..., 0, 0] for f in likelihood.families.values()], dim=-1)
    if isinstance(prior, IndependentPrior):
        inside = torch.stack(
            [in_support(m, v) for m, v in zip(prior.marginals, theta.unbind(-1), strict=True)], dim=-1
        ).all(-1)
    else:
        support: Any = prior.support
        inside = support.check(theta)
    return float((~inside).double().mean())


def why_refused(result: PopulationPosterior, settings: PopulationSettings) -> str:
    """Empty if the hyperparameters can be trusted, else the reason and what to do."""
    more = "infer more draws of each observation (infer.draws), or a prior nearer to the population"
    if result.broken_ess > settings.refused_share:
        worst = int(np.argmin(result.least_ess))
        return (
            f"in {result.broken_ess:.0%} of the posterior an observation has fewer than {settings.least_ess:g} effective draws "
            f"(least: {result.least_ess[worst]:.1f} of {result.draws_used}, {result.ids[worst]}): {more}; "
            "hyperpriors that allow a population far narrower than each posterior do this"
        )
    if result.broken_variance > settings.refused_share:
        return (
            f"in {result.broken_variance:.0%} of the posterior the variance of the estimated log likelihood is above {settings.most_variance:g} "
            f"(median {np.median(result.variance):.2g}): {more}"
        )
    if result.outside_prior > settings.outside_prior:
        return (
            f"{result.outside_prior:.0%} of the population lies outside the support of the prior, where there are no draws: "
            "infer with a wider prior, or choose a family within its support"
        )
    if not result.converged:
        return f"emcee has not converged (R-hat {result.checks['r_hat']:.3f}, {result.checks['steps_per_autocorrelation_time']:.0f} autocorrelation times): raise sampler.steps"
    return ""


# ---------------------------------------------------------------- the command


def population(
    inference: Path,
    settings: PopulationSettings,
    output: Path,
    *,
    case: CaseSettings | None = None,
    strict: bool = False,
) -> Path:
    """Infer a population, say what was found, and write it.

    Args:
        case: names the simulator where it is the user's own file.
        strict: refuse a catalogue with observations that failed, instead of leaving them out.

    Raises:
        InputError: an input that does not fit, or an estimate that is not to be trusted; nothing is then written.
    """
    inputs = {"inference": input_digest(inference)}
    named = with_digests(case.dump("simulator")["simulator"]) if case else None
    values = settings.model_dump(mode="json")
    key = content_key(STAGE_NAME, VERSION, {"population": values, "simulator": named, "strict": strict}, inputs)
    if read_key(output) == key:
        console.print(f"population: {output} is up to date")
        return output
    if output.exists() and read_attribute(output, STAGE) != STAGE_NAME:
        raise InputError(f"{output}: exists and was not written by `elboscope population`; choose another --out")
    meter = Meter()
    members = read_members(inference, settings, case=case)
    _announce(inference, members, strict)
    result = infer_population(members, settings)
    _print(result)
    reason = why_refused(result, settings)
    if reason:
        raise InputError(f"population: refused: {reason}")
    attributes = stamp(stage=STAGE_NAME, key=key, settings=values, inputs=inputs, cost=meter.lap())
    write_population(output, result, attributes)
    console.print(f"population: {output} ({meter.elapsed_s:.1f} s)")
    return output


def _announce(inference: Path, members: Members, strict: bool) -> None:
    failed = len(members.left_out)
    if failed and strict:
        raise InputError(
            f"{inference}: {failed} observations have verdict failed, the first {members.left_out[0]}: infer them better, or leave --strict out"
        )
    used = members.catalogue.log_prior.shape[1]
    console.print(
        f"population: {len(members.ids)} observations, {failed} left out because their verdict is failed; {used} of {members.stored} draws of each"
    )


def _print(result: PopulationPosterior) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("hyperparameter", "mean", "sd", "5 %", "50 %", "95 %"):
        table.add_column(column, justify="left" if column == "hyperparameter" else "right", no_wrap=True)
    for name, values in zip(result.names, result.draws.T, strict=True):
        numbers = (values.mean(), values.std(), *np.quantile(values, (0.05, 0.5, 0.95)))
        table.add_row(name, *(f"{v:.4g}" for v in numbers))
    console.print(table)
    console.print(
        f"population: least effective draws {result.ess_at_mean.min():.0f} at the mean, {result.least_ess.min():.0f} anywhere; "
        f"variance of log likelihood {result.variance_at_mean:.3f} at the mean, median {np.median(result.variance):.3f}; "
        f"R-hat {result.checks['r_hat']:.3f}"
    )


def write_population(path: Path, result: PopulationPosterior, attributes: Mapping[str, Any]) -> None:
    """Write `population.h5`, netCDF-4 that ArviZ opens.

    Groups: posterior, one variable a hyperparameter (chain, draw); members, one value an observation; estimate, the
    variance of the log likelihood at draws of the hyperparameters.
    """

    def fill(file: Any) -> None:
        file.attrs["parameters"] = json.dumps(list(result.names))
        file.attrs["checks"] = json.dumps({k: float(v) for k, v in result.checks.items()})
        file.attrs["left_out"] = json.dumps(list(result.left_out))
        for name in ("draws_used", "variance_at_mean", "broken_variance", "broken_ess", "outside_prior"):
            file.attrs[name] = getattr(result, name)
        group = file.create_group("posterior")
        group.attrs["inference_library"] = "elboscope"
        create_dimensions(group, chain=1, draw=len(result.draws))
        for name, values in zip(result.names, result.draws.T, strict=True):
            create_variable(group, name, ("chain", "draw"), values[None])
        group = file.create_group("members")
        create_dimensions(group, observation=result.ids)
        words = "effective draws of the observation under the population, at the posterior mean"
        create_variable(group, "ess_at_mean", ("observation",), result.ess_at_mean, long_name=words)
        words = "the least of them over draws of the hyperparameters"
        create_variable(group, "least_ess", ("observation",), result.least_ess, long_name=words)
        group = file.create_group("estimate")
        create_dimensions(group, checked_draw=len(result.variance))
        words = "variance of the estimated log likelihood, nats squared"
        create_variable(group, "variance", ("checked_draw",), result.variance, long_name=words)

    write_netcdf(path, fill, attributes)
