"""`elboscope show`: what is in a file, without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
from rich.tree import Tree

from pipeline.progress import console
from pipeline.schema import CONTENT_KEY, PROVENANCE, SETTINGS
from pipeline.store import open_hdf5, read_safetensors_header

HIDDEN = ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME")


def show(path: Path) -> None:
    """Print names, shapes, dtypes, units, settings and provenance of an HDF5 or safetensors file.

    Raises:
        InputError: missing, or of neither kind.
    """
    tree = Tree(str(path))
    if path.suffix == ".safetensors":
        header = read_safetensors_header(path)
        _show_attributes(tree, header)
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                part = file.get_slice(name)
                tree.add(f"{name}  {tuple(part.get_shape())} {part.get_dtype()}")
    else:
        with open_hdf5(path) as file:
            _show_attributes(tree, file.attrs)
            _show_group(tree, file)
    console.print(tree)


def _show_group(tree: Tree, group: h5py.Group) -> None:
    for name in group:
        item = group.get(name)
        if item is None:
            tree.add(f"{name}  link to nothing")
        elif isinstance(item, h5py.Group):
            branch = tree.add(f"{name}/")
            _show_attributes(branch, item.attrs)
            _show_group(branch, item)
        elif isinstance(item, h5py.Dataset):
            unit = item.attrs.get("unit", item.attrs.get("units", ""))
            extra = " virtual" if item.is_virtual else ""
            tree.add(
                f"{name}  {item.shape} {item.dtype}{extra}" + (f"  [{unit}]" if isinstance(unit, str) and unit else "")
            )


def _show_attributes(tree: Tree, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        if name in HIDDEN or name.startswith("_"):
            continue
        if name in (PROVENANCE, SETTINGS) and (record := _record(value)):
            branch = tree.add(name)
            for key, entry in record.items():
                branch.add(f"{key}: {json.dumps(entry)}")
        elif name == "history":
            tree.add(f"history: {len(str(value).splitlines()) - 1} rows of training")
        elif name == CONTENT_KEY:
            tree.add(f"content_key: {str(value)[:16]}...")
        else:
            tree.add(f"{name}: {value}")


def _record(value: Any) -> dict[str, Any]:
    """A JSON object; empty where a foreign file has something else under our name."""
    try:
        record = json.loads(str(value))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
