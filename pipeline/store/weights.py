"""Safetensors: tensors with text metadata, never unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import InputError
from pipeline.store.complete import complete_or_absent


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
