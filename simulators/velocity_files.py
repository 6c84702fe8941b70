"""Observed radial velocities from files: radvel's CSV and whitespace tables, ECSV, and the project's HDF5."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulators.units import conversion_factor

COLUMNS: dict[str, tuple[str, ...]] = {
    "time": ("time", "t"),
    "velocity": ("mnvel", "vel", "velocity"),
    "velocity_error": ("errvel", "velocity_error"),
    "instrument": ("tel", "instrument"),
}
"""Our names and those of radvel's tables; radvel's `tel` is optional."""

UNITS = {"time": "d", "velocity": "m / s", "velocity_error": "m / s"}


@dataclass(frozen=True)
class VelocityTable:
    """One observed star.

    Attributes:
        time: epochs (d), (M,), in the file's own time system.
        velocity: radial velocities (m/s), (M,); zeros where an observation file carries none.
        velocity_error: 1-sigma errors (m/s), (M,).
        instrument: name of the instrument of every point, (M,); "" where the file names none.
    """

    time: np.ndarray
    velocity: np.ndarray
    velocity_error: np.ndarray
    instrument: np.ndarray

    def __len__(self) -> int:
        return len(self.time)


def read_velocity_table(path: Path | str, *, instrument: str | None = None) -> VelocityTable:
    """Read the velocities (m/s) of one star and one instrument.

    Args:
        path: `.h5`/`.hdf5` in the project's layout, or a text table, comma or blank separated or ECSV, whose
            header names the columns `t` or `time`, `vel` or `mnvel`, `errvel`, and perhaps `tel`.
        instrument: which one to keep; needed where the file has several.

    Raises:
        ValueError: no such file, a missing column, values that are no observation, or several
            instruments and none selected.
    """
    path = Path(path)
    return _checked(_select(_read(path), instrument, path), path)


def read_all_velocities(path: Path | str) -> VelocityTable:
    """Read the velocities (m/s) of one star, of every instrument; see `read_velocity_table`.

    Raises:
        ValueError: no such file, a missing column, or values that are no observation.
    """
    path = Path(path)
    return _checked(_read(path), path)


def _read(path: Path) -> VelocityTable:
    """HDF5 or text, all instruments, unchecked."""
    if not path.is_file():
        raise ValueError(f"velocities: no file {path}")
    return _read_hdf5(path) if path.suffix in (".h5", ".hdf5") else read_velocity_text(path)


def _checked(table: VelocityTable, path: Path) -> VelocityTable:
    """The table, if it has rows, and its numbers are finite and its errors positive."""
    if len(table) == 0:
        raise ValueError(f"{path}: has no rows")
    for name in UNITS:
        values = getattr(table, name)
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: {name} has {int((~np.isfinite(values)).sum())} values that are not finite")
    if (table.velocity_error <= 0).any():
        raise ValueError(f"{path}: errors must be positive, got {table.velocity_error.min():g} m/s")
    return table


def binned_velocities(table: VelocityTable, width_days: float) -> VelocityTable:
    r"""Means over a night: velocities of one instrument within `width_days` of the first of them.

    Weights are $1/err^2$, and the error of a mean is $(\sum 1/err^2)^{-1/2}$. Noise of the star within a night, shared by its
    exposures, is then counted once. As radvel's `bintels` (Fulton et al. 2018) does it, instruments in order of appearance.

    >>> one = VelocityTable(np.array([0.0, 0.1]), np.array([1.0, 3.0]), np.array([1.0, 1.0]), np.array(["k", "k"]))
    >>> float(binned_velocities(one, 0.5).velocity[0])
    2.0
    """
    rows: list[tuple[float, float, float, str]] = []
    for name in dict.fromkeys(table.instrument.tolist()):
        of_it = np.flatnonzero(table.instrument == name)
        of_it = of_it[np.argsort(table.time[of_it], kind="stable")]
        time, velocity, error = table.time[of_it], table.velocity[of_it], table.velocity_error[of_it]
        start = 0
        while start < len(of_it):
            stop = int(np.searchsorted(time, time[start] + width_days))
            weight = 1 / error[start:stop] ** 2
            at, mean = (float(np.average(v[start:stop], weights=weight)) for v in (time, velocity))
            rows.append((at, mean, float(weight.sum() ** -0.5), name))
            start = stop
    times, velocities, errors, names = zip(*rows, strict=True)
    return VelocityTable(np.array(times), np.array(velocities), np.array(errors), np.array(names))


def read_velocity_text(path: Path) -> VelocityTable:
    """A text table with one header line, or ECSV with its units, all instruments, through astropy.

    Columns that name no unit are in d and m/s. A number that is missing is NaN.

    Raises:
        ValueError: unreadable, a column is missing, or a unit is not one of time or velocity.
    """
    from astropy.table import Table

    with path.open(encoding="utf-8") as file:
        header = file.readline()
    kind = "ascii.ecsv" if header.startswith("# %ECSV") else "ascii.csv" if "," in header else "ascii.basic"
    try:
        rows = Table.read(path, format=kind)
    except Exception as error:  # astropy raises several kinds; each becomes one readable line
        raise ValueError(f"{path}: not a table that astropy reads: {str(error).splitlines()[0]}") from None
    found = {name: next((a for a in aliases if a in rows.colnames), None) for name, aliases in COLUMNS.items()}
    for name in UNITS:
        if found[name] is None:
            raise ValueError(f"{path}: no column {' or '.join(COLUMNS[name])}; it has {', '.join(rows.colnames)}")
    time, velocity, error = (_numbers(rows[found[name]], UNITS[name], f"{path}: {found[name]}") for name in UNITS)
    names = np.full(len(time), "") if found["instrument"] is None else np.asarray(rows[found["instrument"]]).astype(str)
    return VelocityTable(time, velocity, error, names)


def _numbers(column: Any, unit: str, what: str) -> np.ndarray:
    """A column in `unit`, float64; NaN where a number is missing."""
    try:
        values = np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"{what}: expected numbers ({problem})") from None
    given = getattr(column, "unit", None)
    return values if given is None else values * conversion_factor(str(given), unit, what)


def _read_hdf5(path: Path) -> VelocityTable:
    """The only row of a data file: /x/time, /x/velocity_error, /x/velocity and /x/instrument if there."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError:
        raise ValueError(f"{path}: not an HDF5 file, or a truncated one") from None
    with file:
        arrays: dict[str, np.ndarray] = {}
        for name in ("time", "velocity", "velocity_error", "instrument"):
            dataset = file.get(f"x/{name}")
            if not isinstance(dataset, h5py.Dataset):
                continue
            if dataset.ndim != 2 or len(dataset) != 1:
                raise ValueError(f"{path}: /x/{name}: expected one observation, shape (1, M), got {dataset.shape}")
            arrays[name] = np.asarray(dataset[0], dtype=np.float64)
            if name in UNITS:
                arrays[name] *= conversion_factor(
                    str(dataset.attrs.get("unit", UNITS[name])), UNITS[name], f"{path}: {name}"
                )
        if "time" not in arrays or "velocity_error" not in arrays:
            raise ValueError(f"{path}: expected datasets /x/time and /x/velocity_error of shape (1, M)")
        codes = arrays.get("instrument", np.zeros_like(arrays["time"])).astype(int)
        names = json.loads(str(file.attrs.get("instruments", "{}")))  # {"0": "j", ...}
    instruments = np.array([names.get(str(code), "" if "instrument" not in arrays else str(code)) for code in codes])
    velocity = arrays.get("velocity", np.zeros_like(arrays["time"]))
    return VelocityTable(arrays["time"], velocity, arrays["velocity_error"], instruments)


def _select(table: VelocityTable, instrument: str | None, path: Path) -> VelocityTable:
    """The points of one instrument."""
    present = sorted(set(table.instrument.tolist()))
    if instrument is None:
        if len(present) > 1:
            raise ValueError(
                f"{path}: {len(present)} instruments ({', '.join(present)}), each with its own offset and jitter, but "
                f"radial_velocity models one: select it with the option instrument: {present[0]}"
            )
        return table
    if instrument not in present:
        raise ValueError(f"{path}: no instrument {instrument!r}; it has {', '.join(map(repr, present))}")
    keep = table.instrument == instrument
    return VelocityTable(table.time[keep], table.velocity[keep], table.velocity_error[keep], table.instrument[keep])
