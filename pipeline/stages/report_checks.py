"""What a report says of training, of other samplers, and of calibration."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.diagnostics.calibration import Calibration, calibrate
from pipeline.plots.calibration import plot_rank_ecdf, plot_rank_histogram, plot_tarp
from pipeline.plots.report_content import (
    CalibrationReport,
    CalibrationRow,
    ComparisonRow,
    PhaseRow,
    ReportFigure,
)
from pipeline.plots.style import drawable
from pipeline.plots.training import plot_training
from pipeline.stages.costs import STARTS, baseline_costs, cost_in_words, inference_cost
from pipeline.stages.run import Run
from pipeline.store import open_hdf5
from pipeline.training.guard import gap_beside_ess, plain

LEAST_TESTED = 0.8
"""Share of held-out simulations below which calibration is said to speak of a part of them only."""
Array = NDArray[np.float64]


def _history(header: dict[str, str]) -> dict[str, Array]:
    """Columns of the training log; NaN where a figure was not evaluated."""
    rows = list(csv.DictReader(header["history"].splitlines()))
    return {k: np.array([float(r[k]) if r[k] else np.nan for r in rows]) for k in rows[0]}


def training_figures(header: dict[str, str]) -> list[ReportFigure]:
    """The training log of a posterior's header, all phases in a row."""
    history = _history(header)
    outcomes = json.loads(header["phases"])
    before = np.concatenate([[0], np.cumsum([o["steps"] for o in outcomes])])
    history["step"] = history["step"] + before[history["phase"].astype(int)]
    names = [o["label"] for o in outcomes]
    return [ReportFigure.of("training", "training", lambda: plot_training(history, phase_names=names))]


def phase_rows(header: dict[str, str]) -> list[PhaseRow]:
    """What each phase of training did, from a posterior's header."""
    rows = []
    for outcome in json.loads(header["phases"]):
        shown = ("held_out_forward_log_q", "held_out_elbo", "held_out_ess_fraction")
        figures: dict[str, Any] = {k: outcome["after"][k] for k in shown if k in outcome["after"]}
        said = (
            outcome.get("reason") or f"had to improve {plain(outcome['criterion'])}",
            gap_beside_ess(outcome["after"]),
        )
        note = "; ".join(filter(None, said if outcome["kept"] else said[:1]))
        rows.append(
            PhaseRow(
                outcome["label"], outcome["steps"], outcome["learning_rate"], **figures, kept=outcome["kept"], note=note
            )
        )
    return rows


def comparison_rows(run: Run, inputs: dict[str, Path]) -> list[ComparisonRow]:
    """Ours and every baseline's figures for the first observation; nothing where `compare` was not run.

    Costs are means over the observations that each side was run on.
    """
    path = inputs.get("compare")
    if path is None:
        return []
    with open_hdf5(inputs["inference"]) as file:
        certificate: Any = file["certificate"]
        ours = float(certificate["log_evidence"][0])
        error = float(certificate["log_evidence_error"][0])
        identifier = certificate["observation"].asstr()[0]
    cost, _ = inference_cost(inputs["inference"])
    costs = baseline_costs(path)
    rows = [
        ComparisonRow(
            "elboscope",
            log_evidence=ours,
            log_evidence_error=error,
            **asdict(cost),
            note=cost_in_words(run, inputs["inference"]),
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
                    **asdict(costs[name]),
                    converged=bool(a["converged"]),
                    note=STARTS.get(name, ""),
                )
            )
    return rows


def calibration_of(run: Run, path: Path | None) -> tuple[CalibrationReport | None, list[ReportFigure]]:
    """Tests and figures of calibration from validation.h5; none where `validate` was not run."""
    if path is None:
        return None, []
    with open_hdf5(path) as file:
        group: Any = file["calibration"]
        tested = group["tested"][:]
        theta_true = torch.from_numpy(group["theta_true"][:][tested])
        theta_draws = torch.from_numpy(group["theta_draws"][:][:, tested])
        ess = float(np.median(group["ess_fraction"][:]))
        under_proposal = group.attrs["tested_posterior"] != "prior"
        passed, verdict = bool(group.attrs["passed"]), str(group.attrs["verdict"])
    c = calibrate(theta_true, theta_draws, seed=run.case.seed)
    labels = [drawable(p.label, p.name) for p in run.simulator.parameters]
    figures = [
        ReportFigure.of(
            "rank_ecdf",
            "calibration: ranks of the true parameters",
            lambda: plot_rank_ecdf(c.ecdf_level, c.ecdf_difference, c.ecdf_band, labels),
        ),
        ReportFigure.of(
            "rank_histogram",
            "calibration: rank histograms",
            lambda: plot_rank_histogram(c.histogram_count, c.histogram_expected, c.histogram_band, labels),
        ),
        ReportFigure.of(
            "tarp",
            "calibration: expected coverage (TARP)",
            lambda: plot_tarp(c.tarp.alpha, c.tarp.expected_coverage, c.tarp.band),
        ),
    ]
    note = (
        "Parameters of the simulations were drawn from the proposal and not from the prior. Ranks are uniform only "
        "under the posterior that has the proposal as its prior: the same q was weighted for that one."
        if under_proposal
        else ""
    )
    if not run.case.validation.weighted:
        note += "These are draws of q as the network has it: what `infer` delivers is weighted, or refined first."
    if not tested.all():
        note += (
            f" {int((~tested).sum())} of {len(tested)} simulations were not tested: too few effective draws. The choice "
            "depends on their data and on q, not on the true parameters, which leaves the ranks of the others uniform; of "
            "the simulations left out it says nothing."
        )
    if tested.mean() < LEAST_TESTED:
        note += " So many are left out that this says little of the whole population."
    report = _calibration_report(run, c, len(theta_true), ess, note)
    return replace(report, passed=passed, verdict=verdict), figures


def _calibration_report(run: Run, c: Calibration, simulations: int, ess: float, note: str) -> CalibrationReport:
    half, ninety = (int(np.argmin(np.abs(c.coverage_level - level))) for level in (0.5, 0.9))
    rows = [
        CalibrationRow(
            p.name,
            p.label,
            float(c.ks_p_value[d]),
            int(c.outside[d]),
            float(c.outside_p_value[d]),
            float(c.coverage[half, d]),
            float(c.coverage[ninety, d]),
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
        ranks_uniform=c.passed,
        verdict="calibrated" if c.passed else "NOT calibrated",
        ess_fraction=ess if np.isfinite(ess) else None,
        note=note,
    )
