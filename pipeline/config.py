"""Reading a case: YAML and overrides become checked settings, and a mistake one line that says what to change."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.datasets.cache import PREFIX, resolve_fetched
from pipeline.errors import InputError
from pipeline.settings import CaseSettings, SimulatorSettings

if typing.TYPE_CHECKING:
    from simulators.protocol import Simulator


def load_case(path: Path, overrides: Sequence[str] = ()) -> CaseSettings:
    """Read a YAML case and apply `key.subkey=value` overrides.

    Relative paths in the file are relative to the file's folder.

    Raises:
        InputError: one line that names the file, the key and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{path}: not valid YAML{where}: {problem}") from None
    except (ValueError, RecursionError) as error:  # a date such as 2020-99-99, an integer of 5,000 digits
        raise InputError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
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
        return CaseSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{source}: {_explain(first)}{more}") from None


def _explain(error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"] if "[" not in str(part)]  # pydantic adds the branch of a union
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
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    if isinstance(value, str):
        value = _number_or_text(value)
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


def _number_or_text(text: str) -> float | str:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


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
