"""Inputs out of seeds: bytes, lines and tokens changed, and files rewritten with something else in one place."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.store.weights import HEADER_SUM, TENSORS_SUM, header_sum

CANARY = "../canary.txt"
"""A file outside the folder of the inputs, which nothing may open."""
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
TOKENS = (
    b"nan", b"-inf", b"1e999", b"-1", b"0", b"99999999999999999999", b"1_5", b"0x10", b"null", b"[]", b"{}", b"''", b'"',
    b"\x00", b"\xff\xfe", b"\x1b[31m", "é".encode(), b"\n", b"\r\n", b"\t", b",", b";", b":", b"- ", b"? ", b"&a ", b"*a",
    b"<<: *a", b"!!python/object/apply:os.system ['touch ../marker']", b"!!binary aGk=", b"!!set {a, b}", b"2020-99-99",
    b"[" * 200, b"{a: " * 50, b"mag(AB)", b"dex(cm/s2)", b"km/s", b"1" * 5000, CANARY.encode(), b"/etc/issue", b"fetch:x",
    b"__class__", b"evil.py", b"file:///etc/issue", b"http://127.0.0.1:9/", b"TSCAL1", b"TNULL1", b"NAXIS2", b"GZIP_1",
    b"a, b, a", b"$(touch ../marker)", b"`touch ../marker`",
)  # fmt: skip
VALUES: Sequence[Any] = (
    None, True, 0, -1, 1 << 70, 1.5, float("nan"), 1e308, "", "x", "nan", CANARY, "evil.py", [], {}, [1, 2], {"a": 1},
    ["a", None], {"path": "evil.py", "name": "Mine"}, "linear_gaussian", "radial_velocity", "x" * 10_000, "\x1b[2J\n",
)  # fmt: skip


def mutated(raw: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """One to four changes of bytes, lines or tokens; or parts of two seeds."""
    data = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(CHANGES)(data, others, chance)
    return bytes(data)


def _flip(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _byte(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.choice(INTERESTING)


def _number(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    """Eight bytes as HDF5 and safetensors keep lengths and offsets."""
    start = chance.randrange(len(data) + 1)
    value = chance.choice((0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, chance.randrange(1000)))
    width = chance.choice((1, 2, 4, 8))
    data[start : start + width] = struct.pack("<Q", value)[:width]


def _cut(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    start = chance.randrange(len(data) + 1)
    del data[start : start + chance.choice((1, 4, 64, len(data)))]


def _repeat(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    start, length = chance.randrange(len(data) + 1), chance.choice((1, 16, 256))
    data[start:start] = data[start : start + length] * chance.choice((1, 2, 20))


def _token(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    start = chance.randrange(len(data) + 1)
    data[start : start + chance.choice((0, 0, 1, 5))] = chance.choice(TOKENS)


def _word(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    """A whole word of a text becomes a token."""
    words = bytes(data).split(b" ")
    words[chance.randrange(len(words))] = chance.choice(TOKENS)
    data[:] = b" ".join(words)


def _line(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    """A line twice, gone, or in another's place."""
    lines = bytes(data).split(b"\n")
    i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
    if chance.random() < 0.5:
        lines[i] = lines[j]
    else:
        del lines[i]
    data[:] = b"\n".join(lines)


def _splice(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    other = chance.choice(others)
    data[chance.randrange(len(data) + 1) :] = other[chance.randrange(len(other) + 1) :]


Change = Callable[[bytearray, Sequence[bytes], random.Random], None]
CHANGES: Sequence[Change] = (_flip, _flip, _byte, _number, _cut, _repeat, _token, _token, _word, _line, _splice)


# ---------------------------------------------------------------- files that are still files of their kind


def changed_json(value: Any, chance: random.Random) -> Any:
    """The same value with something else, or nothing, somewhere in it."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: changed_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        index = chance.randrange(len(value))
        return [*value[:index], changed_json(value[index], chance), *value[index + 1 :]]
    return chance.choice(VALUES)


def changed_safetensors(raw: bytes, chance: random.Random) -> bytes:
    """Other metadata under digests that are right: what a hostile file has."""
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    metadata = dict(header["__metadata__"])
    key = chance.choice([k for k in metadata if k not in (TENSORS_SUM, HEADER_SUM)])
    try:
        metadata[key] = json.dumps(changed_json(json.loads(metadata[key]), chance))
    except ValueError:
        metadata[key] = str(chance.choice(VALUES))
    if chance.random() < 0.1:
        metadata.pop(key)
    if chance.random() < 0.3:
        name = chance.choice([k for k in header if k != "__metadata__"])
        header[name] = changed_json(header[name], chance)
        metadata = {k: v for k, v in metadata.items() if k not in (TENSORS_SUM, HEADER_SUM)}
    elif HEADER_SUM in metadata:
        metadata[HEADER_SUM] = header_sum(metadata)
    text = json.dumps(header | {"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def change_hdf5(path: Path, chance: random.Random) -> None:
    """One dataset, group or attribute becomes another; nothing is damaged, so that no checksum helps."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = chance.choice([*names, "/"])
        item: Any = file[name]
        if chance.random() < 0.5 or name == "/":
            key = chance.choice([*item.attrs, "unit", "settings", "parameters"])
            if chance.random() < 0.2:
                item.attrs.pop(key, None)
                return
            text = item.attrs.get(key)
            try:
                item.attrs[key] = json.dumps(changed_json(json.loads(text), chance))
            except (ValueError, TypeError):
                item.attrs[key] = _other(chance)
            return
        del file[name]
        kind = chance.random()
        if kind < 0.1:
            return
        if kind < 0.2:
            file[name] = chance.choice(
                (h5py.SoftLink("/"), h5py.SoftLink("/nowhere"), h5py.ExternalLink("../canary.h5", "/"))
            )
        elif kind < 0.3:
            file.create_group(name)
        elif kind < 0.4:
            layout = h5py.VirtualLayout((3,), "f8")
            layout[:] = h5py.VirtualSource(chance.choice(("../canary.h5", "gone.h5")), "x", (3,))
            file.create_virtual_dataset(name, layout)
        elif kind < 0.5:
            file.create_dataset(name, (3,), "u1", external=[(CANARY, 0, 3)])
        elif kind < 0.6:
            shape = chance.choice(((10**12,), (0,), (3, 0, 2), (1,) * 32, (2**40, 2**20)))
            file.create_dataset(
                name, shape, "f8", chunks=tuple(min(max(n, 1), 2) for n in shape), maxshape=(None,) * len(shape)
            )
        else:
            file[name] = _other(chance)


def _other(chance: random.Random) -> Any:
    return chance.choice(
        (
            np.float64(1.5), 3, "text", b"bytes", "", np.zeros(0), np.zeros((2, 3), "f4"), np.full(4, np.nan), True,
            np.array([b"a", b"\xff"]), ["a", "b"], np.zeros(2, dtype=[("a", "f8"), ("b", "i4")]), 1 + 2j,
            h5py.Empty("f8"), np.arange(3, dtype="u8") + 2**63, np.array([1, 2], dtype=np.complex64), "x" * 1000,
            '{"simulator": {"name": "Mine", "path": "evil.py"}}',
        )
    )  # fmt: skip
