"""Stage `report`: everything that the run found, on one self-contained HTML page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import case_from_values
from pipeline.errors import InputError
from pipeline.plots.certificate_meaning import NOT_CHECKED
from pipeline.plots.numbers import probability
from pipeline.plots.report import render_report
from pipeline.plots.report_content import CalibrationReport, ComparisonRow, ReportContent, ReportFigure
from pipeline.progress import console
from pipeline.schema import SETTINGS
from pipeline.settings import CaseSettings, InferSettings
from pipeline.stages.likelihood import diagnostics_of
from pipeline.stages.report_checks import calibration_of, comparison_rows, phase_rows, training_figures
from pipeline.stages.report_observations import Inferred, inferred_observations
from pipeline.stages.run import Run, begin, finish, is_stale
from pipeline.store import complete_or_absent, provenance, read_record, read_safetensors_header, reading, write_text

VERSION = 5
MOST_NAMED = 10
"""Identifiers that a warning spells out."""


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
    inferred = Inferred({})
    if "inference" in inputs:
        inferred = inferred_observations(run, inputs["inference"], inputs.get("compare"))
    comparison = comparison_rows(run, inputs)
    calibration, calibration_figures = calibration_of(run, inputs.get("validate"))
    with reading(inputs["posterior"]):
        figures = [*inferred.figures, *training_figures(header), *calibration_figures]
    figures = _save_figures(run, figures)
    record = json.loads(provenance())
    content = ReportContent(
        title=run.case.title or run.case.name,
        case=run.case.name,
        content_key=key.key,
        summary=(*_summary(inferred, comparison, calibration), *_learned_likelihood(inputs)),
        observations=inferred.listed,
        counts=inferred.counts,
        infer=used.infer,
        comparison=tuple(comparison),
        calibration=calibration,
        phases=tuple(phase_rows(header)),
        figures=tuple(figures),
        settings_yaml=yaml.safe_dump(used.dump(), sort_keys=False),
        provenance={k: str(v) for k, v in record.items() if k != "versions"},
        versions=record["versions"],
        banners=_banners(calibration, inputs),
        warnings=tuple(_warnings(header, inferred, used.infer)),
        surrogate_likelihood="likelihood" in inputs or inferred.learned,
    )
    write_text(output, render_report(content))
    return finish(run, key, f"figures also as PNG in {run.folder / 'figures'}")


def _settings_used(run: Run, inputs: Mapping[str, Path]) -> CaseSettings:
    """The settings that made the files on the page, block by block; the case may have been changed since."""
    values = run.case.dump()
    owners = {"posterior": ("simulator", "simulate", "train"), "inference": ("infer",)}
    owners |= {"validate": ("validate",), "compare": ("compare",)}
    for name, blocks in owners.items():
        stored = read_record(inputs[name], SETTINGS) if name in inputs else {}
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


def _save_figures(run: Run, figures: Sequence[ReportFigure]) -> list[ReportFigure]:
    """Every figure of the page as a PNG, for slides and papers; those that cannot be drawn are told of on page and terminal."""
    saved = []
    for figure in figures:
        name = re.sub(r"[^a-z0-9]+", "_", figure.title.lower()).strip("_")
        path = run.folder / "figures" / f"{name}.png"
        image = io.BytesIO()
        if figure.figure is not None:
            try:
                figure.figure.savefig(image, format="png", dpi=150)
            except Exception as error:  # text is laid out only now
                figure = figure.failed(error)
        if figure.failure:
            path.unlink(missing_ok=True)  # of an earlier page
        else:
            with complete_or_absent(path) as temporary:
                temporary.write_bytes(image.getvalue())
        saved.append(figure)
    failed = [f for f in saved if f.failure]
    if failed:
        console.print(f"report: {len(failed)} of {len(saved)} figures could not be drawn:")
        for figure in failed:
            console.print(f"report: {figure.title}: {figure.failure}")
    return saved


def _summary(
    inferred: Inferred, comparison: list[ComparisonRow], calibration: CalibrationReport | None
) -> tuple[str, ...]:
    under = ", all under the learned likelihood" if inferred.learned else ""
    sentences = [
        f"{inferred.total:,} observation(s): {', '.join(f'{n:,} {v}' for v, n in inferred.counts.items())}{under}."
    ]
    if not inferred.total:
        sentences = ["No observation yet: a network for those to come (elboscope infer posterior.safetensors FILE)."]
    if comparison[1:]:
        worst = max(r.c2st or 0.5 for r in comparison[1:])
        sentences.append(
            f"Two-sample test against {' and '.join(r.side for r in comparison[1:])}{' on the learned likelihood' if inferred.learned else ''}: C2ST at most {worst:.3f} (0.5 is equality)."
        )
    unconverged = [r.side for r in comparison[1:] if r.converged is False]
    if unconverged:
        sentences.append(
            f"{' and '.join(unconverged)} did not converge: what it says of our draws is not to be trusted."
        )
    if calibration is None:
        sentences.append("Calibration was not tested: `elboscope validate` has no result here.")
    if calibration is not None:
        word = calibration.verdict[0].upper() + calibration.verdict[1:]
        sentences.append(f"{word}: {calibration.simulations} held-out simulations.")
    return tuple(sentences)


def _learned_likelihood(inputs: Mapping[str, Path]) -> tuple[str, ...]:
    """What stage `likelihood` says of itself, on held-out simulations."""
    if "likelihood" not in inputs:
        return ()
    found = diagnostics_of(inputs["likelihood"])
    word = "calibrated" if found["calibrated"] else "NOT calibrated"
    return (
        f"The likelihood is learned from {found['simulations']} simulations: held-out log p(s|theta) {found['held_out_log_prob']:.3f} nats, "
        f"spread of its networks {found['held_out_spread']:.3f} nats; ranks of {found['tested']} held-out data among its draws are {word} "
        f"({_least_of_likelihood(found)}). The certificate speaks of this surrogate; calibration on the simulator itself is below.",
    )


def _least_of_likelihood(found: Mapping[str, Any]) -> str:
    """Least p-value of what stage `likelihood` tested."""
    least = min([*found["ks_p_value"].values(), found["tarp_p_value"]])
    return f"least p-value {probability(least)} of {len(found['ks_p_value']) + 1} tests"


def _banners(calibration: CalibrationReport | None, inputs: Mapping[str, Path]) -> tuple[str, ...]:
    """Failed checks of the whole run: nobody may have to look for them."""
    said = []
    if calibration is not None and not calibration.passed:
        values = [p for r in calibration.rows for p in (r.ks_p_value, r.outside_p_value)]
        least = min([*values, calibration.tarp_p_value])
        said.append(
            f"{calibration.verdict}: {calibration.simulations} held-out simulations (least p-value {probability(least)} of {len(values) + 1} "
            "tests): see the rank plots before using any posterior of this run."
        )
    found = diagnostics_of(inputs["likelihood"]) if "likelihood" in inputs else {"calibrated": True}
    if not found["calibrated"]:
        said.append(
            f"The learned likelihood is NOT calibrated on held-out simulations ({_least_of_likelihood(found)}): it differs "
            "from the simulator. More simulations, or more steps of stage likelihood, are the remedy."
        )
    return tuple(said)


def _warnings(header: dict[str, str], inferred: Inferred, infer: InferSettings) -> list[str]:
    found = []
    if inferred.failed:
        found.append(
            f"{_named(inferred.failed)}: no rung of the ladder passed, or a check of the result failed; these draws are not to be trusted."
        )
    if inferred.atypical:
        found.append(f"{_named(inferred.atypical)}: unlike anything simulated, or unlike what the posterior predicts.")
    if inferred.unchecked:
        found.append(
            f"{_named(inferred.unchecked)}: not checked, {NOT_CHECKED} (infer.surrogate_check is the number of simulations)."
        )
    found += [
        f"{o.identifier}: {100 * o.certificate['surrogate_outside']:.0f} % of its draws lie outside what was simulated: there the learned likelihood is a guess."
        for o in inferred.listed
        if o.certificate.get("surrogate_outside", 0.0) > infer.most_outside
    ]
    if header.get("learned_nothing"):
        found.append(f"Training: {header['learned_nothing']}")
    if int(header.get("refused", "0")):
        found.append(
            f"{header['refused']} draws met in training had no finite likelihood or prior: no weight, no gradient."
        )
    if int(header.get("skipped", "0")):
        found.append(f"{header['skipped']} training steps had a gradient that was not finite, and were left out.")
    return found


def _named(identifiers: tuple[str, ...]) -> str:
    """Some identifiers, and how many more there are."""
    more = len(identifiers) - MOST_NAMED
    return ", ".join(identifiers[:MOST_NAMED]) + (f" and {more:,} others" if more > 0 else "")
