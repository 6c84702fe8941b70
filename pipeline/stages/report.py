"""Stage `report`: everything that the run found, on one self-contained HTML page."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from pipeline.config import case_from_values
from pipeline.diagnostics.calibration import Calibration, calibrate
from pipeline.errors import InputError
from pipeline.plots.calibration import plot_rank_ecdf, plot_rank_histogram, plot_tarp
from pipeline.plots.corner import DrawSet, plot_corner
from pipeline.plots.predictive import plot_predictive
from pipeline.plots.report import render_report
from pipeline.plots.report_content import (
    CalibrationReport,
    CalibrationRow,
    ComparisonRow,
    ObservationReport,
    ParameterRow,
    PhaseRow,
    ReportContent,
    ReportFigure,
)
from pipeline.plots.training import plot_training
from pipeline.plots.weights import WeightSet, plot_weights
from pipeline.progress import console
from pipeline.rng import generator
from pipeline.schema import CERTIFICATE, PROVENANCE, SETTINGS
from pipeline.settings import CaseSettings, InferSettings
from pipeline.stages.ladder import one_row
from pipeline.stages.likelihood import diagnostics_of
from pipeline.stages.run import Run, begin, finish, inferred_observation, is_stale
from pipeline.store import (
    complete_or_absent,
    open_hdf5,
    provenance,
    read_attribute,
    read_safetensors_header,
    write_text,
)
from simulators.protocol import Parameter, context_of, data_observables

VERSION = 3
SHOWN_OBSERVATIONS = 5
CURVES = 400
LEAST_TESTED = 0.8
"""Share of held-out simulations below which calibration is said to speak of a part of them only."""
Array = NDArray[np.float64]


def report(run: Run) -> Path:
    """Write `report.html` from what the other stages left; `validate` and `compare` may be missing.

    So may `infer` where the case has no observation (the network is then trained for those to come) or no likelihood.
    """
    inputs = {"posterior": run.input("train")}
    if "infer" in run.stages or run.output("infer").is_file():
        inputs["inference"] = run.input("infer")
        if is_stale(inputs["inference"], inputs):
            raise InputError(f"{inputs['inference']}: made with another posterior: run `elboscope infer` again")
    inputs |= {stage: run.output(stage) for stage in ("validate", "compare") if _is_current(run, stage, inputs)}
    if run.learns_likelihood:
        inputs["likelihood"] = run.input("likelihood")
    key = begin(run, "report", VERSION, run.relevant("name", "title", "seed", "simulator"), inputs)
    output = run.output("report")
    if key is None:
        return output
    header = read_safetensors_header(inputs["posterior"])
    used = _settings_used(run, inputs)
    observations = _observations(run, inputs["inference"]) if "inference" in inputs else []
    comparison = _comparison(run, inputs)
    calibration, calibration_figures = _calibration(run, inputs.get("validate"))
    observation_figures = _observation_figures(run, inputs) if observations else []
    figures = [*observation_figures, *_training_figures(header), *calibration_figures]
    record = json.loads(provenance(key.started))
    content = ReportContent(
        title=run.case.title or run.case.name,
        case=run.case.name,
        content_key=key.key,
        summary=(*_summary(run, observations, comparison, calibration), *_learned_likelihood(inputs)),
        observations=tuple(observations),
        infer=used.infer,
        comparison=tuple(comparison),
        calibration=calibration,
        phases=tuple(_phases(header)),
        figures=tuple(figures),
        settings_yaml=yaml.safe_dump(used.dump(), sort_keys=False),
        provenance={k: str(v) for k, v in record.items() if k not in ("versions", "wall_time_s")},
        versions=record["versions"],
        warnings=tuple(_warnings(run, header, observations, calibration, used.infer)),
        surrogate_likelihood="likelihood" in inputs,
    )
    _save_figures(run, figures)
    write_text(output, render_report(content))
    return finish(run, key, f"figures also as PNG in {run.folder / 'figures'}")


def _settings_used(run: Run, inputs: Mapping[str, Path]) -> CaseSettings:
    """The settings that made the files on the page, block by block; the case may have been changed since."""
    values = run.case.dump()
    owners = {"posterior": ("simulator", "simulate", "train"), "inference": ("infer",)}
    owners |= {"validate": ("validate",), "compare": ("compare",)}
    for name, blocks in owners.items():
        stored = json.loads(read_attribute(inputs[name], SETTINGS) or "{}") if name in inputs else {}
        values |= {block: stored[block] for block in blocks if block in stored}
    return case_from_values(values, str(run.folder))


def _is_current(run: Run, stage: str, inputs: Mapping[str, Path]) -> bool:
    """Whether a stage's output is there and speaks of this posterior and inference; said where it does not."""
    path = run.output(stage)
    if not path.is_file():
        return False
    if is_stale(path, inputs):
        console.print(f"report: {path} was made from other files and is left out: run `elboscope {stage}` again")
        return False
    return True


def _save_figures(run: Run, figures: list[ReportFigure]) -> None:
    """Every figure of the page as a PNG, for slides and papers."""
    for figure in figures:
        name = re.sub(r"[^a-z0-9]+", "_", figure.title.lower()).strip("_")
        with complete_or_absent(run.folder / "figures" / f"{name}.png") as temporary:
            figure.figure.savefig(temporary, format="png", dpi=150)


# ---------------------------------------------------------------- what was inferred


def _label(parameter: Parameter) -> str:
    """Symbol and unit, for axes."""
    name = parameter.label or parameter.name
    return f"{name} [{parameter.unit}]" if parameter.unit else name


def _draws(group: Any, names: list[str], observation: int) -> Array:
    """Draws of one observation, (S, D), from a group of inference.h5."""
    return np.stack([np.asarray(group[n])[..., observation].reshape(-1) for n in names], axis=1)


def _observations(run: Run, path: Path) -> list[ObservationReport]:
    reports = []
    with open_hdf5(path) as file:
        certificate: Any = file["certificate"]
        names = [p.name for p in run.simulator.parameters]
        for n, identifier in enumerate(certificate["observation"].asstr()[:]):
            draws = _draws(file["posterior"], names, n)
            rows = []
            for d, p in enumerate(run.simulator.parameters):
                q16, q50, q84 = np.quantile(draws[:, d], [0.16, 0.5, 0.84])
                rows.append(
                    ParameterRow(
                        p.name,
                        p.label,
                        p.unit,
                        float(draws[:, d].mean()),
                        float(draws[:, d].std()),
                        float(q16),
                        float(q50),
                        float(q84),
                    )
                )
            numbers = {name: float(certificate[name][n]) for name in CERTIFICATE}
            reports.append(ObservationReport(str(identifier), certificate["verdict"].asstr()[n], numbers, tuple(rows)))
    return reports


def _observation_figures(run: Run, inputs: dict[str, Path]) -> list[ReportFigure]:
    figures = []
    with open_hdf5(inputs["inference"]) as file:
        certificate: Any = file["certificate"]
        for n, identifier in enumerate(certificate["observation"].asstr()[:SHOWN_OBSERVATIONS]):
            figures += _figures_of(run, file, inputs.get("compare"), n, str(identifier))
    return figures


def _figures_of(run: Run, file: h5py.File, compare: Path | None, n: int, identifier: str) -> list[ReportFigure]:
    names = [p.name for p in run.simulator.parameters]
    delivered = _draws(file["posterior"], names, n)
    sets, weights = [DrawSet("delivered", delivered)], None
    if "proposal" in file:  # not stored for large catalogues
        proposal: Any = file["proposal"]
        drawn = np.isfinite(np.asarray(proposal["log_q"][:, n]))  # padded where another observation needed more
        raw, weights = _draws(proposal, names, n)[drawn], np.asarray(proposal["log_weight"][:, n])[drawn]
        usable = np.isfinite(weights)
        shares = np.where(usable, np.exp(weights - weights[usable].max()), 0.0) if usable.any() else np.ones(len(raw))
        sets = [DrawSet("q, weighted", raw, shares), DrawSet("q, raw", raw, line="--")]
    sets += [DrawSet(name, draws) for name, draws in _baseline_draws(compare, identifier).items()]
    corner = plot_corner(sets, [_label(p) for p in run.simulator.parameters])
    figures = []
    predictive = _predictive_figure(run, delivered, n)
    if predictive is not None:
        figures.append(ReportFigure("predictive", f"{identifier}: data and posterior predictive", predictive))
    figures.append(ReportFigure("corner", f"{identifier}: posterior", corner))
    if weights is not None:
        certificate: Any = file["certificate"]
        of_q = WeightSet(
            "delivered q", weights, float(certificate["ess_fraction"][n]), float(certificate["pareto_k"][n])
        )
        figures.append(ReportFigure("weights", f"{identifier}: importance weights", plot_weights([of_q])))
    return figures


def _baseline_draws(path: Path | None, identifier: str) -> dict[str, Array]:
    if path is None:
        return {}
    with open_hdf5(path) as file:
        group: Any = file.get(identifier, {})
        return {name: np.asarray(side["draws"]) for name, side in group.items()}


def _predictive_figure(run: Run, theta: Array, n: int) -> Any:
    """The first data observable, if it is one-dimensional: observed, replicated, and the model curve."""
    observable = data_observables(run.simulator)[0]
    if len(observable.shape) != 1:
        return None
    x = one_row(inferred_observation(run, run.output("infer")).x, n)
    draws = torch.from_numpy(theta[np.linspace(0, len(theta) - 1, min(CURVES, len(theta))).astype(int)])
    context = {k: v.expand(len(draws), *v.shape[1:]) for k, v in context_of(run.simulator, x).items()}
    stream = generator(run.case.seed, "report-predictive", n)
    replicated = run.simulator.simulate(draws, context or None, generator=stream)[observable.name]
    observed = x[observable.name][0]
    by_name = {o.name: o for o in run.simulator.observables}
    axis = by_name[observable.against] if observable.against else None
    abscissa = x[axis.name][0].double() if axis else torch.arange(len(observed)).double()
    arguments: dict[str, Any] = {}
    curve = getattr(run.simulator, "model_curve", None)
    if axis and callable(curve):
        grid = torch.linspace(float(abscissa.min()), float(abscissa.max()), 600, dtype=torch.float64)
        curves: Any = curve(draws, x, grid)
        # an offset that the likelihood marginalises is in the curves; replicated data draw it anew, so align them
        arguments = {"grid": grid.numpy(), "curves": curves.numpy()}
        at_data: Any = curve(draws, x, abscissa)
        replicated = replicated - replicated.mean(-1, keepdim=True) + at_data.mean(-1, keepdim=True)
    error = x[observable.error][0].numpy() if observable.error else None
    return plot_predictive(
        abscissa.numpy(),
        observed.double().numpy(),
        error=error,
        replicated=replicated.double().numpy(),
        abscissa_label=_axis_label(axis.label or axis.name, axis.unit) if axis else "data point",
        data_label=_axis_label(observable.label or observable.name, observable.unit),
        **arguments,
    )


def _axis_label(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name


# ---------------------------------------------------------------- training, comparison, calibration


def _history(header: dict[str, str]) -> dict[str, Array]:
    """Columns of the training log; NaN where a figure was not evaluated."""
    rows = list(csv.DictReader(header["history"].splitlines()))
    return {k: np.array([float(r[k]) if r[k] else np.nan for r in rows]) for k in rows[0]}


def _training_figures(header: dict[str, str]) -> list[ReportFigure]:
    history = _history(header)
    outcomes = json.loads(header["phases"])
    before = np.concatenate([[0], np.cumsum([o["steps"] for o in outcomes])])
    history["step"] = history["step"] + before[history["phase"].astype(int)]
    return [ReportFigure("training", "training", plot_training(history, phase_names=[o["label"] for o in outcomes]))]


def _phases(header: dict[str, str]) -> list[PhaseRow]:
    rows = []
    for outcome in json.loads(header["phases"]):
        shown = ("held_out_forward_log_q", "held_out_elbo", "held_out_ess_fraction")
        figures: dict[str, Any] = {k: outcome["after"][k] for k in shown if k in outcome["after"]}
        note = f"had to improve {outcome['criterion'].removeprefix('held_out_').replace('_', ' ')}"
        rows.append(
            PhaseRow(
                outcome["label"], outcome["steps"], outcome["learning_rate"], **figures, kept=outcome["kept"], note=note
            )
        )
    return rows


def _wall_time(path: Path) -> float:
    attributes: Any = read_safetensors_header(path) if path.suffix == ".safetensors" else None
    if attributes is None:
        with open_hdf5(path) as file:
            attributes = dict(file.attrs)
    return float(json.loads(str(attributes[PROVENANCE])).get("wall_time_s", np.nan))


def _comparison(run: Run, inputs: dict[str, Path]) -> list[ComparisonRow]:
    path = inputs.get("compare")
    if path is None:
        return []
    with open_hdf5(inputs["inference"]) as file:
        certificate: Any = file["certificate"]
        ours = float(certificate["log_evidence"][0])
        error = float(certificate["log_evidence_error"][0])
        identifier = certificate["observation"].asstr()[0]
        calls = int(certificate["likelihood_calls"][0])
    training, inference = _wall_time(inputs["posterior"]), _wall_time(inputs["inference"])
    rows = [
        ComparisonRow(
            "elboscope",
            log_evidence=ours,
            log_evidence_error=error,
            wall_time_s=inference,
            likelihood_calls=calls,
            note=f"inference of all observations, after {training:.0f} s of training that serve every observation",
        )
    ]
    with open_hdf5(path) as file:
        group: Any = file.get(identifier, {})
        for name, side in group.items():
            a = side.attrs
            evidence = float(a["log_evidence"]) if "log_evidence" in a else None
            rows.append(
                ComparisonRow(
                    name,
                    log_evidence=evidence,
                    log_evidence_error=float(a["log_evidence_error"]) if evidence is not None else None,
                    delta_log_evidence=(evidence if evidence is not None else float(a["checked_log_evidence"])) - ours,
                    checked_log_evidence=float(a["checked_log_evidence"]),
                    checked_log_evidence_error=float(a["checked_log_evidence_error"]),
                    c2st=float(a["c2st"]),
                    worst_mean_shift=float(np.abs(side["mean_shift"]).max()),
                    worst_wasserstein=float(np.max(side["wasserstein"])),
                    wall_time_s=float(json.loads(a[PROVENANCE])["wall_time_s"]),
                    likelihood_calls=int(a["likelihood_calls"]),
                    converged=bool(a["converged"]),
                )
            )
    return rows


def _calibration(run: Run, path: Path | None) -> tuple[CalibrationReport | None, list[ReportFigure]]:
    if path is None:
        return None, []
    with open_hdf5(path) as file:
        group: Any = file["calibration"]
        tested = group["tested"][:]
        theta_true = torch.from_numpy(group["theta_true"][:][tested])
        theta_draws = torch.from_numpy(group["theta_draws"][:][:, tested])
        ess = float(np.median(group["ess_fraction"][:]))
        under_proposal = group.attrs["tested_posterior"] != "prior"
    c = calibrate(theta_true, theta_draws, seed=run.case.seed)
    labels = [p.label or p.name for p in run.simulator.parameters]
    figures = [
        ReportFigure(
            "rank_ecdf",
            "calibration: ranks of the true parameters",
            plot_rank_ecdf(c.ecdf_level, c.ecdf_difference, c.ecdf_band, labels),
        ),
        ReportFigure(
            "rank_histogram",
            "calibration: rank histograms",
            plot_rank_histogram(c.histogram_count, c.histogram_expected, c.histogram_band, labels),
        ),
        ReportFigure(
            "tarp",
            "calibration: expected coverage (TARP)",
            plot_tarp(c.tarp.alpha, c.tarp.expected_coverage, c.tarp.band),
        ),
    ]
    note = (
        "Parameters of the simulations were drawn from the proposal and not from the prior. Ranks are uniform only "
        "under the posterior that has the proposal as its prior: the same q was weighted for that one."
        if under_proposal
        else ""
    )
    if not tested.all():
        note += (
            f" {int((~tested).sum())} of {len(tested)} simulations were not tested: too few effective draws. The choice "
            "depends on their data and on q, not on the true parameters, which leaves the ranks of the others uniform; of "
            "the simulations left out it says nothing."
        )
    if tested.mean() < LEAST_TESTED:
        note += " So many are left out that this says little of the whole population."
    return _calibration_report(run, c, len(theta_true), ess, note), figures


def _calibration_report(run: Run, c: Calibration, simulations: int, ess: float, note: str) -> CalibrationReport:
    half, ninety = (int(np.argmin(np.abs(c.coverage_level - level))) for level in (0.5, 0.9))
    rows = [
        CalibrationRow(
            p.name, p.label, float(c.ks_p_value[d]), float(c.coverage[half, d]), float(c.coverage[ninety, d])
        )
        for d, p in enumerate(run.simulator.parameters)
    ]
    return CalibrationReport(
        simulations=simulations,
        draws=c.draws,
        rows=tuple(rows),
        tarp_p_value=c.tarp.p_value,
        tarp_area=c.tarp.area_to_curve,
        passed=c.passed,
        ess_fraction=ess if np.isfinite(ess) else None,
        note=note,
    )


# ---------------------------------------------------------------- words


def _summary(
    run: Run,
    observations: list[ObservationReport],
    comparison: list[ComparisonRow],
    calibration: CalibrationReport | None,
) -> tuple[str, ...]:
    counts = {v: sum(o.verdict == v for o in observations) for v in dict.fromkeys(o.verdict for o in observations)}
    sentences = [f"{len(observations)} observation(s): {', '.join(f'{n} {v}' for v, n in counts.items())}."]
    if not observations:
        sentences = ["No observation yet: a network for those to come (elboscope infer posterior.safetensors FILE)."]
    if comparison[1:]:
        worst = max(r.c2st or 0.5 for r in comparison[1:])
        sentences.append(
            f"Two-sample test against {' and '.join(r.side for r in comparison[1:])}: C2ST at most {worst:.3f} (0.5 is equality)."
        )
    if calibration is not None:
        word = "Calibrated" if calibration.passed else "NOT calibrated"
        sentences.append(f"{word} on {calibration.simulations} held-out simulations.")
    return tuple(sentences)


def _learned_likelihood(inputs: Mapping[str, Path]) -> tuple[str, ...]:
    """What stage `likelihood` says of itself, on held-out simulations."""
    if "likelihood" not in inputs:
        return ()
    found = diagnostics_of(inputs["likelihood"])
    least = min([*found["ks_p_value"].values(), found["tarp_p_value"]])
    word = "calibrated" if found["calibrated"] else "NOT calibrated"
    return (
        f"The likelihood is learned from {found['simulations']} simulations: held-out log p(s|theta) {found['held_out_log_prob']:.3f} nats, "
        f"spread of its networks {found['held_out_spread']:.3f} nats; ranks of {found['tested']} held-out data among its draws are {word} "
        f"(least p-value {least:.3f} of {len(found['ks_p_value']) + 1} tests). The certificate speaks of this surrogate; calibration on the simulator itself is below.",
    )


def _warnings(
    run: Run,
    header: dict[str, str],
    observations: list[ObservationReport],
    calibration: CalibrationReport | None,
    infer: InferSettings,
) -> list[str]:
    found = [
        f"{o.identifier}: no rung of the ladder passed; its draws are not to be trusted."
        for o in observations
        if o.verdict == "failed"
    ]
    found += [
        f"{o.identifier}: {100 * o.certificate['surrogate_outside']:.0f} % of its draws lie outside what was simulated: there the learned likelihood is a guess."
        for o in observations
        if o.certificate["surrogate_outside"] > infer.most_outside
    ]
    if calibration is not None and not calibration.passed:
        found.append(
            "Calibration on held-out simulations failed: see the rank plots before using any posterior of this run."
        )
    if int(header.get("refused", "0")):
        found.append(
            f"{header['refused']} draws met in training had no finite likelihood or prior: no weight, no gradient."
        )
    if int(header.get("skipped", "0")):
        found.append(f"{header['skipped']} training steps had a gradient that was not finite, and were left out.")
    return found
