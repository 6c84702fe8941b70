"""One dataset of a data file: checked against what the simulator declares, and how its numbers are converted."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.store.hdf5 import as_text
from pipeline.store.keys import json_object
from simulators.protocol import Observable, Parameter
from simulators.units import conversion_factor

TEXT_SUMS = "text_crc32"
"""Root attribute: JSON of CRC-32 by dataset and attribute."""
SEPARATOR = "\n"


@dataclass(frozen=True)
class Column:
    """A dataset of N rows.

    Attributes:
        name: in the file.
        dtype: in memory.
        factor: of each number, or of all, to the declared unit; None where nothing is to be converted.
    """

    name: str
    dtype: torch.dtype
    factor: Tensor | None

    def converted(self, values: Tensor) -> Tensor:
        """Stored numbers in the declared units and dtype."""
        return (values if self.factor is None else values.double() * self.factor).to(self.dtype)


def text_crc(value: str | Sequence[str]) -> int:
    """CRC-32 of text in an attribute that h5py hands out as str: such text lies where HDF5 has no checksum."""
    return zlib.crc32(SEPARATOR.join([value] if isinstance(value, str) else value).encode())


def text_attribute(dataset: h5py.Dataset, name: str, source: str) -> list[str]:
    """The texts of an attribute; none where it is absent.

    Raises:
        InputError: a bit of it has flipped, such as km / s to cm / s. Text that somebody has changed on purpose is taken as it is.
    """
    texts = [as_text(v) for v in np.atleast_1d(dataset.attrs.get(name, []))]
    sums = json_object(as_text(dataset.file.attrs.get(TEXT_SUMS, "{}")), f"{source}: {TEXT_SUMS}")
    noted = sums.get(f"{dataset.name} {name}")
    if noted is None or text_crc(texts) == noted:
        return texts
    raw = SEPARATOR.join(texts).encode()
    for bit in range(8 * len(raw)):
        before = bytearray(raw)
        before[bit // 8] ^= 1 << bit % 8
        if zlib.crc32(before) == noted:
            raise InputError(
                f"{source}: damaged: a bit of its attribute {name!r} has flipped: {SEPARATOR.join(texts)!r} was {before.decode()!r}"
            )
    return texts


def theta_column(path: Path, file: h5py.File, parameters: Sequence[Parameter]) -> Column:
    """`/theta`, (N, D).

    Raises:
        InputError: missing, or other parameters, units or shape than declared.
    """
    name = f"{path}: /theta"
    dataset = file.get("theta")
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{name} is missing")
    expected = [p.name for p in parameters]
    names = [as_text(n) for n in np.atleast_1d(dataset.attrs.get("names", []))]
    if names != expected:
        raise InputError(f"{name} has parameters {names}, expected {expected}")
    _check(dataset, (len(expected),), name)
    units = text_attribute(dataset, "units", name)
    if len(units) != len(expected):
        raise InputError(f"{name}: expected the attribute 'units' with {len(expected)} units, got {units}")
    factors = [_conversion(u, p.unit, f"{name}, {p.name}") for u, p in zip(units, parameters, strict=True)]
    return Column("theta", torch.float64, _factor(factors))


def observable_column(path: Path, file: h5py.File, observable: Observable) -> Column:
    """`/x/<name>`, (N, ...).

    Raises:
        InputError: missing, or another unit or shape than declared.
    """
    name = f"{path}: /x/{observable.name}"
    group: Any = file["x"]
    dataset = group.get(observable.name)
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{name} is missing (it has: {', '.join(group) or 'nothing'})")
    if "unit" not in dataset.attrs:
        raise InputError(f"{name}: no attribute 'unit'; expected one, such as {observable.unit!r}")
    _check(dataset, observable.shape, name)
    dtype = torch.float64 if observable.dtype == "float64" else torch.float32
    (unit,) = text_attribute(dataset, "unit", name)[:1] or [""]
    factor = _conversion(unit, observable.unit, name)
    return Column(f"x/{observable.name}", dtype, _factor([factor]))


def _check(dataset: h5py.Dataset, shape: tuple[int, ...], name: str) -> None:
    if dataset.dtype.kind == "c":
        raise InputError(f"{name} is complex, expected real numbers: store real and imaginary part as two observables")
    if dataset.dtype.kind not in "fiub":
        raise InputError(f"{name}: expected numbers, got {dataset.dtype}")
    if dataset.ndim != len(shape) + 1 or dataset.shape[1:] != shape:
        raise InputError(f"{name}: expected shape ({', '.join(map(str, ('N', *shape)))}), got {dataset.shape}")


def _factor(factors: Sequence[float]) -> Tensor | None:
    return None if set(factors) == {1.0} else torch.tensor(factors, dtype=torch.float64)


def _conversion(given: Any, expected: str, name: str) -> float:
    try:
        return conversion_factor(as_text(given), expected, name)
    except ValueError as error:
        raise InputError(str(error)) from None
