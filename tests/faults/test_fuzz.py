"""The short form of the fuzzer; `make test-faults` runs the long one."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.faults import fuzz as module
from tests.faults.fuzz import fuzz
from tests.faults.mutate import changed_json, mutated
from tests.faults.targets import CORPUS, TARGETS, Target


def test_hostile_inputs_do_no_harm() -> None:
    outcome = fuzz(inputs=200, seed=3, minutes=4)
    assert dict(outcome.faults) == {}, outcome.examples
    assert sum(outcome.inputs.values()) == 200
    assert outcome.refused > 60  # or they would not be hostile


@pytest.mark.slow
def test_many_hostile_inputs_do_no_harm() -> None:
    outcome = fuzz(inputs=20_000, seed=4, minutes=20)
    assert dict(outcome.faults) == {}, outcome.examples


def test_every_target_reads_its_seeds() -> None:
    for name, target in TARGETS.items():
        assert list(CORPUS.glob(target.seeds)), name
    assert sum(p.stat().st_size for p in CORPUS.iterdir()) < 1_000_000


def crash(path: Path) -> None:
    os.abort()


def hang(path: Path) -> None:
    while True:
        pass


def fault(path: Path) -> None:
    raise KeyError(path)


def start(path: Path) -> None:
    os.system("true")


def look(path: Path) -> None:
    (path.parent.parent / "canary.txt").read_bytes()


def look_from_c(path: Path) -> None:
    import h5py

    h5py.is_hdf5(path.parent.parent / "canary.txt")


def run_it(path: Path) -> None:
    exec(compile((path.parent / "evil.py").read_text(), path.parent / "evil.py", "exec"), {})


def eat(path: Path) -> None:
    bytearray(200_000_000)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (crash, "crash"),
        (hang, "hang"),
        (fault, "traceback"),
        (start, "code run or started"),
        (run_it, "code run or started"),
        (look, "file outside opened"),
        (look_from_c, "file outside opened"),
        (eat, "memory"),
    ],
    ids=lambda v: v.__name__ if callable(v) else "",
)
def test_the_fuzzer_sees_it(read, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_S", 0.3 if kind == "hang" else 10.0)
    # a fork begins with the memory of its parent, but without the pages of files, some 200 MB of torch
    status = Path("/proc/self/status").read_text()
    now = int(status.partition("RssAnon:")[2].split()[0]) * 1024
    monkeypatch.setattr(module, "MEMORY", now + 100_000_000)
    monkeypatch.setitem(TARGETS, "bad", Target("lock.json", read))  # pyright: ignore[reportArgumentType]
    outcome = fuzz(inputs=1, seed=0, minutes=1, targets=["bad"])
    assert outcome.faults[kind] == 1, outcome


def test_inputs_are_a_function_of_seed_and_number(tmp_path: Path) -> None:
    first = module.make_input(7, 1, tmp_path, tuple(TARGETS))
    raw = first[1].read_bytes()
    again = module.make_input(7, 1, tmp_path, tuple(TARGETS))
    assert again == first
    assert again[1].read_bytes() == raw


def test_mutations_change_most_inputs() -> None:
    raw = (CORPUS / "case.yaml").read_bytes()
    changed = [mutated(raw, [raw], random.Random(i)) for i in range(100)]
    assert sum(c != raw for c in changed) > 80
    value = {"a": [1, {"b": 2}], "c": "d"}
    assert sum(json.dumps(changed_json(value, random.Random(i))) != json.dumps(value) for i in range(100)) > 80
