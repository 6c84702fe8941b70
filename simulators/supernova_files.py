"""Observed supernovae from files: redshifts, magnitudes or distance moduli, and their covariance.

- a text or FITS table with the columns of `COLUMNS`, and the covariance in a file beside it: for `lcparam_X.txt`, as Pantheon
  has it, `sys_X.txt`, which is added to the squares of the table's errors, or `cov_X.txt`, all of it, or `inv_X.txt`, the
  inverse of all of it; or a folder that holds one such pair;
- HDF5 with the datasets `z`, `mb`, `dmb`, and `covariance` (all of it), `systematic_covariance` or `inverse_covariance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from simulators.reading.bounds import read_bytes
from simulators.reading.fits_files import read_fits
from simulators.reading.hdf5 import open_hdf5
from simulators.reading.tables import read_text_table
from simulators.reading.words import as_numbers, number_rows
from simulators.units import conversion_factor

Array = NDArray[np.float64]
COLUMNS: dict[str, tuple[str, ...]] = {
    "redshift": ("zcmb", "z", "zHD", "zCMB", "redshift"),
    "heliocentric_redshift": ("zhel", "zHEL", "heliocentric_redshift"),
    "magnitude": ("mb", "m_b_corr", "mu", "MU", "magnitude"),
    "error": ("dmb", "m_b_corr_err_DIAG", "dmu", "mu_err", "MUERR", "magnitude_error"),
}
"""Our names and those of published tables; heliocentric redshifts are optional, errors are where a covariance is complete."""
UNITS = {"redshift": "", "heliocentric_redshift": "", "magnitude": "mag", "error": "mag"}
TABLE, SYSTEMATIC, COMPLETE, INVERSE = "lcparam", "sys", "cov", "inv"


class Column(NamedTuple):
    """One column of a file: its name, numbers or words (M,), and the unit that it declares."""

    name: str
    values: NDArray[Any]
    unit: str | None


@dataclass(frozen=True)
class SupernovaTable:
    """One survey.

    Attributes:
        redshift: of the cosmic microwave background's frame, (M,).
        heliocentric_redshift: (M,).
        magnitude: peak magnitudes or distance moduli (mag), (M,): an offset makes no difference.
        covariance: statistical and systematic (mag2), (M, M).
    """

    redshift: Array
    heliocentric_redshift: Array
    magnitude: Array
    covariance: Array

    def __len__(self) -> int:
        return len(self.redshift)


def read_supernovae(path: Path | str, *, covariance: Path | None = None) -> SupernovaTable:
    """Read one survey (see the top of this file), sorted by redshift.

    Args:
        path: table, folder, or HDF5.
        covariance: file of the covariance of a table, where it has another name; complete unless its name
            begins with `sys`; the inverse of it where that begins with `inv`.

    Raises:
        ValueError: no such file, a missing column, or numbers that are no observation.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"supernova_cosmology: no file {path}")
    if path.is_dir():
        path = _table_in(path)
    table = _read_hdf5(path) if path.suffix in (".h5", ".hdf5") else _read_pair(path, covariance)
    _check(table, path)
    order = np.argsort(table.redshift, kind="stable")
    rows = (table.redshift[order], table.heliocentric_redshift[order], table.magnitude[order])
    return SupernovaTable(*rows, table.covariance[np.ix_(order, order)])


def read_covariance(path: Path, size: int) -> Array:
    """A covariance (mag2), (size, size): the image of a FITS file, or text, a square or as it is published: size, then all numbers.

    It is the inverse of what the file has, where the file's name begins with `inv`.

    Raises:
        ValueError: unreadable, or another number of numbers.
    """
    if read_bytes(path).startswith(b"SIMPLE  ="):
        images = read_fits(path).images
        if len(images) != 1 or images[0].mask is not None:
            raise ValueError(f"{path}: expected one image without gaps, the covariance, got {len(images)}")
        values = np.asarray(images[0].values, dtype=np.float64).ravel()
    else:
        values = np.array([number for row in number_rows(path) for number in row])
    if len(values) == size * size + 1 and values[0] == size:
        values = values[1:]
    if len(values) != size * size:
        raise ValueError(
            f"{path}: expected a covariance of {size} supernovae, {size * size} numbers, got {len(values)} numbers"
        )
    matrix = values.reshape(size, size)
    return _inverse(matrix, path) if path.name.startswith(INVERSE) else matrix


def _inverse(matrix: Array, path: Path) -> Array:
    """The symmetric inverse of a precision matrix."""
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        raise ValueError(f"{path}: the inverse covariance cannot be inverted") from None
    return 0.5 * (inverse + inverse.T)


def _table_in(folder: Path) -> Path:
    """The only `lcparam` table of a folder."""
    tables = sorted(folder.glob(f"{TABLE}*.txt"))
    if len(tables) != 1:
        raise ValueError(f"{folder}: expected one file {TABLE}*.txt, found {len(tables)}; name the table itself")
    return tables[0]


def _read_pair(path: Path, covariance: Path | None) -> SupernovaTable:
    """A table, and the covariance beside it."""
    columns = _columns(_read_table(path), path)
    if covariance is None:
        covariance = _covariance_beside(path)
    elif not covariance.is_file():
        raise ValueError(f"{path}: the covariance {covariance.name} is missing beside it")
    matrix = read_covariance(covariance, len(columns["redshift"]))
    if covariance.name.startswith(SYSTEMATIC):
        matrix = matrix + np.diag(_errors(columns, path) ** 2)
    return _table(columns, matrix)


def _covariance_beside(path: Path) -> Path:
    """The only one of sys_X.txt, cov_X.txt and inv_X.txt beside lcparam_X.txt."""
    if not path.name.startswith(TABLE):
        raise ValueError(
            f"{path}: no covariance: name the table {TABLE}_X.txt and put {SYSTEMATIC}_X.txt, the systematic covariance, beside it"
        )
    rest = path.name.removeprefix(TABLE)
    there = [file for kind in (SYSTEMATIC, COMPLETE, INVERSE) if (file := path.with_name(kind + rest)).is_file()]
    if not there:
        raise ValueError(
            f"{path}: the systematic covariance {SYSTEMATIC}{rest} is missing beside it; a complete one is {COMPLETE}{rest}, its inverse {INVERSE}{rest}"
        )
    if len(there) > 1:
        raise ValueError(f"{path}: {' and '.join(file.name for file in there)} lie beside it: keep one of them")
    return there[0]


def _read_table(path: Path) -> list[Column]:
    """Columns of a table: the only one of a FITS file, or text.

    Pantheon's rows are shorter than its header, which names a last column that is not there.
    """
    if read_bytes(path).startswith(b"SIMPLE  ="):
        tables = read_fits(path).tables
        if len(tables) != 1:
            raise ValueError(f"{path}: expected one table, got {len(tables)}")
        return [Column(c.name, _filled(c.values, c.mask), c.unit) for c in tables[0].columns]
    table = read_text_table(path)
    names, header = [c.name for c in table.columns], table.comment.split()
    if names[0] == "col1" and len(header) >= len(names):
        names = header[: len(names)]
    return [Column(name, c.cells, c.unit) for name, c in zip(names, table.columns, strict=True)]


def _filled(values: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
    return values if mask is None or values.dtype.kind not in "fiub" else np.where(mask, np.nan, values)


def _read_hdf5(path: Path) -> SupernovaTable:
    with open_hdf5(path) as file:
        datasets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
        matrices = ("covariance", "systematic_covariance", "inverse_covariance")
        of_rows = [c for c in _dataset_columns(datasets) if c.name not in matrices]
        columns = _columns(of_rows, path)
        name = next((name for name in matrices if name in datasets), None)
        if name is None:
            raise ValueError(
                f"{path}: no dataset {', '.join(matrices[:-1])} or {matrices[-1]}; it has {', '.join(file)}"
            )
        matrix = np.asarray(datasets[name], dtype=np.float64)
    if name == "systematic_covariance":
        matrix = matrix + np.diag(_errors(columns, path) ** 2)
    return _table(columns, _inverse(matrix, path) if name == "inverse_covariance" else matrix)


def _dataset_columns(datasets: Mapping[str, h5py.Dataset]) -> list[Column]:
    known = {alias for aliases in COLUMNS.values() for alias in aliases}
    units = {name: d.attrs.get("unit", d.attrs.get("units")) for name, d in datasets.items()}
    return [
        Column(name, np.asarray(d), unit if isinstance(unit := units[name], str) and unit else None)
        for name, d in datasets.items()
        if name in known
    ]


def _columns(present: Sequence[Column], path: Path) -> dict[str, Array]:
    """The columns that are there, by our names, in our units."""
    columns: dict[str, Array] = {}
    for name, aliases in COLUMNS.items():
        own = next((a for a in aliases if any(c.name == a for c in present)), None)
        found = [c for c in present if c.name == own]
        if len(found) > 1:
            raise ValueError(f"{path}: {len(found)} columns with the name {own!r}: rename all but one")
        if found:
            columns[name] = _numbers(found[0], UNITS[name], path)
        elif name in ("redshift", "magnitude"):
            names = ", ".join(c.name for c in present)
            raise ValueError(f"{path}: no column {' or '.join(aliases)}; it has {names}")
    return columns


def _numbers(column: Column, unit: str, path: Path) -> Array:
    what = f"{path}: {column.name}"
    if column.values.dtype.kind == "U" and column.values.ndim == 1:
        values, wrong = as_numbers(column.values)
        if wrong is not None:
            raise ValueError(f"{what}, row {wrong + 1}: expected numbers, got {column.values[wrong][:80]!r}")
    elif column.values.dtype.kind in "fiub":
        values = np.asarray(column.values, dtype=np.float64)
    else:
        raise ValueError(f"{what}: expected numbers, got {column.values.dtype}")
    return values if column.unit is None else values * conversion_factor(column.unit, unit, what)


def _errors(columns: dict[str, Array], path: Path) -> Array:
    if "error" not in columns:
        raise ValueError(
            f"{path}: no column {' or '.join(COLUMNS['error'])}, which a systematic covariance has to be added to"
        )
    return columns["error"]


def _table(columns: dict[str, Array], covariance: Array) -> SupernovaTable:
    heliocentric = columns.get("heliocentric_redshift", columns["redshift"])
    return SupernovaTable(columns["redshift"], heliocentric, columns["magnitude"], covariance)


def _check(table: SupernovaTable, path: Path) -> None:
    """Numbers that are an observation."""
    size = len(table)
    if size < 2:
        raise ValueError(f"{path}: has {size} supernovae, expected two or more")
    for name in ("redshift", "heliocentric_redshift", "magnitude", "covariance"):
        values = getattr(table, name)
        expected = (size, size) if name == "covariance" else (size,)
        if values.shape != expected:
            raise ValueError(f"{path}: {name} has shape {values.shape}, expected {expected}")
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: {name} has {int((~np.isfinite(values)).sum())} values that are not finite")
    if (table.redshift <= 0).any() or (table.heliocentric_redshift <= 0).any():
        raise ValueError(f"{path}: redshifts must be positive, got {table.redshift.min():g}")
    if not np.allclose(table.covariance, table.covariance.T, rtol=1e-6, atol=1e-12):
        raise ValueError(f"{path}: the covariance is not symmetric")
    if np.linalg.eigvalsh(table.covariance).min() <= 0:
        raise ValueError(f"{path}: the covariance is not positive definite: check its size, order and unit (mag2)")
