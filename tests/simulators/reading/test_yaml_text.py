"""YAML that means what people read in it."""

from __future__ import annotations

import math
import time

import pytest

from simulators.errors import InputError
from simulators.reading.yaml_text import LONGEST, check_yaml, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e5", 1e5),
        ("1e-3", 1e-3),
        ("-2.5E2", -250.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("00.5", 0.5),
        ("12", 12),
        ("-7", -7),
        ("0", 0),
        ("0x1F", 31),
        ("1_000_000", 1_000_000),
        ("1_5", "1_5"),
        (".inf", math.inf),
        ("true", True),
        ("null", None),
        ("'0100'", "0100"),
        ("1:30:x", "1:30:x"),
        ("K2-24", "K2-24"),
    ],
)
def test_plain_words(text: str, value: object) -> None:
    got = read_yaml(f"a: {text}", "f")
    assert got == {"a": value}
    assert type(got["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 0100", "line 1, column 4: 0100 is read differently by different programs"),
        ("a: 007", "007 is read differently"),
        ("a: 1:30", "1:30 is read differently"),
        ("a: 12:30:45.5", "12:30:45.5 is read differently"),
        ("a: 0b11", "0b11 is read differently"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is given twice"),
        ("a: {b: 1, c: {d: 1, d: 2}}", "the key 'd' is given twice"),
        ("a: &x {b: *x}", "a block that contains itself"),
        ("a: !!bool x", "a value that its tag does not allow, 'x'"),
        ("a: !!int ''", "invalid literal for int"),
        ("a: !!set {x, y}", "could not determine a constructor"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: 2020-99-99", "month must be in 1..12"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("[" * 5000, "more than 50 blocks within each other"),
        ("a: " + "[" * 60 + "]" * 60, "more than 50 blocks within each other"),
        ("x" * (LONGEST + 1), "characters of YAML, over the bound"),
        ("a: [1", "not valid YAML at line 1"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        read_yaml(text, "f.yaml")
    assert str(error.value).startswith("f.yaml: ")
    assert said in str(error.value)


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_and_merge_keys_are_counted_before_they_are_written_out(merge: bool) -> None:
    lines = ["x0: &x0 {a: 1}" if merge else "x0: &x0 [1, 1]"]
    for i in range(1, 30):
        parts = ", ".join([f"*x{i - 1}"] * 20)
        lines.append(f"x{i}: &x{i} {{<<: [{parts}]}}" if merge else f"x{i}: &x{i} [{parts}]")
    started = time.process_time()
    for reader in (read_yaml, check_yaml):
        with pytest.raises(InputError, match="aliases that stand for more than 100000 keys and values"):
            reader("\n".join(lines), "f")
    assert time.process_time() - started < 2
    assert read_yaml("a: &x {b: 1}\nc: {<<: *x, b: 2}", "f")["c"] == {"b": 2}


def test_what_is_written_is_read_back() -> None:
    values = {
        "name": "1e5",
        "a": "0100",
        "b": "1:30",
        "c": 1e-5,
        "d": "12",
        "e": True,
        "f": "yes",
        "g": [1.5, None],
        "h": "1_000",
    }
    assert read_yaml(write_yaml(values), "f") == values
