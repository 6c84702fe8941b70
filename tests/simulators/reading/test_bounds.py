"""Bytes and text within bounds: what unpacks without end, or never ends, is one line before it is in memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulators.errors import LONGEST, InputError
from simulators.reading import bounds
from simulators.reading.bounds import need_room, need_words, read_bytes, read_text, reading

OPENERS: dict[str, Callable[..., Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


@pytest.mark.parametrize("kind", OPENERS)
def test_compression_is_known_by_content_and_not_by_suffix(kind: str, tmp_path: Path) -> None:
    for name in (f"a.txt.{kind}", "a.txt"):
        with OPENERS[kind](tmp_path / name, "wb") as file:
            file.write(b"\xef\xbb\xbft,v\r\n1,2\r3,4\n")
        assert read_text(tmp_path / name) == "t,v\n1,2\n3,4\n"
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-6])
        with pytest.raises(InputError, match="not a whole compressed file"):
            read_bytes(tmp_path / name)


@pytest.mark.parametrize("kind", OPENERS)
def test_what_unpacks_without_end_is_refused_within_memory(kind: str, tmp_path: Path) -> None:
    """100 MB of zeros, in a file of kilobytes: no more than the bound of 64 MB is unpacked."""
    path = tmp_path / "bomb.csv"
    block = bytes(1 << 22)
    with OPENERS[kind](path, "wb", **({"preset": 0} if kind == "xz" else {"compresslevel": 1})) as file:
        for _ in range(25):
            file.write(block)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"unpacks to more than the bound of .* set ELBOSCOPE_MOST_GB"):
        read_bytes(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_the_bound_grows_with_the_file_or_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(2_000_000))
    need_room(path, 50 * 2_000_000)
    with pytest.raises(InputError, match=r"a.bin: it would take 100 MB in memory, over the bound of 100 MB"):
        need_room(path, 50 * 2_000_000 + 1)
    monkeypatch.setenv(bounds.MOST, "0.2")
    need_room(path, 150e6)
    with pytest.raises(InputError, match="over the bound of 200 MB"):
        need_room(path, 201e6)
    for wrong in ("much", "-1", "nan"):
        monkeypatch.setenv(bounds.MOST, wrong)
        with pytest.raises(InputError, match="ELBOSCOPE_MOST_GB: expected gigabytes"):
            need_room(path, 1)


def test_words_are_bounded_too(tmp_path: Path) -> None:
    """Four million words of two bytes pack into 8 kB, and Python takes 64 bytes for each."""
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress(b"1\n" * 4_000_000))
    with pytest.raises(InputError, match="its 4000000 words would take 256 MB"):
        need_words(path, read_text(path))


def test_what_does_not_end_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="not a regular file"):
        read_bytes(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="is a directory"):
        read_bytes(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_bytes(tmp_path / "none")


def test_an_error_is_one_line_that_begins_with_the_file_and_ends_with_the_advice(tmp_path: Path) -> None:
    error = InputError(f"{tmp_path}: got\n{'x' * 10_000}\nchange this")
    assert len(str(error)) <= LONGEST
    assert "\n" not in str(error)
    assert str(error).startswith(f"{tmp_path}: got")
    assert str(error).endswith("change this")
    with pytest.raises(InputError, match=r"a: not a thing \(division by zero\)"), reading(Path("a"), "a thing"):
        _ = 1 / 0
