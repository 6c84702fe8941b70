"""Safetensors: tensors with text metadata, never unpickled, and checked against digests of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import InputError
from pipeline.schema import PROVENANCE
from pipeline.store.complete import complete_or_absent
from simulators.reading.boundary import reading

TENSORS_SUM, HEADER_SUM = "sha256_tensors", "sha256_header"
"""Metadata: SHA-256 of all tensors, and of all other metadata but provenance. Files of version 0.1 have neither."""


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors with string metadata and the digests of both, complete or absent."""
    from safetensors.torch import save

    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    header = {k: str(v) for k, v in metadata.items()} | {TENSORS_SUM: tensors_sum(plain)}
    header[HEADER_SUM] = header_sum(header)
    with complete_or_absent(path) as temporary:
        temporary.write_bytes(save(plain, metadata=header))


def tensors_sum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def header_sum(header: Mapping[str, str]) -> str:
    """SHA-256 of the metadata; what may differ between two runs of the same settings, and the digest itself, do not count."""
    counted = {k: v for k, v in header.items() if k not in (PROVENANCE, HEADER_SUM)}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def read_safetensors_header(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file, without its digests.

    Raises:
        InputError: missing, not a safetensors file, or its metadata are not those that were written.
    """
    return _without_sums(_header(path))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, and metadata without their digests.

    Raises:
        InputError: missing, not a safetensors file, or not what was written: one flipped bit is enough.
    """
    from safetensors.torch import load

    header = _header(path)
    with reading(path):
        tensors = load(path.read_bytes())  # a copy: what was checked stays as it is, whatever becomes of the file
    if TENSORS_SUM in header and tensors_sum(tensors) != header[TENSORS_SUM]:
        raise InputError(f"{path}: damaged: its tensors are not those that were written")
    return tensors, _without_sums(header)


def _header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file, or a truncated one ({error})") from None
    sums = {TENSORS_SUM, HEADER_SUM} & header.keys()
    if sums and (len(sums) == 1 or header_sum(header) != header[HEADER_SUM]):
        raise InputError(f"{path}: damaged: its header is not the one that was written")
    return header


def _without_sums(header: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in header.items() if k not in (TENSORS_SUM, HEADER_SUM)}
