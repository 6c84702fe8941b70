"""Reading `inference.h5` by name and in parts: what it lacks is absent, and no more is in memory than is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.schema import CERTIFICATE, CONTENT_KEY, INPUTS, SETTINGS, STAGE, SUMMARY_HASH
from pipeline.store import check_sum, open_hdf5

BLOCK_BYTES = 1 << 26
"""Bytes of draws that are read at once: 64 MiB are 800 observations of 2,000 draws of 5 parameters."""
VERDICT, NOTE, ATYPICAL = "verdict", "note", "atypical"

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ParameterColumn:
    """One parameter as the file describes it.

    Attributes:
        name: of the variable.
        unit: astropy unit string; "" is dimensionless.
        label: LaTeX for plots; the name where the file has none.
    """

    name: str
    unit: str
    label: str


@dataclass(frozen=True)
class InferenceFile:
    """An open `inference.h5`.

    Attributes:
        path: where it is.
        file: open for reading.
        ids: N identifiers, in the order of the file.
        parameters: in the order of theta.
    """

    path: Path
    file: h5py.File
    ids: tuple[str, ...]
    parameters: tuple[ParameterColumn, ...]

    def rows(self, observations: Sequence[str] | None) -> Rows:
        """Row numbers of the named observations, in the order named; all of them for None.

        Raises:
            InputError: an identifier that the file lacks, or one that is named twice.
        """
        if observations is None:
            return np.arange(len(self.ids))
        position = {identifier: n for n, identifier in enumerate(self.ids)}
        for identifier in observations:
            if identifier not in position:
                near = get_close_matches(identifier, self.ids[:10_000], n=3, cutoff=0.4) or self.ids[:3]
                raise InputError(
                    f"{self.path}: has no observation {identifier!r} among its {len(self.ids)}; expected one such as {', '.join(map(repr, near))}"
                )
        if len(set(observations)) < len(observations):
            raise InputError(f"{self.path}: an observation is named twice: {', '.join(observations)}")
        return np.array([position[i] for i in observations], dtype=np.int64)

    def draws(self, row: int) -> Array:
        """Delivered draws of one observation, (S, D): all chains, one after the other."""
        group: Any = self.file["posterior"]
        return np.stack(
            [np.asarray(group[p.name][:, :, row], dtype=np.float64).reshape(-1) for p in self.parameters], 1
        )

    def draw_blocks(self, rows: Rows) -> Iterator[tuple[NDArray[np.int64], Array]]:
        """Delivered draws of many observations in parts: positions in `rows`, (n,), and draws, (D, S, n).

        Ranges are aligned with the chunks of the file, so that each chunk is read once.
        """
        group: Any = self.file["posterior"]
        variables = [group[p.name] for p in self.parameters]
        chains, draws, _ = variables[0].shape
        chunk = variables[0].chunks[2] if variables[0].chunks else 1
        step = max(1, BLOCK_BYTES // (8 * chains * draws * len(variables)))
        step = step // chunk * chunk or chunk
        for block in np.unique(rows // step):
            positions = np.flatnonzero(rows // step == block)
            low, high = int(rows[positions].min()), int(rows[positions].max()) + 1
            part = np.stack([np.asarray(v[:, :, low:high], dtype=np.float64) for v in variables])
            yield positions, part.reshape(len(variables), chains * draws, -1)[:, :, rows[positions] - low]

    def proposals(self, row: int) -> tuple[Array, dict[str, Array]] | None:
        """Weighted draws of one observation, (K, D), and its densities by name, (K,) each; None if none are stored.

        Draws that are padding, theta not a number, are left out.
        """
        group: Any = self.file.get("proposal")
        names = [p.name for p in self.parameters]
        if group is None or any(n not in group for n in [*names, "log_weight"]):
            return None
        theta = np.stack([np.asarray(group[n][:, row], dtype=np.float64) for n in names], axis=1)
        stored = ~np.isnan(theta).any(axis=1)
        densities = [n for n in ("log_q", "log_likelihood", "log_joint", "log_weight") if n in group]
        if not stored.any():
            return None
        return theta[stored], {n: np.asarray(group[n][:, row], dtype=np.float64)[stored] for n in densities}

    def certificate_names(self) -> list[str]:
        """Numbers of the certificate that the file has: those of `schema.CERTIFICATE` in its order, then others."""
        group: Any = self.file["certificate"]
        numeric = [
            n for n, v in group.items() if isinstance(v, h5py.Dataset) and v.ndim == 1 and v.dtype.kind in "fiub"
        ]
        others = sorted(n for n in numeric if n not in CERTIFICATE and n not in (ATYPICAL, "observation"))
        return [n for n in CERTIFICATE if n in numeric] + others

    def certificate(self, name: str) -> Array | None:
        """One number of the certificate for every observation, (N,); None if the file lacks it."""
        group: Any = self.file["certificate"]
        return np.asarray(group[name][...], dtype=np.float64) if name in group else None

    def verdicts(self) -> NDArray[np.str_]:
        """Verdict of every observation, (N,)."""
        return self._strings(VERDICT)

    def notes(self) -> NDArray[np.str_] | None:
        """Remark of the ladder on every observation, (N,), "" where it had none; None if the file lacks them."""
        return self._strings(NOTE) if NOTE in self._group("certificate") else None

    def atypical(self) -> NDArray[np.bool_] | None:
        """Whether each observation is unlike the simulations, (N,); None if the file lacks it."""
        values = self.certificate(ATYPICAL)
        return None if values is None else values > 0

    def meaning(self, name: str) -> str:
        """What a number of the certificate means, in the file's own words."""
        group: Any = self.file["certificate"]
        return CERTIFICATE.get(name) or str(group[name].attrs.get("long_name", "")) if name in group else ""

    def origin(self) -> dict[str, Any]:
        """What made the file: its name, stage, content key, digests of its inputs, its settings."""
        attributes: Any = self.file.attrs
        origin = {"file": self.path.name, **{k: str(attributes[k]) for k in (STAGE, CONTENT_KEY) if k in attributes}}
        records = {k: _json(attributes.get(k)) for k in (INPUTS, SETTINGS)}
        return origin | {k: v for k, v in records.items() if v}

    def likelihood_is_learned(self) -> bool:
        """Whether the root attribute `likelihood` says that evidence and weights speak of a learned likelihood."""
        text = str(self.file.attrs.get("likelihood", "")).lower()
        return any(word in text for word in ("learned", "surrogate"))

    def summary_hash(self) -> str:
        """Digest of the summary s(x) whose evidence this is: "" for the simulator's own likelihood, of x itself."""
        return str(self.file.attrs.get(SUMMARY_HASH, ""))

    def _group(self, name: str) -> Any:
        return self.file[name]

    def _strings(self, name: str) -> NDArray[np.str_]:
        return np.asarray(self._group("certificate")[name].asstr()[...], dtype=np.str_)


@contextmanager
def open_inference(path: str | Path) -> Iterator[InferenceFile]:
    """Open an `inference.h5` for reading.

    Raises:
        InputError: missing, not HDF5, damaged, or without the groups of an inference file.
    """
    path = Path(path)
    if path.is_file():
        check_sum(path)
    with open_hdf5(path) as file:
        missing = [n for n in ("posterior", "certificate") if not isinstance(file.get(n), h5py.Group)]
        if missing or VERDICT not in file["certificate"]:  # pyright: ignore[reportOperatorIssue]
            raise InputError(
                f"{path}: not a file of posteriors: expected the groups posterior and certificate as `elboscope infer` writes them"
            )
        yield InferenceFile(path, file, _ids(file), _parameters(path, file))


def _ids(file: h5py.File) -> tuple[str, ...]:
    group: Any = file["certificate"]
    if "observation" in group:
        return tuple(group["observation"].asstr()[...])
    return tuple(str(n) for n in range(len(group[VERDICT])))


def _parameters(path: Path, file: h5py.File) -> tuple[ParameterColumn, ...]:
    group: Any = file["posterior"]
    names = json.loads(str(file.attrs.get("parameters", "[]")))
    names = names or [n for n, v in group.items() if isinstance(v, h5py.Dataset) and v.ndim == 3]
    lacking = [n for n in names if n not in group]
    if lacking or not names:
        raise InputError(f"{path}: group posterior lacks the parameters {', '.join(lacking) or '(it has none)'}")
    attributes = [group[n].attrs for n in names]
    return tuple(
        ParameterColumn(n, str(a.get("units", "")), str(a.get("long_name", "")) or n)
        for n, a in zip(names, attributes, strict=True)
    )


def _json(value: Any) -> dict[str, Any]:
    try:
        record = json.loads(str(value))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
