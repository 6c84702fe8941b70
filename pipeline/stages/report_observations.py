"""What a report says of observations: all of a few; of a catalogue, the figures and those that need a look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.plots.catalogue import plot_catalogue, verdict_counts
from pipeline.plots.corner import DrawSet, plot_corner
from pipeline.plots.image import plot_image
from pipeline.plots.predictive import plot_predictive
from pipeline.plots.report_content import ObservationReport, ParameterRow, ReportFigure
from pipeline.plots.style import axis_label
from pipeline.plots.weights import WeightSet, plot_weights
from pipeline.rng import generator
from pipeline.stages.ladder import one_row
from pipeline.stages.observed import inferred_observation
from pipeline.stages.plot import catalogue_of_file, relative_weight
from pipeline.stages.run import Run
from pipeline.store import open_hdf5
from pipeline.tables.inference_reader import InferenceFile, open_inference
from simulators.protocol import Data, ImageView, Observable, PredictiveView, context_of, data_observables, simulate

MOST_LISTED = 20
"""Observations of which a page says everything; a longer catalogue shows as many that most need a look."""
SHOWN_OBSERVATIONS = 5
CURVES = 400
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Inferred:
    """Observations as the report shows them.

    Attributes:
        counts: of every verdict, over all observations.
        listed: those that are shown one by one.
        failed, atypical: identifiers of all that have no reliable posterior, and that are unlike the simulations.
        learned: the likelihood is a learned one.
        unchecked: of all whose learned likelihood was not compared with its simulator at their draws.
        figures: in order.
    """

    counts: dict[str, int]
    listed: tuple[ObservationReport, ...] = ()
    failed: tuple[str, ...] = ()
    atypical: tuple[str, ...] = ()
    learned: bool = False
    unchecked: tuple[str, ...] = ()
    figures: tuple[ReportFigure, ...] = ()

    @property
    def total(self) -> int:
        """Number of observations."""
        return sum(self.counts.values())


def inferred_observations(run: Run, path: Path, compare: Path | None) -> Inferred:
    """Verdicts of all observations, and certificates and figures of some.

    Args:
        path: inference.h5.
        compare: comparison.h5, if baselines were run.
    """
    with open_inference(path) as inference:
        rows = _rows_to_list(inference)
        figures = []
        if len(rows) < len(inference.ids):
            whole = partial(plot_catalogue, catalogue_of_file(inference))
            figures.append(ReportFigure.of("catalogue", "the catalogue", whole))
        for n in rows[:SHOWN_OBSERVATIONS]:
            figures += _figures_of(run, inference, compare, n)
        verdicts, atypical = inference.verdicts(), inference.atypical()
        names = np.array(inference.ids)
        return Inferred(
            counts={v: n for v, n in verdict_counts(verdicts).items() if n},
            listed=tuple(_observation(run, inference, n) for n in rows),
            failed=tuple(names[verdicts == "failed"]),
            atypical=() if atypical is None else tuple(names[atypical]),
            learned=inference.likelihood_is_learned(),
            unchecked=tuple(names[_is_unchecked(inference)]),
            figures=tuple(figures),
        )


def _is_unchecked(inference: InferenceFile) -> NDArray[np.bool_]:
    """Rows under a learned likelihood that was not compared with its simulator; older files never say, (N,)."""
    checked = inference.certificate("surrogate_check")
    if not inference.likelihood_is_learned():
        return np.zeros(len(inference.ids), dtype=bool)
    return np.ones(len(inference.ids), dtype=bool) if checked is None else np.isnan(checked)


def _rows_to_list(inference: InferenceFile) -> list[int]:
    """All rows of a few; of many the failed, then the atypical, then those of least ESS fraction."""
    count = len(inference.ids)
    if count <= MOST_LISTED:
        return list(range(count))
    ess, atypical = inference.certificate("ess_fraction"), inference.atypical()
    order = np.lexsort(
        (
            np.zeros(count) if ess is None else np.nan_to_num(ess, nan=-1.0),
            np.zeros(count) if atypical is None else ~atypical,
            inference.verdicts() != "failed",
        )
    )
    return [int(n) for n in order[:MOST_LISTED]]


def _observation(run: Run, inference: InferenceFile, n: int) -> ObservationReport:
    draws = inference.draws(n)
    quantiles = np.quantile(draws, [0.16, 0.5, 0.84], axis=0)
    rows = [
        ParameterRow(
            p.name, p.label, p.unit, float(draws[:, d].mean()), float(draws[:, d].std()), *map(float, quantiles[:, d])
        )
        for d, p in enumerate(run.simulator.parameters)
    ]
    group: Any = inference.file["certificate"]
    numbers = {name: float(group[name][n]) for name in inference.certificate_names()}
    notes = inference.notes()
    note = "" if notes is None else str(notes[n])
    return ObservationReport(inference.ids[n], str(inference.verdicts()[n]), numbers, tuple(rows), note)


def _figures_of(run: Run, inference: InferenceFile, compare: Path | None, n: int) -> list[ReportFigure]:
    identifier, delivered = inference.ids[n], inference.draws(n)
    sets, weights = [DrawSet("delivered", delivered)], None
    stored = inference.proposals(n)  # not stored for large catalogues
    if stored is not None:
        raw, weights = stored[0], stored[1]["log_weight"]
        shares = relative_weight(weights)
        sets = [DrawSet("q, weighted", raw, np.ones(len(raw)) if shares is None else shares)]
        sets.append(DrawSet("q, raw", raw, line="--"))
    sets += [DrawSet(name, draws) for name, draws in _baseline_draws(compare, identifier).items()]
    labels = [axis_label(p.label, p.unit, p.name) for p in run.simulator.parameters]
    figures = _predictive_figures(run, identifier, delivered, n)
    figures.append(ReportFigure.of("corner", f"{identifier}: posterior", partial(plot_corner, sets, labels)))
    if weights is not None:
        group: Any = inference.file["certificate"]
        of_q = WeightSet("delivered q", weights, float(group["ess_fraction"][n]), float(group["pareto_k"][n]))
        title = f"{identifier}: importance weights"
        figures.append(ReportFigure.of("weights", title, partial(plot_weights, [of_q])))
    return figures


def _predictive_figures(run: Run, identifier: str, theta: Array, n: int) -> list[ReportFigure]:
    """What the simulator declares; else data and replicated data, where they are a curve."""
    title = f"{identifier}: data and posterior predictive"
    if callable(getattr(run.simulator, "predictive_views", None)):
        try:
            views = predictive_views(run, theta, n)
        except Exception as error:  # the simulator's own code
            return [ReportFigure("predictive", title, None).failed(error)]
        if views:
            return [ReportFigure.of("predictive", f"{identifier}: {name}", make) for name, make in views.items()]
    if len(data_observables(run.simulator)[0].shape) != 1:
        return []
    return [ReportFigure.of("predictive", title, partial(_predictive_figure, run, theta, n))]


def _baseline_draws(path: Path | None, identifier: str) -> dict[str, Array]:
    if path is None:
        return {}
    with open_hdf5(path) as file:
        group: Any = file.get(identifier, {})
        return {name: np.asarray(side["draws"]) for name, side in group.items()}


def predictive_views(run: Run, theta: Array, n: int) -> dict[str, Callable[[], Figure]]:
    """What draws the figures that the simulator itself declares, by name; none where it declares none."""
    views = getattr(run.simulator, "predictive_views", None)
    if not callable(views):
        return {}
    x = one_row(inferred_observation(run, run.output("infer")).x, n)
    declared: Any = views(_spread(theta), x)
    return {view.name: partial(_figure_of_view, view) for view in declared}


def _figure_of_view(view: PredictiveView | ImageView) -> Figure:
    if isinstance(view, ImageView):
        return plot_image(
            view.observed.double().numpy(),
            view.models.double().numpy(),
            error=view.error.double().numpy(),
            used=view.used.numpy(),
            side=view.side,
            side_label=view.side_unit,
            data_label=view.data_label,
        )
    return plot_predictive(
        view.abscissa.numpy(),
        view.observed.numpy(),
        error=view.error.numpy(),
        grid=view.grid.numpy(),
        curves=view.curves.numpy(),
        abscissa_label=view.abscissa_label,
        data_label=view.data_label,
        logarithmic=view.scale == "log",
        bins=view.bins,
    )


def _spread(theta: Array) -> torch.Tensor:
    """At most `CURVES` draws."""
    return torch.from_numpy(theta[np.linspace(0, len(theta) - 1, min(CURVES, len(theta))).astype(int)])


def _predictive_figure(run: Run, theta: Array, n: int) -> Figure:
    """The first data observable, which is one-dimensional: observed, replicated, and the model curve."""
    observable = data_observables(run.simulator)[0]
    x = one_row(inferred_observation(run, run.output("infer")).x, n)
    draws = _spread(theta)
    context = {k: v.expand(len(draws), *v.shape[1:]) for k, v in context_of(run.simulator, x).items()}
    stream = generator(run.case.seed, "report-predictive", n)
    replicated = simulate(run.simulator, draws, context or None, generator=stream)[observable.name]
    by_name = {o.name: o for o in run.simulator.observables}
    axis = by_name[observable.against] if observable.against else None
    there = x[observable.present][0] > 0.5 if observable.present else torch.ones(observable.shape, dtype=torch.bool)
    observed, replicated = x[observable.name][0][there], replicated[:, there]
    abscissa = x[axis.name][0].double()[there] if axis else torch.arange(len(observed)).double()
    arguments: dict[str, Any] = {}
    curve = getattr(run.simulator, "model_curve", None)
    if axis and callable(curve):
        step = torch.linspace(0, 1, 600, dtype=torch.float64)
        low, high = abscissa.min(), abscissa.max()
        grid = low * (high / low) ** step if axis.scale == "log" else low + (high - low) * step
        curves: Any = curve(draws, x, grid)
        # an offset that the likelihood marginalises is in the curves; replicated data draw it anew, so align them
        arguments = {"grid": grid.numpy(), "curves": curves.numpy(), "logarithmic": axis.scale == "log"}
        at_data: Any = curve(draws, x, abscissa)
        replicated = replicated - replicated.mean(-1, keepdim=True) + at_data.mean(-1, keepdim=True)
    return plot_predictive(
        abscissa.numpy(),
        observed.double().numpy(),
        error=_error_bars(x, observable, there),
        replicated=replicated.double().numpy(),
        abscissa_label=axis_label(axis.label, axis.unit, axis.name) if axis else "data point",
        data_label=axis_label(observable.label, observable.unit, observable.name),
        **arguments,
    )


def _error_bars(x: Data, observable: Observable, there: torch.Tensor) -> Array | None:
    """1-sigma errors of the numbers that are there, from error bars or from the diagonal of a covariance."""
    if observable.error is None:
        return None
    error = x[observable.error][0].double()
    return (error.diagonal().sqrt() if error.dim() > 1 else error)[there].numpy()
