r"""Repeated observations of one object: one posterior from all rows together, with the certificate of `infer`.

    log p(x_1 .. x_N | theta)  =  sum_n log p(x_n | theta)

Rows are independent given theta; each has its own observing conditions. The weights are those of the joint data, and
the certificate speaks of the mixture that `pipeline.stages.product` builds and adapts: `log_evidence` is that of all
rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.baselines.evidence_check import StudentMixture
from pipeline.cost import Meter
from pipeline.errors import InputError
from pipeline.estimators.importance import Evidence, WeightedDraws, summarize, systematic_resample
from pipeline.estimators.learned_likelihood import attributes_of
from pipeline.estimators.network import BLOCK
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.progress import console, progress_bar
from pipeline.rng import derived_seed, generator
from pipeline.schema import STAGE, VERDICTS
from pipeline.settings import CaseSettings, InferSettings
from pipeline.stages.inference_file import write_inference
from pipeline.stages.learned_check import check_learned
from pipeline.stages.observed import load_observation
from pipeline.stages.outcome import Outcome
from pipeline.stages.product import Array, Coordinates, adapt_mixture, first_proposal
from pipeline.stages.run import with_digests
from pipeline.stages.verdicts import MOST_MISSED, verdict_of
from pipeline.store import content_key, input_digest, read_attribute, read_key, stamp
from simulators.priors import prior_of
from simulators.protocol import Data, has_likelihood, log_likelihood

STAGE_NAME = "combine"
VERSION = 3
ROWS = 1_024
"""Rows whose likelihood is evaluated at once: with BLOCK points at once, bounds memory for any N."""


def combine(posterior: Posterior, x: Mapping[str, Tensor], *, settings: InferSettings, seed: int = 0) -> Outcome:
    r"""Posterior of the theta that all rows of x share, $p(\theta | x_1 .. x_N) \propto p(\theta) \prod_n p(x_n | \theta)$.

    The draws that certify are independent of those that the mixture was fitted to. There is no amortized q of all rows:
    its figures are NaN. `log_evidence` is that of all rows together.

    Args:
        x: every observable, (N, ...) each.
        settings: `draws` delivered, `most_proposals` weighted, thresholds of the verdicts; `refine.adapt` has rounds
            and draws of the adaptation.
        seed: every random number is a function of it.

    Raises:
        InputError: the simulator has no likelihood, or the likelihood of all rows together is zero wherever it was tried.
    """
    simulator = posterior.simulator
    if not has_likelihood(simulator):
        raise InputError(f"combine: simulator {simulator.name!r} has no log_likelihood, which the weights need")
    data = posterior.data(x)
    coordinates, start = first_proposal(posterior, data, seed=seed)

    def log_joint(v: Array) -> Array:
        theta, log_det = coordinates.to_theta(torch.from_numpy(v))
        terms = joint_terms(posterior, theta, data)
        return (terms[0] + terms[1] + log_det).numpy()

    options = settings.refine.adapt
    with progress_bar("adapt", options.rounds) as advance:
        adapted = adapt_mixture(start, log_joint, settings=options, seed=seed, advance=advance)
    count = settings.most_proposals
    with progress_bar("weigh", count) as advance:
        draws = _weigh(posterior, data, coordinates, adapted.mixture, count, seed=seed, advance=advance)
    evidence = summarize(draws)
    verdict, note = verdict_of(evidence, settings, count), ""
    missed = adapted.largest_share(float(evidence.log_evidence), count)
    if missed > MOST_MISSED:
        verdict, note = "failed", _why_missed(missed)
    order, repeated = systematic_resample(
        draws.log_weight, settings.draws, generator=generator(seed, f"{STAGE_NAME}-deliver")
    )
    unknown = torch.full((1,), torch.nan, dtype=torch.float64)
    outcome = Outcome(
        verdict,
        proposal=None,
        theta=draws.theta[order[:, 0], 0],
        proposals=draws,
        evidence=evidence,
        amortized=Evidence(*[unknown] * len(fields(Evidence))),
        note=note,
        repeated_fraction=float(repeated),
        likelihood_calls=count + len(adapted.v),
    )
    rows = {name: values.to(outcome.theta.device) for name, values in x.items()}
    return check_learned(posterior, rows, [outcome], settings=settings, seed=seed, index=0, shared=True)[0]


def _why_missed(share: float) -> str:
    return (
        f"a draw met while adapting would carry {share:.1%} of all weight: the mixture may have lost a mode; "
        "raise infer.refine.adapt.draws"
    )


@torch.no_grad()
def joint_terms(posterior: Posterior, theta: Tensor, x: Data) -> tuple[Tensor, Tensor]:
    r"""$\sum_n \log p(x_n | \theta)$ and $\log p(\theta)$, theta (K, D) -> (K,), (K,), float64 on the CPU."""
    rows = len(next(iter(x.values())))
    total = torch.zeros(len(theta), dtype=torch.float64)
    for first in range(0, rows, ROWS):
        part = {k: v[first : first + ROWS] for k, v in x.items()}
        size = min(ROWS, rows - first)
        step = max(1, BLOCK // size)
        for k in range(0, len(theta), step):
            block = theta[k : k + step].to(posterior.device)
            repeated = block[:, None].expand(-1, size, -1)
            total[k : k + step] += log_likelihood(posterior.simulator, repeated, part).double().sum(-1).cpu()
    return total, prior_of(posterior.simulator).log_prob(theta).double()


def _weigh(
    posterior: Posterior,
    x: Data,
    coordinates: Coordinates,
    mixture: StudentMixture,
    draws: int,
    *,
    seed: int,
    advance: Callable[..., None],
) -> WeightedDraws:
    r"""Draws of the mixture with $\log q(\theta) = \log m(v) - \log |d\theta / dv|$, in parts of a tenth."""
    rng = np.random.default_rng(derived_seed(seed, f"{STAGE_NAME}-weigh"))
    parts: list[tuple[Tensor, ...]] = []
    step = max(1_000, draws // 10)
    for k in range(0, draws, step):
        v = mixture.sample(min(step, draws - k), rng)
        theta, log_det = coordinates.to_theta(torch.from_numpy(v))
        log_q = torch.from_numpy(mixture.log_prob(v)) - log_det
        parts.append((theta, log_q, *joint_terms(posterior, theta, x)))
        advance(len(v))
    theta, log_q, likelihood, prior = (torch.cat(p)[:, None] for p in zip(*parts, strict=True))
    return WeightedDraws(theta, log_q, likelihood, prior, log_q)


# ---------------------------------------------------------------- the command


def combine_observations(
    posterior_path: Path,
    observations: Path,
    output: Path,
    *,
    settings: InferSettings,
    case: CaseSettings | None,
    seed: int,
    device: torch.device,
) -> Path:
    """One posterior from all rows of `observations`, with any trained posterior, into a file of the layout of `infer`.

    Args:
        case: settings that name the simulator, where it is the user's own; default: those in the posterior.

    Raises:
        InputError: an input that does not fit, or an output that something else wrote.
    """
    inputs = {"posterior": input_digest(posterior_path), "observation": input_digest(observations)}
    named = with_digests(case.dump("simulator")["simulator"]) if case else None  # else the posterior's own
    relevant = {"infer": settings.model_dump(mode="json"), "seed": seed, "simulator": named}
    key = content_key(STAGE_NAME, VERSION, relevant | {"name": observations.stem}, inputs)
    if read_key(output) == key:
        console.print(f"combine: {output} is up to date")
        return output
    if output.exists() and read_attribute(output, STAGE) != STAGE_NAME:
        raise InputError(f"{output}: exists and was not written by `elboscope combine`; choose another --out")
    meter = Meter()
    posterior = load_posterior(posterior_path, case=case, device=device)
    data = load_observation(posterior.simulator, observations)
    combined = combine(posterior, data.x, settings=settings, seed=seed)
    resolved = (case or posterior.case).dump() | {"infer": settings.model_dump(mode="json"), "seed": seed}
    made = stamp(stage=STAGE_NAME, key=key, settings=resolved, inputs=inputs, cost=meter.lap())
    attributes = made | attributes_of(posterior.simulator)
    write_inference(
        output,
        posterior.simulator,
        data,
        [combined],
        ids=[observations.stem],
        settings=settings,
        store_proposals=True,
        attributes=attributes,
    )
    _print(observations.stem, len(data), combined)
    console.print(f"combine: {output} ({meter.elapsed_s:.1f} s)")
    return output


def _print(name: str, rows: int, combined: Outcome) -> None:
    e = combined.evidence
    console.print(
        f"{name}: {rows} rows, {combined.verdict}: {VERDICTS[combined.verdict]}"
        + (f". {combined.note}" if combined.note else "")
    )
    console.print(
        f"{name}: log evidence of all rows {float(e.log_evidence):.3f} ± {float(e.log_evidence_error):.4f}, gap {float(e.kl_gap):.4f}, "
        f"ESS fraction {float(e.ess_fraction):.3f}, pareto k {float(e.pareto_k):.2f}"
    )
