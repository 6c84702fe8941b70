"""Files of a run: complete or absent, checksummed, and carrying the key of what made them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.schema import CONTENT_KEY, INPUTS, PROVENANCE, SCHEMA, SCHEMA_VERSION, SETTINGS, STAGE
from simulators.protocol import Data, Observable, Parameter
from simulators.units import conversion_factor

CHUNK_BYTES = 1 << 20
RECORDED_PACKAGES = (
    "elboscope",
    "torch",
    "nflows",
    "sbi",
    "lightning",
    "h5py",
    "numpy",
    "arviz",
    "emcee",
    "nautilus-sampler",
)


@dataclass(frozen=True)
class DataSet:
    """A data file in memory.

    Attributes:
        x: observables, (N, ...) each.
        theta: (N, D), where known.
        ids: N identifiers; row numbers where the file has none.
    """

    x: Data
    theta: Tensor | None
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, start: int, stop: int) -> DataSet:
        """Rows start to stop - 1."""
        theta = None if self.theta is None else self.theta[start:stop]
        return DataSet({k: v[start:stop] for k, v in self.x.items()}, theta, self.ids[start:stop])


# ---------------------------------------------------------------- complete or absent


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success flush it to disk and give it the final name.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: could not be written ({error.strerror or error}); nothing was changed") from error
    finally:
        with suppress(OSError):  # gone already, or its folder could not be made: the error above says so
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or absent."""
    with complete_or_absent(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- keys and provenance


def content_key(stage: str, stage_version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """SHA-256 of what determines a stage's output: its version, the settings that matter, its inputs' digests."""
    payload = {"stage": stage, "version": stage_version, "settings": settings, "inputs": inputs}
    return hashlib.sha256(json.dumps(payload, sort_keys=True, default=str).encode()).hexdigest()


def input_digest(path: Path) -> str:
    """What identifies an input: its own content key where a stage wrote it, else SHA-256 of its bytes.

    Of a folder: SHA-256 over names and digests of the files in it.
    """
    if path.is_dir():
        files = {p.name: file_sha256(p) for p in sorted(path.iterdir()) if p.is_file()}
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return read_key(path) or file_sha256(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_key(path: Path) -> str | None:
    """The content key stored in a file of ours; None if it is absent, foreign or unreadable."""
    return read_attribute(path, CONTENT_KEY)


def read_attribute(path: Path, name: str) -> str | None:
    """A root attribute of a file of ours, as text; None if it, or the file, is absent, foreign or unreadable.

    An HTML page has those that stand in its head as `<meta name=... content=...>`: its content key.
    """
    if not path.is_file():
        return None
    try:
        if path.suffix == ".safetensors":
            return read_safetensors_header(path).get(name)
        if path.suffix == ".html":
            with path.open(encoding="utf-8") as file:
                head = file.read(500)
            _, found, rest = head.partition(f'<meta name="{name}" content="')
            return rest.partition('"')[0] if found else None
        with h5py.File(path, "r") as file:
            value = file.attrs.get(name)
            return _text(value) if value is not None else None
    except (OSError, ValueError, InputError):
        return None


def provenance(started: float | None = None, extra: Mapping[str, Any] | None = None) -> str:
    """JSON of who made a file: versions, host, date, wall time. Not part of the content."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    record: dict[str, Any] = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions,
    }
    if started is not None:
        record["wall_time_s"] = round(time.monotonic() - started, 3)
    return json.dumps(record | dict(extra or {}), sort_keys=True)


def stamp(
    *,
    stage: str,
    key: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    started: float | None = None,
) -> dict[str, str | int]:
    """Root attributes that every file of a run carries; `inputs` are the digests of what it was made from."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        STAGE: stage,
        CONTENT_KEY: key,
        SETTINGS: json.dumps(settings, sort_keys=True),
        INPUTS: json.dumps(dict(inputs or {}), sort_keys=True),
        PROVENANCE: provenance(started),
    }


# ---------------------------------------------------------------- HDF5


def create_dataset(group: h5py.Group, name: str, values: Any, **attributes: str) -> h5py.Dataset:
    """A dataset with Fletcher32 on every chunk; strings become UTF-8."""
    array = np.asarray(values)
    if array.dtype.kind in "UO":
        dataset = group.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
    elif array.ndim == 0 or array.size == 0:
        dataset = group.create_dataset(name, data=array)
    else:
        row_bytes = max(1, array.nbytes // len(array))
        rows = int(np.clip(CHUNK_BYTES // row_bytes, 1, len(array)))
        dataset = group.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]), fletcher32=True)
    dataset.attrs.update(attributes)
    return dataset


def write_hdf5(path: Path, fill: Callable[[h5py.File], None], attributes: Mapping[str, Any]) -> None:
    """Create an HDF5 file, complete or absent: `fill` writes its groups, `attributes` go to the root.

    Made in memory and then written in one piece: HDF5 kills the process (segmentation fault, h5py 3.16) when
    the disk is full, where an ordinary write raises OSError.
    """
    options: dict[str, Any] = {
        "driver": "core",
        "backing_store": False,
        "libver": ("earliest", "v112"),
        "track_order": True,
    }
    with complete_or_absent(path) as temporary:
        with h5py.File(temporary, "w", **options) as file:
            fill(file)
            file.attrs.update(attributes)
            file.flush()
            image = file.id.get_file_image()
        temporary.write_bytes(image)


def write_data(
    path: Path,
    *,
    observables: Sequence[Observable],
    x: Mapping[str, Tensor],
    parameters: Sequence[Parameter] = (),
    theta: Tensor | None = None,
    ids: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a data file (layout: `pipeline.schema`), complete or absent."""

    def fill(file: h5py.File) -> None:
        group = file.create_group("x")
        for o in observables:
            values = x[o.name].cpu().numpy().astype(o.dtype)
            create_dataset(group, o.name, values, unit=o.unit, role=o.role, label=o.label)
        if theta is not None:
            dataset = create_dataset(file, "theta", theta.cpu().numpy().astype(np.float64))
            dataset.attrs["names"] = [p.name for p in parameters]
            dataset.attrs["units"] = [p.unit for p in parameters]
        if ids is not None:
            create_dataset(file, "id", list(ids))

    write_hdf5(path, fill, {"schema": SCHEMA, "schema_version": SCHEMA_VERSION} | dict(attributes or {}))


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        InputError: missing, not HDF5, or truncated.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return h5py.File(path, "r")
    except OSError:
        raise InputError(f"{path}: not an HDF5 file, or a truncated one") from None


def is_data_file(path: Path) -> bool:
    """Whether `path` is HDF5 with our group `/x`."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        return isinstance(file.get("x"), h5py.Group)


def read_data(
    path: Path,
    *,
    observables: Sequence[Observable],
    parameters: Sequence[Parameter] = (),
    rows: slice = slice(None),
) -> DataSet:
    """Read a data file, checked against what the simulator declares; units are converted.

    Args:
        rows: which rows; all of them by default.

    Raises:
        InputError: names the first thing that does not fit: a missing dataset, a wrong shape or unit, NaN,
            rows that do not match, or a checksum that fails.
    """
    with open_hdf5(path) as file:
        group = file.get("x")
        if not isinstance(group, h5py.Group):
            raise InputError(f"{path}: not an Elboscope data file (no group /x)")
        _check_virtual_sources(path, file)
        try:
            x = {o.name: _read_observable(path, group, o, rows) for o in observables}
            theta = _read_theta(path, file, parameters, rows) if parameters else None
            raw_ids = _read_ids(path, file, rows)
        except OSError as error:
            raise InputError(f"{path}: damaged: a checksum or a read failed ({error})") from None
    counts = {k: len(v) for k, v in x.items()}
    count = next(iter(counts.values()))
    if len(set(counts.values())) > 1 or (theta is not None and len(theta) != count):
        rows_of_theta = {} if theta is None else {"theta": len(theta)}
        raise InputError(f"{path}: datasets disagree on the number of rows: {counts | rows_of_theta}")
    if count == 0:
        raise InputError(f"{path}: has no rows")
    first = rows.start or 0
    ids = raw_ids if raw_ids is not None else tuple(str(first + i) for i in range(count))
    if len(ids) != count:
        raise InputError(f"{path}: /id has {len(ids)} rows, /x has {count}")
    if len(set(ids)) < count:
        raise InputError(f"{path}: /id: {next(i for i in ids if ids.count(i) > 1)!r} stands for more than one row")
    return DataSet(x, theta, ids)


def _check_virtual_sources(path: Path, file: h5py.File) -> None:
    """HDF5 fills in zeros, without a word, where a file behind a virtual dataset is missing."""
    sources: set[str] = set()

    def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            sources.update(source.file_name for source in item.virtual_sources())

    file.visititems(collect)
    missing = sorted(s for s in sources if not (path.parent / s).is_file())
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of its {len(sources)} shards are missing, the first {missing[0]}; run `elboscope simulate` again"
        )


def _read_observable(path: Path, group: h5py.Group, observable: Observable, rows: slice) -> Tensor:
    name = f"{path}: /x/{observable.name}"
    dataset = group.get(observable.name)
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{name} is missing (it has: {', '.join(group) or 'nothing'})")
    if "unit" not in dataset.attrs:
        raise InputError(f"{name}: no attribute 'unit'; expected one, such as {observable.unit!r}")
    values = _read_numbers(dataset, observable.shape, name, rows)
    values = values * _conversion(dataset.attrs["unit"], observable.unit, name)
    return values if observable.dtype == "float64" else values.float()


def _read_theta(path: Path, file: h5py.File, parameters: Sequence[Parameter], rows: slice) -> Tensor:
    name = f"{path}: /theta"
    dataset = file.get("theta")
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{name} is missing")
    expected = [p.name for p in parameters]
    names = [_text(n) for n in np.atleast_1d(dataset.attrs.get("names", []))]
    if names != expected:
        raise InputError(f"{name} has parameters {names}, expected {expected}")
    values = _read_numbers(dataset, (len(expected),), name, rows)
    units = [_text(u) for u in np.atleast_1d(dataset.attrs.get("units", []))]
    if len(units) != len(expected):
        raise InputError(f"{name}: expected the attribute 'units' with {len(expected)} units, got {units}")
    factors = [_conversion(u, p.unit, f"{name}, {p.name}") for u, p in zip(units, parameters, strict=True)]
    return values * torch.tensor(factors, dtype=torch.float64)


def _read_ids(path: Path, file: h5py.File, rows: slice) -> tuple[str, ...] | None:
    if "id" not in file:
        return None
    dataset = file["id"]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1:
        raise InputError(f"{path}: /id: expected one identifier a row")
    return tuple(_text(i) for i in dataset[rows])


def _read_numbers(dataset: h5py.Dataset, shape: tuple[int, ...], name: str, rows: slice) -> Tensor:
    """Rows in float64, finite."""
    if dataset.dtype.kind not in "fiub":
        raise InputError(f"{name}: expected numbers, got {dataset.dtype}")
    if dataset.ndim != len(shape) + 1 or dataset.shape[1:] != shape:
        raise InputError(f"{name}: expected shape ({', '.join(map(str, ('N', *shape)))}), got {dataset.shape}")
    values = torch.from_numpy(np.asarray(dataset[rows], dtype=np.float64))
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise InputError(f"{name}: {bad} of {values.numel()} values are NaN or infinite")
    return values


def _conversion(given: Any, expected: str, name: str) -> float:
    try:
        return conversion_factor(_text(given), expected, name)
    except ValueError as error:
        raise InputError(str(error)) from None


def _text(value: Any) -> str:
    """Text as h5py, C and Fortran write it: str, or bytes of fixed length."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def hdf5_content_digest(path: Path) -> str:
    """SHA-256 over every dataset and attribute that is not provenance: equal content, equal digest."""
    digest = hashlib.sha256()

    def absorb(name: str, item: h5py.Group | h5py.Dataset) -> None:
        digest.update(name.encode())
        for key in sorted(item.attrs):
            if key != PROVENANCE and not key.startswith("_NC") and key not in ("DIMENSION_LIST", "REFERENCE_LIST"):
                digest.update(key.encode() + repr(np.asarray(item.attrs[key]).tolist()).encode())
        if isinstance(item, h5py.Dataset):
            values = item[()]
            digest.update(repr(item.shape).encode() + str(item.dtype).encode())
            digest.update(values.tobytes() if item.dtype.kind != "O" else repr(np.asarray(values).tolist()).encode())

    with open_hdf5(path) as file:
        absorb("/", file)
        names: list[str] = []
        file.visit(names.append)
        for name in sorted(names):
            absorb(name, file[name])  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


# ---------------------------------------------------------------- safetensors


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors with string metadata, complete or absent."""
    from safetensors.torch import save

    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with complete_or_absent(path) as temporary:
        temporary.write_bytes(save(plain, metadata={k: str(v) for k, v in metadata.items()}))


def read_safetensors_header(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file.

    Raises:
        InputError: missing, or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file, or a truncated one ({error})") from None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    from safetensors.torch import load_file

    header = read_safetensors_header(path)
    return load_file(path), header
