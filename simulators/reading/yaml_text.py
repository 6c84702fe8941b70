"""YAML that means what people read in it: numbers of YAML 1.2, every key once, aliases within bounds, plain data alone."""

from __future__ import annotations

import re
from typing import Any

import yaml

from simulators.errors import InputError
from simulators.reading.bounds import reason

LONGEST = 200_000
"""Characters; PyYAML takes 5 s for as many."""
MOST_NODES = 100_000
"""Keys and values after aliases and merge keys are written out."""
DEEPEST = 50
"""Blocks within blocks."""

INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:_[0-9]{3})+|0x[0-9a-fA-F]+)")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
READ_DIFFERENTLY = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?|[-+]?0b[01_]+")
"""0100 is 64 and 1:30 is 90 to YAML 1.1, 100 and text to YAML 1.2."""
TAG = "tag:yaml.org,2002:"


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """What plain words are: as PyYAML has it, but for numbers."""
    kept = {
        first: [(tag, pattern) for tag, pattern in entries if tag not in (f"{TAG}int", f"{TAG}float")]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    whole = [
        (tag, re.compile(f"(?:{pattern.pattern})$"))
        for tag, pattern in (("!unclear", READ_DIFFERENTLY), (f"{TAG}int", INTEGER), (f"{TAG}float", FLOAT))
    ]
    for first in "-+.0123456789":
        kept[first] = [*whole, *kept.get(first, [])]
    return kept


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()


def _unclear(loader: _Loader, node: yaml.ScalarNode) -> Any:
    raise yaml.constructor.ConstructorError(
        None, None, f"{node.value} is read differently by different programs: write it in decimal, or in quotes as text", node.start_mark
    )  # fmt: skip


_Loader.add_constructor("!unclear", _unclear)
for _kind in ("set", "binary", "omap", "pairs"):  # no settings: JSON has none of them, and a set no order
    _Loader.add_constructor(f"{TAG}{_kind}", yaml.SafeLoader.construct_undefined)
_Loader.add_constructor(f"{TAG}int", lambda _, node: int(node.value, 16 if "x" in node.value else 10))


def read_yaml(text: str, source: str) -> Any:
    """The plain data that `text` spells out; `source` stands at the start of an error.

    Raises:
        InputError: not YAML, a key given twice, a number that is read differently elsewhere, or aliases without end.
    """
    return _read(text, source, construct=True)


def check_yaml(text: str, source: str) -> None:
    """Raise InputError where `text`, which another library is going to read, is not YAML within the bounds of this one."""
    _read(text, source, construct=False)


def _read(text: str, source: str, *, construct: bool) -> Any:
    if len(text) > LONGEST:
        raise InputError(f"{source}: {len(text)} characters of YAML, over the bound of {LONGEST}")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node)
            return loader.construct_document(node) if construct else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(
            f"{source}: not valid YAML{where}: {getattr(error, 'problem', None) or reason(error)}"
        ) from None
    except RecursionError:
        raise InputError(f"{source}: not valid YAML: more than {DEEPEST} blocks within each other") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # what PyYAML lets through: a date such as 2020-99-99, an integer of 5,000 digits, !!bool x, !!int without a value
        said = f"a value that its tag does not allow, {error}" if isinstance(error, KeyError) else reason(error)
        raise InputError(f"{source}: not valid YAML: {said}") from None


def write_yaml(values: Any) -> str:
    """Plain data as text that `read_yaml` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def _check(root: yaml.Node) -> None:
    """Count what aliases and merge keys expand to, without expanding them; find keys that are given twice."""
    sizes: dict[int, int] = {}

    def measure(node: yaml.Node, within: tuple[int, ...]) -> int:
        if id(node) in within:
            raise _error("a block that contains itself", node)
        if id(node) in sizes:
            return sizes[id(node)]
        if len(within) > DEEPEST:
            raise _error(f"more than {DEEPEST} blocks within each other", node)
        inner = (*within, id(node))
        size = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            size += sum(measure(part, inner) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(measure(part, inner) for part in node.value)
        if size > MOST_NODES:
            raise _error(f"aliases that stand for more than {MOST_NODES} keys and values", node)
        sizes[id(node)] = size
        return size

    measure(root, ())


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if (key.tag, key.value) in seen:
            raise _error(f"the key {key.value!r} is given twice", key)
        seen.add((key.tag, key.value))


def _error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
