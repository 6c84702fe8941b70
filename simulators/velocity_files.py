"""Observed radial velocities from files: radvel's CSV and whitespace tables, ECSV, and the project's HDF5."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from simulators.reading.hdf5 import open_hdf5
from simulators.reading.tables import read_text_table
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
    """A text table with one header line, or ECSV, all instruments.

    Columns that name no unit are in d and m/s. A number that is missing is NaN.

    Raises:
        ValueError: unreadable, a column is missing, or a unit is not one of time or velocity.
    """
    table = read_text_table(path)
    found = {name: table.find(aliases, path) for name, aliases in COLUMNS.items()}
    numbers: dict[str, np.ndarray] = {}
    for name, unit in UNITS.items():
        column = found[name]
        if column is None:
            names = ", ".join(c.name for c in table.columns)
            raise ValueError(f"{path}: no column {' or '.join(COLUMNS[name])}; it has {names}")
        numbers[name] = column.numbers(str(path), unit)
    column = found["instrument"]
    return VelocityTable(
        time=numbers["time"],
        velocity=numbers["velocity"],
        velocity_error=numbers["velocity_error"],
        instrument=np.full(len(numbers["time"]), "") if column is None else column.cells,
    )


def _read_hdf5(path: Path) -> VelocityTable:
    """The only row of a data file: /x/time, /x/velocity_error, /x/velocity and /x/instrument if there."""
    with open_hdf5(path) as file:
        arrays: dict[str, np.ndarray] = {}
        for name in ("time", "velocity", "velocity_error", "instrument"):
            dataset = file.get(f"x/{name}")
            if not isinstance(dataset, h5py.Dataset):
                continue
            if dataset.ndim != 2 or len(dataset) != 1:
                raise ValueError(f"{path}: /x/{name}: expected one observation, shape (1, M), got {dataset.shape}")
            if dataset.dtype.kind not in "fiub":
                raise ValueError(f"{path}: /x/{name}: expected numbers, got {dataset.dtype}")
            arrays[name] = np.asarray(dataset[0], dtype=np.float64)
            if name in UNITS:
                arrays[name] *= conversion_factor(
                    str(dataset.attrs.get("unit", UNITS[name])), UNITS[name], f"{path}: {name}"
                )
        if "time" not in arrays or "velocity_error" not in arrays:
            raise ValueError(f"{path}: expected datasets /x/time and /x/velocity_error of shape (1, M)")
        if len({len(values) for values in arrays.values()}) > 1:
            sizes = ", ".join(f"{name} {len(values)}" for name, values in arrays.items())
            raise ValueError(f"{path}: expected as many numbers of each, got {sizes}")
        codes = np.nan_to_num(arrays.get("instrument", np.zeros_like(arrays["time"]))).astype(int)
        names = _instrument_names(path, str(file.attrs.get("instruments", "{}")))
    instruments = np.array([names.get(str(code), "" if "instrument" not in arrays else str(code)) for code in codes])
    velocity = arrays.get("velocity", np.zeros_like(arrays["time"]))
    return VelocityTable(arrays["time"], velocity, arrays["velocity_error"], instruments)


def _instrument_names(path: Path, text: str) -> dict[str, str]:
    """Names by code, {"0": "j", ...}."""
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, dict):
        raise ValueError(f"{path}: attribute instruments: expected {{code: name}}, got {text[:80]!r}")
    return {str(code): str(name) for code, name in names.items()}


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
