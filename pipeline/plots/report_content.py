"""What a report says, before it is a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from matplotlib.figure import Figure

from pipeline.settings import InferSettings

FigureKind = Literal[
    "catalogue",
    "predictive",
    "corner",
    "weights",
    "training",
    "rank_ecdf",
    "rank_histogram",
    "tarp",
    "comparison",
    "other",
]


@dataclass(frozen=True)
class ParameterRow:
    """Marginal of one parameter, in `unit`.

    Attributes:
        name: identifier.
        label: LaTeX, between dollars; the name where empty.
        unit: astropy unit string.
        mean: of the delivered draws.
        standard_deviation: of the delivered draws.
        q16: 16 % quantile.
        q50: median.
        q84: 84 % quantile.
    """

    name: str
    label: str
    unit: str
    mean: float
    standard_deviation: float
    q16: float
    q50: float
    q84: float


@dataclass(frozen=True)
class ObservationReport:
    """Posterior and certificate of one observation.

    Attributes:
        identifier: of the observation.
        verdict: one of `schema.VERDICTS`.
        certificate: numbers by the names of `schema.CERTIFICATE`; those absent are left out.
        parameters: one row each.
        note: of the ladder, why a rung was rejected or what a check found.
    """

    identifier: str
    verdict: str
    certificate: Mapping[str, float]
    parameters: tuple[ParameterRow, ...]
    note: str = ""


@dataclass(frozen=True)
class ComparisonRow:
    """One side of the comparison; None where a figure does not apply.

    Attributes:
        side: name of the sampler; ours first.
        log_evidence: as the sampler states it, nats.
        log_evidence_error: as the sampler states it, nats.
        delta_log_evidence: log_evidence minus ours, nats.
        checked_log_evidence: by importance sampling from a mixture fitted to its draws, nats.
        checked_log_evidence_error: nats.
        c2st: of its draws against ours, 0.5 is equality.
        worst_mean_shift: largest difference of means, in standard deviations.
        worst_wasserstein: largest 1-Wasserstein distance, in standard deviations.
        wall_time_s: seconds an observation; NaN where not measured.
        likelihood_calls: number an observation.
        converged: by its own checks.
        note: what the numbers include, such as training.
        cpu_time_s: of all threads and processes, seconds an observation; NaN where not measured.
    """

    side: str
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    delta_log_evidence: float | None = None
    checked_log_evidence: float | None = None
    checked_log_evidence_error: float | None = None
    c2st: float | None = None
    worst_mean_shift: float | None = None
    worst_wasserstein: float | None = None
    wall_time_s: float | None = None
    likelihood_calls: float | None = None
    converged: bool | None = None
    note: str = ""
    cpu_time_s: float | None = None


@dataclass(frozen=True)
class CalibrationRow:
    """Calibration of one parameter.

    Attributes:
        name: identifier.
        label: LaTeX, between dollars; the name where empty.
        ks_p_value: test of uniform ranks.
        outside: true values below or above all of their draws.
        outside_p_value: test of that number.
        coverage_50, coverage_90: how often central intervals hold the true value.
    """

    name: str
    label: str
    ks_p_value: float
    outside: int
    outside_p_value: float
    coverage_50: float
    coverage_90: float


@dataclass(frozen=True)
class CalibrationReport:
    """Calibration on held-out simulations.

    Attributes:
        simulations: how many.
        draws: for each.
        rows: one a parameter.
        tarp_p_value: Kolmogorov-Smirnov.
        tarp_area: area between expected coverage and credibility above one half.
        passed: whether no test rejects, and no peak of the observation's posterior lies outside the proposal.
        ranks_uniform: whether no test rejects.
        verdict: in words, with what it does not cover.
        significance: of all tests together, two a parameter and TARP.
        ess_fraction: median over the simulations, where weights were used.
        note: whose posterior was tested, where theta was drawn from a proposal.
    """

    simulations: int
    draws: int
    rows: tuple[CalibrationRow, ...]
    tarp_p_value: float
    tarp_area: float
    passed: bool
    ranks_uniform: bool
    verdict: str
    significance: float = 0.01
    ess_fraction: float | None = None
    note: str = ""


@dataclass(frozen=True)
class PhaseRow:
    """One phase of training, and what held-out simulations said after it; None where not evaluated."""

    objective: str
    steps: int
    learning_rate: float
    held_out_forward_log_q: float | None = None
    held_out_elbo: float | None = None
    held_out_ess_fraction: float | None = None
    kept: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its words.

    Attributes:
        kind: decides section and standard explanation.
        title: heading.
        figure: matplotlib Figure; None for one that could not be drawn.
        caption: what exactly is shown, such as which observation.
        reading: how to read it; the standard text of its kind where empty.
        failure: in place of the figure, why there is none.
    """

    kind: FigureKind
    title: str
    figure: Figure | None
    caption: str = ""
    reading: str = ""
    failure: str = ""

    @classmethod
    def of(cls, kind: FigureKind, title: str, make: Callable[[], Figure]) -> ReportFigure:
        """What `make` draws; where it raises, the sentence that stands in its place: a page does not hang on one figure."""
        try:
            return cls(kind, title, make())
        except Exception as error:
            return cls(kind, title, None).failed(error)

    def failed(self, error: Exception) -> ReportFigure:
        """The same without the figure, which could not be drawn."""
        words = str(error).strip().partition("\n")[0]
        failure = f"This figure could not be drawn: {type(error).__name__}{f': {words}' if words else ''}"
        return replace(self, figure=None, failure=failure)


@dataclass(frozen=True)
class ReportContent:
    """Everything that the report shows.

    Attributes:
        title: of the page.
        case: name of the run.
        content_key: of the stage; `store.read_key` finds it.
        summary: sentences at the top.
        observations: the first screen shows the first; of a large catalogue those that most need a look.
        counts: of every verdict, over all observations; counted here where empty.
        infer: the thresholds by which verdicts were given.
        comparison: rows, ours first.
        calibration: None if `validate` was not run.
        phases: of the training.
        figures: in order.
        settings_yaml: resolved settings.
        provenance: who made it, where, when; by name.
        versions: of packages, by name.
        banners: failed checks of the whole run, before all else on the page.
        warnings: what a reader has to know before believing anything.
        surrogate_likelihood: the certificate speaks of a learned likelihood.
    """

    title: str
    case: str
    content_key: str
    summary: tuple[str, ...] = ()
    observations: tuple[ObservationReport, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    infer: InferSettings = InferSettings()  # noqa: RUF009 (frozen)
    comparison: tuple[ComparisonRow, ...] = ()
    calibration: CalibrationReport | None = None
    phases: tuple[PhaseRow, ...] = ()
    figures: tuple[ReportFigure, ...] = ()
    settings_yaml: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    banners: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    surrogate_likelihood: bool = False
