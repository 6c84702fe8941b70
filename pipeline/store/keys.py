"""What made a file, and from what: content keys, digests, provenance."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pipeline.cost import Cost, cost_from
from pipeline.errors import InputError
from pipeline.schema import CONTENT_KEY, INPUTS, PROVENANCE, SCHEMA, SCHEMA_VERSION, SETTINGS, STAGE
from pipeline.store.hdf5 import as_text, open_hdf5
from pipeline.store.weights import read_safetensors_header
from simulators.reading.boundary import reading

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
        with open_hdf5(path, layout_only=True) as file:
            value = file.attrs.get(name)
            return as_text(value) if value is not None else None
    except (OSError, ValueError):  # InputError too, which is all that opening and reading raise
        return None


def read_record(path: Path, name: str) -> dict[str, Any]:
    """A JSON object in a root attribute; empty where the attribute, or the file, is absent or unreadable.

    Raises:
        InputError: the attribute holds anything else.
    """
    text = read_attribute(path, name)
    return {} if text is None else json_object(text, f"{path}: attribute {name!r}")


def json_object(text: str, source: str) -> dict[str, Any]:
    """A JSON object; `source` stands at the start of an error.

    Raises:
        InputError: anything else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: expected a JSON object, got other text ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{source}: expected a JSON object, got {type(value).__name__}")
    return value


def read_cost(path: Path) -> Cost | None:
    """Cost of the whole stage, or of the piece of one, that a file of ours is; None where it does not say.

    Raises:
        InputError: what it says is no cost.
    """
    with reading(path):
        beside = path.suffix == ".json" and path.is_file()
        return cost_from(path.read_text(encoding="utf-8") if beside else read_attribute(path, PROVENANCE))


def provenance(cost: Cost | None = None, extra: Mapping[str, Any] | None = None) -> str:
    """JSON of who made a file: versions, host, date, wall and CPU time. Not part of the content."""
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
    if cost is not None:
        record |= cost.record()
    return json.dumps(record | dict(extra or {}), sort_keys=True)


def stamp(
    *,
    stage: str,
    key: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    cost: Cost | None = None,
) -> dict[str, str | int]:
    """Root attributes that every file of a run carries; `inputs` are the digests of what it was made from, `cost` of the whole stage."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        STAGE: stage,
        CONTENT_KEY: key,
        SETTINGS: json.dumps(settings, sort_keys=True),
        INPUTS: json.dumps(dict(inputs or {}), sort_keys=True),
        PROVENANCE: provenance(cost),
    }
