"""Log evidences of the same observations under several models, and the Bayes factors between them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.tables.inference_reader import Array, InferenceFile, open_inference

if TYPE_CHECKING:
    from astropy.table import QTable

OBSERVED_BYTES = 1 << 26
"""Bytes of observed data that are compared at once."""
NAMED = 5
"""Identifiers that an error names at most."""


def bayes_factors(paths: Sequence[str | Path], *, names: Sequence[str] | None = None) -> QTable:
    r"""Log Bayes factors of the observations that all files share, against the first file.

    $\log B_m = \log p_m(x) - \log p_1(x)$, with the error $\sqrt{\sigma_m^2 + \sigma_1^2}$, nats. An evidence depends on
    the prior, and as a density of the data on their units: both models must be of the same data in the same units, which
    is checked. With a learned likelihood an evidence is that of a summary of the data: files are compared under the same
    summary only, and the scatter between the networks of the likelihood is added to the error.

    Args:
        paths: two or more `inference.h5`.
        names: of the models, one a file; default: the shortest part of the paths that tells them apart.

    Returns:
        One row an observation: `id`; for each model `log_evidence_<name>`, `log_evidence_error_<name>`,
        `verdict_<name>`; for each but the first `log_bayes_factor_<name>`, `log_bayes_factor_error_<name>`; and
        `warning`, which models' figures are not to be trusted and why. `meta`: `reference` (the
        first model), `models` (name to file and content key), `likelihood` (own, or learned) and `only_in` (name to the
        identifiers that not every file has).

    Raises:
        InputError: fewer than two files, no observation in common, data that differ under the same identifier, other
            units, or evidences of different summaries, of which a simulator's own likelihood and a learned one are two.
    """
    files = [Path(p) for p in paths]
    if len(files) < 2:
        raise InputError(f"evidence: expected two or more inference files, got {len(files)}")
    models = _model_names(files, names)
    with ExitStack() as stack:
        opened = dict(zip(models, [stack.enter_context(open_inference(f)) for f in files], strict=True))
        for model, inference in opened.items():
            _need_comparable(model, inference)
        _need_same_summary(opened)
        ids = _common_ids(opened)
        rows = {model: inference.rows(ids) for model, inference in opened.items()}
        _need_same_data(opened, rows, ids)
        return _table(opened, rows, ids)


def total_log_bayes_factor(table: QTable, model: str, *, trusted: bool = False) -> tuple[float, float, int]:
    r"""$\sum_n \log B_n$ over the observations, its error in quadrature, and how many were added.

    Observations are independent given the model, so their evidences multiply.

    Args:
        table: of `bayes_factors`.
        model: one of its names, not the first.
        trusted: leave out the observations with a warning.
    """
    value = np.asarray(table[f"log_bayes_factor_{model}"], dtype=np.float64)
    error = np.asarray(table[f"log_bayes_factor_error_{model}"], dtype=np.float64)
    use = np.asarray(table["warning"]) == "" if trusted else np.ones(len(value), dtype=bool)
    return float(value[use].sum()), float(np.sqrt(np.square(error[use]).sum())), int(use.sum())


def _model_names(files: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    if names:
        if len(names) != len(files) or len(set(names)) < len(names):
            raise InputError(f"evidence: expected {len(files)} different names of models, got {', '.join(names)}")
        return list(names)
    absolute = [f.resolve() for f in files]
    for candidates in ([f.stem for f in absolute], [f.parent.name for f in absolute], [str(f) for f in files]):
        if len(set(candidates)) == len(candidates):
            return candidates
    raise InputError(f"evidence: the same file is given twice: {', '.join(map(str, files))}")


def _need_comparable(model: str, inference: InferenceFile) -> None:
    if inference.certificate("log_evidence") is None or inference.certificate("log_evidence_error") is None:
        raise InputError(f"{inference.path}: its certificate has no log_evidence with an error")
    if not isinstance(inference.file.get("observed_data"), h5py.Group):
        raise InputError(f"{inference.path}: has no group observed_data, so the data cannot be compared")


def _need_same_summary(opened: Mapping[str, InferenceFile]) -> None:
    """Refuse evidences of different numbers: of x under a tractable likelihood, of s(x) under a learned one."""
    (first, reference), *others = opened.items()
    for model, other in others:
        if reference.likelihood_is_learned() != other.likelihood_is_learned():
            learned = model if other.likelihood_is_learned() else first
            raise InputError(
                f"evidence: evidences of {learned} are those of a learned likelihood, the other model's are exact: learn both, or neither"
            )
        if reference.summary_hash() != other.summary_hash():
            raise InputError(
                f"evidence: {first} and {model} have evidences of different summaries ({reference.summary_hash()[:12]}, {other.summary_hash()[:12]}): "
                "learn the second with likelihood.summary.file, the likelihood.safetensors of the first"
            )
        if reference.likelihood_is_learned() and not reference.summary_hash():
            raise InputError(
                f"{reference.path}: of a learned likelihood that does not say of what summary; infer again"
            )


def _common_ids(opened: Mapping[str, InferenceFile]) -> list[str]:
    """Identifiers that every file has, in the order of the first."""
    first, *others = opened.values()
    everywhere = set(first.ids).intersection(*(set(o.ids) for o in others))
    ids = [i for i in first.ids if i in everywhere]
    if not ids:
        examples = "; ".join(f"{model}: {_some(inference.ids)}" for model, inference in opened.items())
        raise InputError(f"evidence: no observation is in every file ({examples})")
    return ids


# ---------------------------------------------------------------- the same data?


def _need_same_data(opened: Mapping[str, InferenceFile], rows: Mapping[str, Any], ids: Sequence[str]) -> None:
    """Refuse files whose data differ under the same identifier.

    Data observables must be the same in all files; context (times, error bars) is compared where two files name it, since
    a model may ask for conditions that another has no use for.
    """
    (first, reference), *others = opened.items()
    for model, other in others:
        mine, theirs = _observed(reference), _observed(other)
        data = {n for v in (mine, theirs) for n, d in v.items() if str(d.attrs.get("role", "data")) == "data"}
        lacking = sorted(n for n in data if n not in mine or n not in theirs)
        if lacking:
            raise InputError(
                f"evidence: {first} and {model} are of different data: {', '.join(lacking)} is in one of {reference.path} and {other.path} only"
            )
        for name in [n for n in mine if n in theirs]:
            _need_same_unit(name, {first: mine[name], model: theirs[name]})
            same = _same_rows(mine[name], rows[first], theirs[name], rows[model], whole=len(reference.ids) == 1)
            if not same.all():
                differing = [i for i, equal in zip(ids, same, strict=True) if not equal]
                raise InputError(
                    f"evidence: {name} differs between {reference.path} and {other.path} for {len(differing)} of {len(ids)} observations of the same name: {_some(differing)}"
                )


def _observed(inference: InferenceFile) -> dict[str, h5py.Dataset]:
    group: Any = inference.file["observed_data"]
    coordinates = {"observation"} | {n for n in group if "_dim_" in n}
    return {n: v for n, v in group.items() if n not in coordinates and isinstance(v, h5py.Dataset)}


def _need_same_unit(name: str, datasets: Mapping[str, h5py.Dataset]) -> None:
    from astropy import units

    texts = {model: str(d.attrs.get("units", "")) for model, d in datasets.items()}
    if len({units.Unit(t) for t in texts.values()}) > 1:
        listed = ", ".join(f"{t!r} for {model}" for model, t in texts.items())
        raise InputError(
            f"evidence: {name} is in {listed}: an evidence is a density per unit of the data; infer both in the same units"
        )


def _same_rows(mine: h5py.Dataset, my_rows: Any, theirs: h5py.Dataset, their_rows: Any, *, whole: bool) -> NDArray[Any]:
    """Whether the rows of two datasets are equal, in the coarser of their two precisions; (n,)."""
    if mine.shape[1:] != theirs.shape[1:]:
        return np.zeros(len(my_rows), dtype=bool)
    dtype = min(mine.dtype, theirs.dtype, key=lambda d: d.itemsize)
    if whole:  # one posterior, be it of one row or of several that share their parameters
        equal = mine.shape == theirs.shape and np.array_equal(
            mine[...].astype(dtype), theirs[...].astype(dtype), equal_nan=True
        )
        return np.array([equal])
    a, b = _row_digests(mine, dtype), _row_digests(theirs, dtype)
    return a[my_rows] == b[their_rows]


def _row_digests(dataset: h5py.Dataset, dtype: np.dtype[Any]) -> NDArray[Any]:
    """BLAKE2 of each row, (N,), in blocks; -0 counts as 0."""
    row_bytes = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:])))
    chunk = dataset.chunks[0] if dataset.chunks else 1
    step = max(1, OBSERVED_BYTES // row_bytes)
    step = step // chunk * chunk or chunk
    digests: list[bytes] = []
    for start in range(0, len(dataset), step):
        values = np.ascontiguousarray(dataset[start : start + step].astype(dtype) + np.zeros((), dtype))
        digests += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in values]
    return np.array([int.from_bytes(d, "little") for d in digests], dtype=object)


# ---------------------------------------------------------------- the table


def _table(opened: Mapping[str, InferenceFile], rows: Mapping[str, Any], ids: Sequence[str]) -> QTable:
    from astropy.table import QTable

    columns: dict[str, Any] = {"id": np.array(ids, dtype=np.str_)}
    evidence: dict[str, Array] = {}
    error: dict[str, Array] = {}
    warning = np.full(len(ids), "", dtype=object)
    for model, inference in opened.items():
        evidence[model] = _column(inference, "log_evidence", rows[model])
        error[model] = np.hypot(
            _column(inference, "log_evidence_error", rows[model]), _surrogate_error(inference, rows[model])
        )
        verdict = inference.verdicts()[rows[model]]
        columns |= {
            f"log_evidence_{model}": evidence[model],
            f"log_evidence_error_{model}": error[model],
            f"verdict_{model}": verdict,
        }
        atypical = inference.atypical()
        marks = {"failed": verdict == "failed", "not finite": ~np.isfinite(evidence[model])}
        marks |= {} if atypical is None else {"atypical": atypical[rows[model]]}
        for word, mark in marks.items():
            warning[mark] += f"; {word} in {model}"
    first, *others = opened
    for model in others:
        columns[f"log_bayes_factor_{model}"] = evidence[model] - evidence[first]
        columns[f"log_bayes_factor_error_{model}"] = np.hypot(error[model], error[first])
    columns["warning"] = np.array([w.removeprefix("; ") for w in warning], dtype=np.str_)
    in_all = set(ids)
    meta = {
        "reference": first,
        "models": {
            model: {k: v for k, v in i.origin().items() if isinstance(v, str)} | {"path": str(i.path)}
            for model, i in opened.items()
        },
        "likelihood": "learned" if opened[first].likelihood_is_learned() else "own",
        "only_in": {model: [i for i in inference.ids if i not in in_all] for model, inference in opened.items()},
    }
    return QTable(columns, meta=meta, copy=False)


def _column(inference: InferenceFile, name: str, rows: Any) -> Array:
    values = inference.certificate(name)
    assert values is not None  # checked before
    return values[rows]


def _surrogate_error(inference: InferenceFile, rows: Any) -> Array:
    """Scatter of log evidence over the networks of a learned likelihood; 0 for the simulator's own."""
    values = inference.certificate("surrogate_error")
    return np.zeros(len(rows)) if values is None else np.nan_to_num(values[rows])


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
