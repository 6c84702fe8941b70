"""Observed supernovae from files: redshifts, magnitudes or distance moduli, and their covariance.

- a text or FITS table with the columns of `COLUMNS`, and the covariance in a file beside it: for `lcparam_X.txt`, as Pantheon
  has it, `sys_X.txt`, which is added to the squares of the table's errors; or a folder that holds one such pair;
- HDF5 with the datasets `z`, `mb`, `dmb`, and `covariance` (all of it) or `systematic_covariance`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
COLUMNS: dict[str, tuple[str, ...]] = {
    "redshift": ("zcmb", "z", "zHD", "zCMB", "redshift"),
    "heliocentric_redshift": ("zhel", "zHEL", "heliocentric_redshift"),
    "magnitude": ("mb", "m_b_corr", "mu", "MU", "magnitude"),
    "error": ("dmb", "m_b_corr_err_DIAG", "dmu", "mu_err", "MUERR", "magnitude_error"),
}
"""Our names and those of published tables; heliocentric redshifts are optional, errors are where a covariance is complete."""
TABLE, SYSTEMATIC = "lcparam", "sys"


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
        covariance: file of the covariance of a table, where it has another name; complete unless its name begins with `sys`.

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

    Raises:
        ValueError: unreadable, or another number of numbers.
    """
    try:
        if path.suffix in (".fits", ".fit"):
            from astropy.io import fits

            values = np.asarray(fits.getdata(path), dtype=np.float64).ravel()
        else:
            values = np.fromstring(path.read_text(encoding="utf-8"), sep=" ")
    except Exception as error:  # astropy and numpy raise several kinds; each becomes one readable line
        raise ValueError(f"{path}: not a covariance that can be read: {str(error).splitlines()[0]}") from None
    if len(values) == size * size + 1 and values[0] == size:
        values = values[1:]
    if len(values) != size * size:
        raise ValueError(
            f"{path}: expected a covariance of {size} supernovae, {size * size} numbers, got {len(values)} numbers"
        )
    return values.reshape(size, size)


def _table_in(folder: Path) -> Path:
    """The only `lcparam` table of a folder."""
    tables = sorted(folder.glob(f"{TABLE}*.txt"))
    if len(tables) != 1:
        raise ValueError(f"{folder}: expected one file {TABLE}*.txt, found {len(tables)}; name the table itself")
    return tables[0]


def _read_pair(path: Path, covariance: Path | None) -> SupernovaTable:
    """A table, and the covariance beside it."""
    rows = _read_table(path)
    columns = _columns(list(rows), rows.__getitem__, path)
    if covariance is None:
        if not path.name.startswith(TABLE):
            raise ValueError(
                f"{path}: no covariance: name the table {TABLE}_X.txt and put {SYSTEMATIC}_X.txt, the systematic covariance, beside it"
            )
        covariance = path.with_name(SYSTEMATIC + path.name.removeprefix(TABLE))
    if not covariance.is_file():
        raise ValueError(f"{path}: the systematic covariance {covariance.name} is missing beside it")
    matrix = read_covariance(covariance, len(columns["redshift"]))
    if covariance.name.startswith(SYSTEMATIC):
        matrix = matrix + np.diag(_errors(columns, path) ** 2)
    return _table(columns, matrix)


def _read_table(path: Path) -> dict[str, Any]:
    """Columns of a table by name: FITS, ECSV and CSV through astropy, else blank-separated with one line of names.

    Pantheon's rows are shorter than its header, which names a last column that is not there; astropy refuses that.
    """
    from astropy.table import Table

    try:
        with path.open("rb") as file:
            header = file.readline(10_000)
        if path.suffix in (".fits", ".fit") or header.startswith(b"# %ECSV") or b"," in header:
            plain = path.suffix not in (".fits", ".fit") and not header.startswith(b"# %ECSV")
            table = Table.read(path, **({"format": "ascii.csv"} if plain else {}))
            return {name: table[name] for name in table.colnames}
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        names = first.lstrip("# ").split()
        columns = [np.array(c) for c in zip(*rows, strict=True)]
        if len(columns) > len(names):
            raise ValueError(f"its rows have {len(columns)} numbers, its header {len(names)} names")
        return dict(zip(names, columns, strict=False))
    except Exception as error:  # astropy raises several kinds; each becomes one readable line
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{path}: not a table that can be read: {reason}") from None


def _read_hdf5(path: Path) -> SupernovaTable:
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError:
        raise ValueError(f"{path}: not an HDF5 file, or a truncated one") from None
    with file:
        columns = _columns(list(file), lambda name: file[name], path)
        for name in ("covariance", "systematic_covariance"):
            if name in file:
                matrix = np.asarray(file[name], dtype=np.float64)
                break
        else:
            raise ValueError(f"{path}: no dataset covariance or systematic_covariance; it has {', '.join(file)}")
    if name != "covariance":
        matrix = matrix + np.diag(_errors(columns, path) ** 2)
    return _table(columns, matrix)


def _columns(present: list[str], column: Callable[[str], Any], path: Path) -> dict[str, Array]:
    """The columns that are there, by our names."""
    found = {name: next((a for a in aliases if a in present), None) for name, aliases in COLUMNS.items()}
    for name in ("redshift", "magnitude"):
        if found[name] is None:
            raise ValueError(f"{path}: no column {' or '.join(COLUMNS[name])}; it has {', '.join(present)}")
    try:
        return {name: np.asarray(column(own), dtype=np.float64) for name, own in found.items() if own is not None}
    except (TypeError, ValueError) as problem:
        raise ValueError(f"{path}: expected numbers ({problem})") from None


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
