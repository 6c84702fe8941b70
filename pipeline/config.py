"""Reading a case: YAML and overrides become checked settings, and a mistake one line that says what to change."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.datasets.cache import PREFIX, resolve_fetched
from pipeline.errors import InputError
from pipeline.settings import CaseSettings, SimulatorSettings
from simulators.reading.bounds import read_text
from simulators.reading.yaml_text import read_yaml

if typing.TYPE_CHECKING:
    from simulators.protocol import Simulator


def load_case(path: Path, overrides: Sequence[str] = ()) -> CaseSettings:
    """Read a YAML case and apply `key.subkey=value` overrides.

    Relative paths in the file are relative to the file's folder.

    Raises:
        InputError: one line that names the file, the key and what was expected.
    """
    values = read_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    values = override_values(values, overrides)
    values["name"] = values.get("name") or path.stem
    _resolve_paths(values, path.resolve().parent)
    return case_from_values(values, str(path))


def override_values(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key.subkey=value` overrides to plain values.

    Raises:
        InputError: not of that form, or a path through something that has no keys.
    """
    for override in overrides:
        _apply_override(values, override)
    return values


def case_from_values(values: Mapping[str, Any], source: str) -> CaseSettings:
    """Validate plain values; `source` stands at the start of an error."""
    try:
        return CaseSettings.model_validate(_without_empty_blocks(values, CaseSettings))
    except ValidationError as error:
        first = error.errors()[0]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{source}: {_explain(first)}{more}") from None


def _without_empty_blocks(values: Any, model: type[BaseModel]) -> Any:
    """A block whose lines are all commented out, `train:`, is that block with its defaults."""
    if not isinstance(values, Mapping):
        return values
    fields = {f.alias or name: f for name, f in model.model_fields.items()} | dict(model.model_fields)
    filled: dict[Any, Any] = {}
    for key, value in values.items():
        annotation = fields[key].annotation if isinstance(key, str) and key in fields else None
        block = _model_in(annotation)
        if block is None or block is not annotation:  # no block, or several of them
            if value is not None or typing.get_origin(annotation) not in (dict, tuple):
                filled[key] = value
        elif value is not None:
            filled[key] = _without_empty_blocks(value, block)
    return filled


def _explain(error: Mapping[str, Any]) -> str:
    *outer, key = error["loc"] or ("",)
    location = [str(part) for part in outer if "[" not in str(part)]  # pydantic adds the branch of a union
    if error["type"] in ("extra_forbidden", "missing", "invalid_key") or "[" not in str(key):
        location.append(str(key))
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _keys_at(error["loc"][:-1])
        near = get_close_matches(location[-1], known, n=1, cutoff=0.4)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if error["type"] == "missing":
        return f"{key!r} is required"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}, got {error['input']!r}" if location and error["type"] != "value_error" else message


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """Keys that the settings know at `location`."""
    model: Any = CaseSettings
    for part in location:
        if isinstance(part, int):
            continue
        fields = {**model.model_fields, **{f.alias: f for f in model.model_fields.values() if f.alias}}
        if part not in fields:
            return []
        model = _model_in(fields[part].annotation)
        if model is None:
            return []
    return [(f.alias or n) for n, f in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model inside an annotation such as `tuple[PhaseSettings, ...]`."""
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        return annotation
    for argument in typing.get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set `a.b.0.c=value` (value in YAML) in nested mappings and lists."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override}: expected key=value, such as train.steps=500")
    value = read_yaml(text, f"--set {key}={text}")
    node: Any = values
    parts = key.split(".")
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(node, list):
            if not (part.isascii() and part.isdigit()) or int(part) >= len(node):
                raise InputError(
                    f"--set {override}: {'.'.join(parts[:i])} has entries 0 to {len(node) - 1}, not {part!r}"
                )
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
            if not last and node.get(part) is None:
                node[part] = {}
        else:
            raise InputError(f"--set {override}: {'.'.join(parts[:i])} is a single value and has no keys")
        if last:
            node[index] = value
        else:
            node = node[index]


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the file paths of a case absolute: observation, simulator.path, ingest.arrays, likelihood.summary.file, options that name files."""
    if isinstance(values.get("observation"), str):
        values["observation"] = _resolve_file(values["observation"], folder)
    ingest = values.get("ingest")
    if isinstance(ingest, dict) and isinstance(ingest.get("arrays"), dict):
        ingest["arrays"] = {k: str(folder / v) if isinstance(v, str) else v for k, v in ingest["arrays"].items()}
    likelihood: Any = values.get("likelihood")
    summary = likelihood.get("summary") if isinstance(likelihood, dict) else None
    if isinstance(summary, dict) and isinstance(summary.get("file"), str):
        summary["file"] = str((folder / summary["file"]).resolve())
    simulator = values.get("simulator")
    if isinstance(simulator, dict):
        if isinstance(simulator.get("path"), str):
            simulator["path"] = str((folder / simulator["path"]).resolve())
        if isinstance(simulator.get("options"), dict):
            simulator["options"] = _resolve_option(simulator["options"], folder)


def _resolve_file(text: str, folder: Path) -> str:
    """A file relative to the config, or in the cache: `fetch:NAME`."""
    return str(resolve_fetched(text) if text.startswith(PREFIX) else (folder / text).resolve())


def _resolve_option(option: Any, folder: Path) -> Any:
    """In options, a value under a key `observation`, `path` or `data` is a file, relative to the config, or fetched."""
    if isinstance(option, dict):
        return {
            k: _resolve_file(v, folder)
            if k in ("observation", "path", "data") and isinstance(v, str)
            else _resolve_option(v, folder)
            for k, v in option.items()
        }
    if isinstance(option, list):
        return [_resolve_option(v, folder) for v in option]
    return option


def json_schema() -> dict[str, Any]:
    """JSON schema of a case, for editors."""
    return CaseSettings.model_json_schema(by_alias=True)


def build_simulator(settings: SimulatorSettings) -> Simulator:
    """The simulator of a case.

    Raises:
        InputError: unknown simulator or option, or a value that it refuses.
    """
    from simulators.registry import create

    try:
        return create(settings.name, settings.options, path=settings.path)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"simulator: {error}") from error
    except Exception as error:
        if settings.path is None:
            raise
        raise InputError(
            f"simulator: {settings.path}: {type(error).__name__}: {error}"
        ) from error  # the user's own code
