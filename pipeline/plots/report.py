"""The report: one self-contained HTML page, nothing loaded from anywhere, equal input giving equal bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.errors import InputError
from pipeline.plots import numbers
from pipeline.plots.certificate_meaning import BLIND_SPOT, SURROGATE
from pipeline.plots.certificate_sentences import OF_THE_LEARNED, Badge, badge, sentences, verdict_words
from pipeline.plots.certificate_words import CertificateLine, certificate_lines, certificate_value, nat_places
from pipeline.plots.embed import figure_image, label_image
from pipeline.plots.reading import READING, SECTION, SURROGATE_READING
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
from pipeline.schema import VERDICTS
from simulators.units import unit_text

TEMPLATE = "report_template.html.j2"
Table = list[list[str | Markup]]


@dataclass(frozen=True)
class ObservationView:
    """An observation as text."""

    identifier: str
    badge: Badge
    words: str
    note: str
    sentences: tuple[str, ...]
    identity: tuple[str, str, str, str, str, str]
    parameters: Table
    certificate: list[CertificateLine]


def render_report(content: ReportContent) -> str:
    r"""The report as HTML.

    The first screen shows verdict, $\log p(x) = \mathrm{ELBO} + \mathrm{gap}$, ELBO = reconstruction -
    regularization, and the parameters; the rest follows in the order in which a referee asks.

    Raises:
        InputError: an unknown verdict, or a content key with characters that are not letters or digits.
    """
    if not content.content_key.isalnum():
        raise InputError(f"report: expected a content key of letters and digits, got {content.content_key!r}")
    for observation in content.observations:
        if observation.verdict not in VERDICTS:
            known = ", ".join(VERDICTS)
            raise InputError(f"report: {observation.identifier}: verdict {observation.verdict!r} is none of {known}")
    # autoescape: titles, notes and settings are the user's text, and may hold < and &
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    counts = content.counts or Counter(o.verdict for o in content.observations)
    template = environment.from_string(files("pipeline.plots").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        content=content,
        observations=[_observation(o, content) for o in content.observations],
        overview=_overview(content.observations, learned=content.surrogate_likelihood),
        counts=[
            (badge(verdict, learned=content.surrogate_likelihood), number)
            for verdict, number in sorted(counts.items(), key=lambda i: list(VERDICTS).index(i[0]))
        ],
        total=sum(counts.values()),
        blind_spot=BLIND_SPOT,
        of_learned=f" {OF_THE_LEARNED}" if content.surrogate_likelihood else "",
        surrogate=SURROGATE if content.surrogate_likelihood else "",
        comparison=_comparison(content.comparison, learned=content.surrogate_likelihood),
        sides=[row.side for row in content.comparison],
        comparison_notes=[(row.side, row.note) for row in content.comparison if row.note],
        calibration=_calibration(content.calibration),
        tarp_p=numbers.probability(content.calibration.tarp_p_value) if content.calibration else "",
        tarp_area=_signed(content.calibration.tarp_area, 3) if content.calibration else "",
        phases=_phases(content.phases),
        figures=_figures(content.figures, learned=content.surrogate_likelihood),
        verdicts=VERDICTS,
    )


def _observation(observation: ObservationReport, content: ReportContent) -> ObservationView:
    learned = content.surrogate_likelihood
    return ObservationView(
        identifier=observation.identifier,
        badge=badge(observation.verdict, learned=learned),
        words=verdict_words(observation.verdict, learned=learned),
        note=observation.note,
        sentences=sentences(observation.certificate, content.infer, learned=learned),
        identity=_identity(observation),
        parameters=[_parameter(p) for p in observation.parameters],
        certificate=certificate_lines(observation.certificate, content.infer),
    )


def _identity(observation: ObservationReport) -> tuple[str, str, str, str, str, str]:
    """Log p(x), ELBO, gap, ELBO, reconstruction, regularization: two equations that add up as printed."""
    certificate = observation.certificate
    places = nat_places(certificate)
    log_evidence, error = certificate.get("log_evidence"), certificate.get("log_evidence_error")
    elbo, gap, reconstruction, regularization = (
        numbers.fixed(certificate.get(name), places) for name in ("elbo", "kl_gap", "reconstruction", "regularization")
    )
    return numbers.with_error(log_evidence, error), elbo, gap, elbo, reconstruction, regularization


def _parameter(row: ParameterRow) -> list[str | Markup]:
    """Symbol, name, unit, mean +- sd, quantiles at the digits of the sd."""
    places = numbers.decimals(row.standard_deviation)
    plain = -1 <= places <= 6
    quantiles = [numbers.fixed(q, places) if plain else numbers.significant(q, 4) for q in (row.q16, row.q50, row.q84)]
    return [
        label_image(row.label, row.name),
        row.name,
        unit_text(row.unit, latex=False) or "–",
        numbers.with_error(row.mean, row.standard_deviation),
        *quantiles,
    ]


def _overview(observations: tuple[ObservationReport, ...], *, learned: bool) -> Table:
    names = ("log_evidence", "kl_gap", "ess_fraction", "pareto_k")
    return [
        [
            o.identifier,
            badge(o.verdict, learned=learned).text,
            *(certificate_value(n, o.certificate) if n in o.certificate else "–" for n in names),
        ]
        for o in observations
    ]


def _comparison(rows: tuple[ComparisonRow, ...], *, learned: bool) -> Table:
    """One line a quantity, one column a side: sides are few, and the table then fits a telephone."""

    def delta(row: ComparisonRow) -> str:
        error = math.hypot(row.log_evidence_error or 0.0, rows[0].log_evidence_error or 0.0)
        return "–" if row.delta_log_evidence is None else _signed(row.delta_log_evidence, numbers.decimals(error))

    of = f" {OF_THE_LEARNED}" if learned else ""
    lines: list[tuple[str, Callable[[ComparisonRow], str]]] = [
        (f"Log evidence{of}, own [nats]", lambda r: numbers.with_error(r.log_evidence, r.log_evidence_error)),
        ("minus ours [nats]", delta),
        (
            f"Log evidence{of}, re-checked [nats]",
            lambda r: numbers.with_error(r.checked_log_evidence, r.checked_log_evidence_error),
        ),
        ("C2ST against ours", lambda r: numbers.fixed(r.c2st, 3)),
        ("Largest shift of a mean [s.d.]", lambda r: numbers.fixed(r.worst_mean_shift, 3)),
        ("Largest Wasserstein distance [s.d.]", lambda r: numbers.fixed(r.worst_wasserstein, 3)),
        ("Wall time, per observation", lambda r: numbers.duration(_measured(r.wall_time_s))),
        ("CPU time, per observation", lambda r: numbers.duration(_measured(r.cpu_time_s))),
        ("Likelihood calls, per observation", lambda r: numbers.count(r.likelihood_calls)),
        ("Converged", lambda r: {True: "yes", False: "no", None: "–"}[r.converged]),
    ]
    table: Table = [[title, *(cell(row) for row in rows)] for title, cell in lines]
    return [line for line in table if any(cell != "–" for cell in line[1:])]


def _measured(seconds: float | None) -> float | None:
    """None for NaN: a file of an earlier version, which does not say."""
    return None if seconds is None or math.isnan(seconds) else seconds


def _calibration(report: CalibrationReport | None) -> Table:
    def line(row: CalibrationRow) -> list[str | Markup]:
        coverage = [numbers.percent(c) for c in (row.coverage_50, row.coverage_90)]
        outside = f"{row.outside}, {numbers.probability(row.outside_p_value)}"
        return [label_image(row.label, row.name), row.name, numbers.probability(row.ks_p_value), outside, *coverage]

    return [] if report is None else [line(row) for row in report.rows]


def _phases(phases: tuple[PhaseRow, ...]) -> Table:
    return [
        [
            str(i),
            p.objective,
            numbers.count(p.steps),
            numbers.significant(p.learning_rate, 2),
            numbers.fixed(p.held_out_forward_log_q, 3),
            numbers.fixed(p.held_out_elbo, 2),
            numbers.percent(p.held_out_ess_fraction),
            {True: "kept", False: "rolled back", None: "–"}[p.kept] + (f" ({p.note})" if p.note else ""),
        ]
        for i, p in enumerate(phases, start=1)
    ]


def _figures(figures: tuple[ReportFigure, ...], *, learned: bool) -> dict[str, list[dict[str, str | Markup]]]:
    """Figures of each section, as images with their words; what a learned likelihood made is said to be of it."""
    of_learned = SURROGATE_READING if learned else {}
    sections: dict[str, list[dict[str, str | Markup]]] = {name: [] for name in SECTION.values()}
    for f in figures:
        sections[SECTION[f.kind]].append(
            {
                "title": f.title,
                "image": f.failure if f.figure is None else figure_image(f.figure, f.title),
                "caption": f.caption,
                "reading": ""
                if f.figure is None
                else " ".join(r for r in (f.reading or READING[f.kind], of_learned.get(f.kind, "")) if r),
            }
        )
    return sections


def _signed(value: float, places: int) -> str:
    text = numbers.fixed(value, places)
    return text if text.startswith("−") or not value > 0 else f"+{text}"
