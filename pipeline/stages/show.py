"""`elboscope show`: what is in a file, and what made it, without loading it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]
from rich.console import Console
from rich.tree import Tree

from pipeline.cost import SPANS
from pipeline.schema import CONTENT_KEY, INPUTS, PROVENANCE, SETTINGS, STAGE
from pipeline.store import open_hdf5, read_key, read_safetensors_header, reading

HIDDEN = ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "text_crc32")
DIGEST_DIGITS = 12
"""Of 64: enough to tell the files of a run apart, few enough to compare by eye."""
LONGEST = 200
"""Characters of an attribute that is not ours."""
NEIGHBOURS = 50
"""Files beside this one whose content keys are read, to say which of them are its inputs."""


def show(path: Path) -> None:
    """Print what made an HDF5 or safetensors file, and names, shapes, dtypes and units of what is in it.

    Digests are cut to twelve digits. An input is given with the name of the file beside this one that has its content
    key; where none has, that file was changed since, lies elsewhere, or is not one that a stage wrote.

    Raises:
        InputError: missing, or of neither kind.
    """
    tree = Tree(str(path))
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        header = read_safetensors_header(path)
        with reading(path), safe_open(path, framework="pt") as file:
            _show_origin(tree, header, path)
            _show_attributes(tree, header)
            for name in sorted(file.keys()):
                part = file.get_slice(name)
                tree.add(f"{name}  {tuple(part.get_shape())} {part.get_dtype()}")
    else:
        with open_hdf5(path, layout_only=True) as file:
            _show_origin(tree, file.attrs, path)
            _show_attributes(tree, file.attrs)
            _show_group(tree, file, set())
    # so wide that nothing is cut: the terminal, or `less -S`, does with long lines what its user wants
    Console(highlight=False, soft_wrap=True, markup=False, width=10_000).print(tree)


def _show_group(tree: Tree, group: h5py.Group, seen: set[int]) -> None:
    """Members of a group; one that is reached twice, as from a group that contains itself, is shown once."""
    seen.add(h5o.get_info(group.id).addr)
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, (h5py.SoftLink, h5py.ExternalLink)):  # not followed: it may lead out of the file
            tree.add(
                f"{name}  link to {link.path}" + (f" in {link.filename}" if isinstance(link, h5py.ExternalLink) else "")
            )
            continue
        item = group.get(name)
        if isinstance(item, h5py.Group):
            branch = tree.add(f"{name}/")
            if h5o.get_info(item.id).addr in seen:
                branch.add("shown already")
                continue
            _show_attributes(branch, item.attrs)
            _show_group(branch, item, seen)
        elif isinstance(item, h5py.Dataset):
            unit = item.attrs.get("unit", item.attrs.get("units", ""))
            extra = " virtual" if item.is_virtual else ""
            tree.add(
                f"{name}  {item.shape} {item.dtype}{extra}" + (f"  [{unit}]" if isinstance(unit, str) and unit else "")
            )


def _show_origin(tree: Tree, attributes: Mapping[str, Any], path: Path) -> None:
    """What made the file: stage, time, versions; its own key and those of its inputs; its settings."""
    record = _record(attributes.get(PROVENANCE))
    if STAGE in attributes or record:
        made = [str(attributes[STAGE])] if STAGE in attributes else []
        made += [str(record["created"])] if "created" in record else []
        made += [f"on {record['host']}"] if "host" in record else []
        made += [f"{record['wall_time_s']:g} s"] if "wall_time_s" in record else []
        made += [f"{record['cpu_time_s']:g} s of CPU"] if "cpu_time_s" in record else []
        branch = tree.add(f"made by {', '.join(made)}")
        for name, value in record.items():
            if name not in ("created", "host", "wall_time_s", "cpu_time_s", SPANS, "versions") and value != "":
                branch.add(f"{name}: {value}")
        if isinstance(record.get("versions"), dict):
            branch.add("versions: " + _listed(record["versions"]))
    if CONTENT_KEY in attributes:
        tree.add(f"content key: {_short(attributes[CONTENT_KEY])}")
    inputs = _record(attributes.get(INPUTS))
    if inputs:
        branch, beside = tree.add("inputs"), _keys_beside(path)
        for name, digest in inputs.items():
            branch.add(f"{name}: {_short(digest)}" + (f" = {beside[digest]}" if digest in beside else ""))
    settings = _record(attributes.get(SETTINGS))
    if settings:
        _show_settings(tree.add("settings"), settings)


def _show_settings(branch: Tree, settings: Mapping[str, Any]) -> None:
    """Values of a block on one line, blocks within it below."""
    values = {k: v for k, v in settings.items() if not _is_block(v)}
    if values:
        branch.add(_listed(values))
    for name, block in settings.items():
        if not _is_block(block):
            continue
        if isinstance(block, dict) and not any(map(_is_block, block.values())):
            branch.add(f"{name}: {_listed(block)}")
        elif isinstance(block, dict):
            _show_settings(branch.add(name), block)
        else:
            within = branch.add(name)
            for entry in block:
                within.add(_listed(entry))


def _is_block(value: Any) -> bool:
    """A mapping with entries, or a list of such."""
    return bool(value) and (isinstance(value, dict) or (isinstance(value, list) and all(map(_is_mapping, value))))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _listed(values: Mapping[str, Any]) -> str:
    """`name value, name value`; text as it is, the rest as JSON."""
    return ", ".join(f"{k} {v if isinstance(v, str) and v else json.dumps(v)}" for k, v in values.items())


def _short(digest: Any) -> str:
    text = str(digest)
    return text if len(text) <= DIGEST_DIGITS else f"{text[:DIGEST_DIGITS]}..."


def _keys_beside(path: Path) -> dict[str, str]:
    """Content key to name, of the files in the same folder."""
    files: Iterable[Path] = sorted(
        f
        for f in path.resolve().parent.iterdir()
        if f.suffix in (".h5", ".safetensors", ".html") and f.name != path.name
    )
    keys = {read_key(f): f.name for f in list(files)[:NEIGHBOURS]}
    return {k: name for k, name in keys.items() if k}


def _show_attributes(tree: Tree, attributes: Mapping[str, Any]) -> None:
    """Attributes other than those of `_show_origin`."""
    for name, value in attributes.items():
        if name in HIDDEN or name.startswith("_"):
            continue
        if name in (PROVENANCE, SETTINGS, INPUTS) and _record(value):
            continue
        if name in (CONTENT_KEY, STAGE):
            continue
        if name == "history":
            tree.add(f"history: {len(str(value).splitlines()) - 1} rows of training")
        else:
            text = str(value.item() if getattr(value, "size", 0) == 1 else value)
            tree.add(f"{name}: {text if len(text) <= LONGEST else text[:LONGEST] + ' ...'}")


def _record(value: Any) -> dict[str, Any]:
    """A JSON object; empty where a foreign file has something else under our name."""
    try:
        record = json.loads(str(value))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
