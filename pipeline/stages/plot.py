"""`elboscope plot`: corner plots of chosen observations, or a figure of the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.plots.catalogue import Catalogue, plot_catalogue
from pipeline.plots.corner import DrawSet, plot_corner
from pipeline.plots.style import axis_label, house_style
from pipeline.progress import console
from pipeline.store import complete_or_absent
from pipeline.tables.chains import file_names
from pipeline.tables.inference_reader import Array, InferenceFile, open_inference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERLAID = 3
"""Observations on one corner plot; with more each has its own file."""
MOST_PARAMETERS = 15
SUFFIXES = (".png", ".pdf", ".svg")
DPI = 200


def plot(
    path: Path,
    output: Path,
    *,
    observations: Sequence[str] | None = None,
    parameters: Sequence[str] | None = None,
) -> list[Path]:
    """Draw corner plots of the named observations; without a name, the catalogue (or the only observation).

    One observation: its delivered draws, and the weighted draws of q behind them where they are stored. Two or three:
    delivered draws on top of each other. More: one file each, OUTPUT_<id>.

    Args:
        path: an `inference.h5`.
        output: .png, .pdf or .svg.
        observations: identifiers.
        parameters: which, in this order; default: all.

    Returns:
        the files written.

    Raises:
        InputError: an unknown suffix, observation or parameter, or draws that are not numbers.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise InputError(f"plot: --out {output}: expected a name that ends in {', '.join(SUFFIXES)}")
    with open_inference(path) as inference:
        if not observations and (len(inference.ids) > 1 or not inference.ids):
            if parameters:
                raise InputError("plot: --parameter goes with --observation; the figure of the catalogue has none")
            return [_save(plot_catalogue(catalogue_of_file(inference)), output)]
        names = list(observations or inference.ids)
        rows = [int(n) for n in inference.rows(names)]
        chosen = _chosen(inference, parameters)
        if len(rows) <= OVERLAID:
            return [_save(_corner(inference, rows, chosen), output)]
        files = [output.with_name(f"{output.stem}_{n}{output.suffix}") for n in file_names(names)]
        return [_save(_corner(inference, [r], chosen), f) for r, f in zip(rows, files, strict=True)]


def _chosen(inference: InferenceFile, parameters: Sequence[str] | None) -> list[int]:
    """Indices of the parameters to be shown."""
    names = [p.name for p in inference.parameters]
    for name in parameters or ():
        if name not in names:
            raise InputError(f"{inference.path}: has no parameter {name!r}; it has {', '.join(names)}")
    chosen = [names.index(n) for n in parameters] if parameters else list(range(len(names)))
    if len(chosen) > MOST_PARAMETERS:
        raise InputError(
            f"plot: {len(chosen)} parameters make {len(chosen) ** 2} panels; name up to {MOST_PARAMETERS} with --parameter"
        )
    return chosen


def _corner(inference: InferenceFile, rows: Sequence[int], chosen: Sequence[int]) -> Figure:
    shown = [inference.parameters[d] for d in chosen]
    labels = [axis_label(p.label, p.unit, p.name) for p in shown]
    verdicts = inference.verdicts()
    sets = []
    for row in rows:
        draws = inference.draws(row)[:, chosen]
        identifier, verdict = inference.ids[row], verdicts[row]
        if not np.isfinite(draws).all():
            raise InputError(
                f"{inference.path}: draws of {identifier!r} ({verdict}) are not all numbers: nothing to draw"
            )
        sets.append(DrawSet(f"{identifier}, {verdict}", draws))
    if len(rows) == 1:
        sets += _proposal_sets(inference, rows[0], chosen)
        return plot_corner(sets, labels)
    # ranges that hold all of them: those of the draws taken together, a set that is drawn in no colour
    together = DrawSet("", np.concatenate([s.draws for s in sets]), color="none")
    return plot_corner([*sets, together], labels, range_from=len(sets))


def _proposal_sets(inference: InferenceFile, row: int, chosen: Sequence[int]) -> list[DrawSet]:
    """Weighted draws of q, where they are stored and have a weight."""
    stored = inference.proposals(row)
    if stored is None:
        return []
    theta, densities = stored
    weight = relative_weight(densities["log_weight"])
    return [] if weight is None else [DrawSet("weighted draws of q", theta[:, chosen], weight, line="--")]


def relative_weight(log_weight: Array) -> Array | None:
    """Weights over the largest; refused draws are zero; None if no weight is left."""
    usable = np.isfinite(log_weight)
    return np.where(usable, np.exp(log_weight - log_weight[usable].max()), 0.0) if usable.any() else None


def catalogue_of_file(inference: InferenceFile) -> Catalogue:
    """What the figure of a catalogue shows."""
    count = len(inference.ids)
    figures = {n: inference.certificate(n) for n in ("ess_fraction", "kl_gap", "typicality")}
    absent = np.full(count, np.nan)
    return Catalogue(
        verdicts=inference.verdicts(),
        ess_fraction=absent if figures["ess_fraction"] is None else figures["ess_fraction"],
        kl_gap=absent if figures["kl_gap"] is None else figures["kl_gap"],
        typicality=figures["typicality"],
        atypical=inference.atypical(),
    )


def _save(figure: Figure, output: Path) -> Path:
    # no date and no random marks: equal content, equal bytes
    metadata = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}[output.suffix.lower()]
    with complete_or_absent(output) as temporary, house_style():
        figure.savefig(temporary, format=output.suffix.lower()[1:], dpi=DPI, metadata=metadata)
    console.print(f"plot: {output}")
    return output
