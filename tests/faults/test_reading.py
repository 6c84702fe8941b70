"""The boundary to files: one line that names the file, and no fault of the program hidden in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from pipeline.cli import said_in_one_line
from pipeline.errors import LONGEST, InputError, one_line
from pipeline.store import json_object, open_hdf5, read_cost, read_record, reading
from simulators.registry import load_class_from_file

PATH = Path("some/file.h5")


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), ValueError("no"), TypeError("no"), AttributeError("no"), IndexError(3), OverflowError("big"),
     UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), EOFError(), RecursionError("deep"), OSError("read failed"),
     MemoryError()],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_what_content_raises_is_one_line_with_its_cause(error: Exception) -> None:
    with pytest.raises(InputError, match=r"^some/file\.h5: damaged") as raised, reading(PATH):
        raise error
    assert raised.value.__cause__ is error
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "error",
    [NameError("x"), ImportError("x"), AssertionError("x"), NotImplementedError("x"), RuntimeError("of torch"),
     PermissionError(13, "Permission denied", "other.h5"), InputError("said already"), KeyboardInterrupt()],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_what_is_no_files_fault_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, reading(PATH):
        raise error
    assert raised.value is error


def test_a_users_simulator_keeps_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f():\n    raise KeyError('mine')\nclass Mine: f = f\n")
    mine = load_class_from_file(tmp_path / "mine.py", "Mine")
    with pytest.raises(KeyError) as raised, reading(PATH):
        mine.f()
    assert "in f: KeyError: 'mine'" in (said_in_one_line(raised.value) or "")


@pytest.mark.parametrize(
    ("spoil", "use"),
    [
        (lambda f: f, lambda f: f["gone"][()]),
        (lambda f: f, lambda f: f.attrs["gone"]),
        (lambda f: f.create_group("a"), lambda f: f["a"][()]),
        (lambda f: f.create_dataset("a", data=1.5), lambda f: f["a"][()].decode()),
        (lambda f: f.create_dataset("a", data=[1.0]), lambda f: f["a"].asstr()[...]),
        (lambda f: f.create_dataset("a", data="x"), lambda f: float(f["a"][()])),
        (lambda f: f.create_dataset("a", data=np.zeros(3)), lambda f: f["a"][5]),
    ],
)
def test_an_hdf5_file_that_is_not_as_expected(tmp_path: Path, spoil, use) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        spoil(file)
    with pytest.raises(InputError, match=r"^.*a\.h5: damaged"), open_hdf5(path) as file:
        use(file)


def test_an_error_of_the_program_over_an_open_file_is_still_one(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    h5py.File(path, "w").close()
    with pytest.raises(NameError), open_hdf5(path):
        nobody  # noqa: B018, F821  # pyright: ignore[reportUndefinedVariable]


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", '{"a": NaN', "[" * 100_000, "1" * 5_000])
def test_json_that_is_no_object_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^here: expected a JSON object"):
        json_object(text, "here")


def test_a_record_that_is_absent_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs["settings"] = "[1, 2]"
    assert read_record(path, "inputs") == {}
    with pytest.raises(InputError, match=r"a\.h5: attribute 'settings': expected a JSON object, got list"):
        read_record(path, "settings")


@pytest.mark.parametrize(
    "text", ["{", '{"worked": 3}', '{"worked": [[0, 1]]}', '{"worked": [["a", "b"]], "cpu_time_s": 1}']
)
def test_a_cost_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cost.json"
    assert read_cost(path) is None
    path.write_text(text)
    with pytest.raises(InputError, match=r"cost\.json: damaged, or not written as expected"):
        read_cost(path)


def test_what_a_simulators_reader_says_of_its_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(InputError, match=r"a\.csv: no column time$"), reading(path):
        raise ValueError(f"{path}: no column time")


@pytest.mark.parametrize("text", ["a" * 10_000, "a\nb\r\n\x1b[2Jc\x00\x9b31m\u2028d\ud800", "é" * 600])
def test_error_lines_are_short_and_harmless(text: str) -> None:
    line = one_line(text)
    assert len(line) <= LONGEST
    assert line.isprintable()
    line.encode("utf-8")
    if len(text) < LONGEST:
        assert line == "a b [2Jc 31m d"


def test_a_long_line_keeps_its_file_and_what_to_do() -> None:
    line = one_line(f"/a/file.h5: {'x' * 5_000}: run `elboscope train` again")
    assert line.startswith("/a/file.h5: xxx")
    assert line.endswith("run `elboscope train` again")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("bad"), "bad"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(24, "Too many open files", "a.h5"), "a.h5: Too many open files"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "Resource temporarily unavailable"),
        (MemoryError(), "memory ran out"),
        (RuntimeError("can't start new thread"), "this process may start no more threads"),
        (OSError("of a library"), None),
        (KeyError("of ours"), None),
        (AttributeError("of ours"), None),
        (yaml.YAMLError("not read at a boundary"), None),
    ],
)
def test_the_last_line_says_what_a_user_can_change_and_hides_no_fault_of_ours(
    error: Exception, line: str | None
) -> None:
    found = said_in_one_line(error)
    assert (found is None) == (line is None)
    assert line is None or (found is not None and found.startswith(line))


def test_few_open_files_are_enough_for_an_observation(tmp_path: Path) -> None:
    """At 194e4d8: "has 0 shards, and this process may open 64 files at once"."""
    import resource

    import torch

    from pipeline.store import read_data, write_data
    from simulators.linear_gaussian import LinearGaussian

    path, observables = tmp_path / "a.h5", LinearGaussian().observables
    write_data(path, observables=observables, x={"x": torch.zeros(2, 5)})
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            code = 0 if len(read_data(path, observables=observables)) == 2 else 1
        except BaseException as error:
            sys.stderr.write(f"{error}\n")
            code = 2
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("features", [-1, 10**6, 2**40])
def test_a_model_that_asks_for_other_sizes_than_its_weights_have_takes_no_memory(tmp_path: Path, features: int) -> None:
    from pipeline.estimators.posterior import load_posterior
    from pipeline.store import read_safetensors, write_safetensors

    tensors, header = read_safetensors(Path(__file__).parent / "corpus" / "posterior.safetensors")
    path = tmp_path / "posterior.safetensors"
    write_safetensors(path, tensors, header | {"features": features})
    with pytest.raises(InputError, match="weights do not fit its settings"):
        load_posterior(path)
