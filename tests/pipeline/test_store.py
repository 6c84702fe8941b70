"""Files are complete or absent, checked when read, and identified by their content."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from pipeline import store
from pipeline.cost import Cost
from pipeline.errors import InputError
from pipeline.schema import CONTENT_KEY, PROVENANCE
from simulators.protocol import Observable, Parameter

OBSERVABLES = (
    Observable("time", (4,), "d", role="context", label="time"),
    Observable("error", (4,), "m / s", role="context", dtype="float32"),
    Observable("velocity", (4,), "m / s"),
    Observable("counts", ()),
)
PARAMETERS = (Parameter("logk", Normal(0.0, 1.0)), Parameter("dvdt", Normal(0.0, 1.0), "m / (s d)"))
ROWS = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X = {
    "time": normal(ROWS, 4),
    "error": normal(ROWS, 4, seed=1).float(),
    "velocity": normal(ROWS, 4, seed=2),
    "counts": normal(ROWS, seed=3),
}
THETA = normal(ROWS, 2, seed=4)
IDS = tuple(f"stär {n}" for n in range(ROWS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A data file with everything that one may have."""
    file = tmp_path / "data.h5"
    store.write_data(
        file,
        observables=OBSERVABLES,
        x=X,
        parameters=PARAMETERS,
        theta=THETA,
        ids=IDS,
        attributes={"stage": "simulate"},
    )
    return file


def read(path: Path) -> store.DataSet:
    return store.read_data(path, observables=OBSERVABLES, parameters=PARAMETERS)


def refused(path: Path, function: Callable[[Path], Any] = read) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(InputError) as error:
        function(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def replace_dataset(path: Path, name: str, values: Any, **attributes: Any) -> None:
    """Put other values under a name, its attributes kept but for `attributes`; None removes one."""
    with h5py.File(path, "r+") as file:
        kept = dict(file[name].attrs) if name in file else {}
        if name in file:
            del file[name]
        dataset = file.create_dataset(name, data=values)
        dataset.attrs.update({k: v for k, v in (kept | attributes).items() if v is not None})


# ------------------------------------------------------------ complete or absent


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_new_file_appears_under_its_final_name_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "a.txt"
    with store.complete_or_absent(target) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert leftovers(target.parent) == ["a.txt"]


@pytest.mark.parametrize("exception", [RuntimeError("mine"), KeyboardInterrupt(), InputError("bad")])
def test_an_exception_leaves_the_old_file_and_no_temporary_one(exception: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted() -> None:
        with store.complete_or_absent(target) as temporary:
            temporary.write_text("half of the n")
            raise exception

    with pytest.raises(type(exception)):
        interrupted()
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_fills_up_at_the_last_moment_changes_nothing(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def full(*arguments: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, full)
    assert (
        refused(target, lambda p: store.write_text(p, "new"))
        == "could not be written (No space left on device); nothing was changed"
    )
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == ["a.txt"]


def test_contents_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (order.append("fsync"), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    store.write_text(tmp_path / "a.txt", "new")
    assert order == ["fsync", "replace"]


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: writes fail as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda p: store.write_text(p, "x" * 100_000),
    "safetensors": lambda p: store.write_safetensors(p, {"a": torch.zeros(100_000)}, {}),
    "hdf5": lambda p: store.write_hdf5(
        p, lambda file: file.update({"a": np.random.default_rng(0).random(100_000)}), {}
    ),
    "data": lambda p: store.write_data(p, observables=(Observable("a", (1000,)),), x={"a": torch.zeros(200, 1000)}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_changes_nothing(writer: str, tmp_path: Path) -> None:
    """HDF5 itself would end in a segmentation fault."""
    target = tmp_path / "a.bin"
    target.write_text("old")
    with small_disk(8192):
        message = refused(target, WRITERS[writer])
    assert message.startswith("could not be written (")
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == ["a.bin"]
    WRITERS[writer](target)  # with room it is written
    assert target.stat().st_size > 8192


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_is_a_file_is_one_line(writer: str, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    assert refused(tmp_path / "runs" / "a.bin", WRITERS[writer]).startswith("could not be written (")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_read_only_folder_is_one_line(writer: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert refused(tmp_path / "a.bin", WRITERS[writer]).startswith("could not be written (Permission denied)")
    finally:
        tmp_path.chmod(0o700)


# ------------------------------------------------------------ data files


def test_what_is_written_is_read_bit_for_bit(path: Path) -> None:
    data = read(path)
    assert list(data.x) == [o.name for o in OBSERVABLES]
    for o in OBSERVABLES:
        assert torch.equal(data.x[o.name], X[o.name])
        assert data.x[o.name].dtype == getattr(torch, o.dtype)
    assert data.theta is not None
    assert torch.equal(data.theta, THETA)
    assert data.ids == IDS
    assert len(data) == ROWS


def test_layout_is_that_of_the_schema(path: Path) -> None:
    with h5py.File(path) as file:
        assert set(file) == {"x", "theta", "id"}
        assert set(file["x"]) == set(X)
        for o in OBSERVABLES:
            dataset = file[f"x/{o.name}"]
            assert dataset.shape == (ROWS, *o.shape)
            assert dataset.dtype == o.dtype
            assert dict(dataset.attrs) == {"unit": o.unit, "role": o.role, "label": o.label}
            assert dataset.fletcher32
        assert list(file["theta"].attrs["names"]) == ["logk", "dvdt"]
        assert list(file["theta"].attrs["units"]) == ["", "m / (s d)"]
        assert file["theta"].fletcher32
        assert file["id"].asstr()[0] == "stär 0"
        assert (file.attrs["schema"], file.attrs["schema_version"], file.attrs["stage"]) == ("elboscope", 1, "simulate")


def test_observations_need_neither_theta_nor_identifiers(tmp_path: Path) -> None:
    file = tmp_path / "observed.h5"
    store.write_data(file, observables=OBSERVABLES, x=X)
    data = store.read_data(file, observables=OBSERVABLES)
    assert data.theta is None
    assert data.ids == ("0", "1", "2", "3", "4", "5")
    rows = data.rows(2, 4)
    assert rows.ids == ("2", "3")
    assert torch.equal(rows.x["velocity"], X["velocity"][2:4])
    assert rows.theta is None
    assert refused(file) == "/theta is missing"


def test_rows_of_a_data_set_stay_together(path: Path) -> None:
    rows = read(path).rows(1, 3)
    assert rows.theta is not None
    assert torch.equal(rows.theta, THETA[1:3])
    assert rows.ids == IDS[1:3]
    assert len(rows) == 2


def test_equal_content_is_equal_bytes(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.h5"
    store.write_data(
        again,
        observables=OBSERVABLES,
        x=X,
        parameters=PARAMETERS,
        theta=THETA,
        ids=IDS,
        attributes={"stage": "simulate"},
    )
    assert again.read_bytes() == path.read_bytes()


def test_large_datasets_are_chunked_by_rows(tmp_path: Path) -> None:
    file = tmp_path / "large.h5"
    store.write_data(file, observables=(Observable("a", (1000,)),), x={"a": torch.zeros(500, 1000)})
    with h5py.File(file) as opened:
        chunks = opened["x/a"].chunks
    assert chunks == (store.hdf5.CHUNK_BYTES // 8000, 1000)


def test_units_are_converted(path: Path) -> None:
    replace_dataset(path, "x/velocity", X["velocity"].numpy() / 1000, unit="km / s")
    replace_dataset(
        path, "x/error", X["error"].numpy() * 100, unit=np.bytes_(b"cm / s")
    )  # as Fortran and IDL write text
    replace_dataset(path, "theta", THETA.numpy(), units=["", "km / (s d)"])
    data = read(path)
    torch.testing.assert_close(data.x["velocity"], X["velocity"], rtol=1e-14, atol=0)
    torch.testing.assert_close(data.x["error"], X["error"])
    assert data.theta is not None
    torch.testing.assert_close(data.theta, THETA * torch.tensor([1.0, 1000.0], dtype=torch.float64))


def test_integers_and_single_precision_are_read(path: Path) -> None:
    replace_dataset(path, "x/counts", np.arange(ROWS, dtype=np.int16))
    replace_dataset(path, "x/velocity", X["velocity"].numpy().astype(np.float32))
    data = read(path)
    assert data.x["counts"].tolist() == list(range(ROWS))
    assert data.x["velocity"].dtype == torch.float64


def with_nan(name: str, value: float) -> np.ndarray:
    values = X[name].numpy().copy()
    values[2, 1] = value
    return values


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "wrong shape": (
        lambda p: replace_dataset(p, "x/velocity", np.zeros((ROWS, 3))),
        r"/x/velocity: expected shape (N, 4), got (6, 3)",
    ),
    "no rows": (lambda p: replace_dataset(p, "x/counts", np.float64(3)), r"/x/counts: expected shape (N), got ()"),
    "one dimension more": (
        lambda p: replace_dataset(p, "x/counts", np.zeros((ROWS, 1))),
        r"/x/counts: expected shape (N), got (6, 1)",
    ),
    "wrong unit": (
        lambda p: replace_dataset(p, "x/velocity", X["velocity"], unit="kg"),
        r"/x/velocity: unit 'kg' cannot be converted to 'm / s'",
    ),
    "no such unit": (
        lambda p: replace_dataset(p, "x/velocity", X["velocity"], unit="mps"),
        r"/x/velocity: 'mps' is not an astropy unit string",
    ),
    "no unit": (
        lambda p: replace_dataset(p, "x/time", X["time"], unit=None),
        r"/x/time: no attribute 'unit'; expected one, such as 'd'",
    ),
    "nan": (
        lambda p: replace_dataset(p, "x/velocity", with_nan("velocity", np.nan)),
        r"/x/velocity: 1 of 24 values are NaN or infinite",
    ),
    "infinity": (
        lambda p: replace_dataset(p, "x/error", with_nan("error", -np.inf)),
        r"/x/error: 1 of 24 values are NaN or infinite",
    ),
    "text for numbers": (
        lambda p: replace_dataset(p, "x/time", np.full((ROWS, 4), b"a")),
        r"/x/time: expected numbers, got |S1",
    ),
    "other parameters": (
        lambda p: replace_dataset(p, "theta", THETA, names=["logk", "jit"]),
        r"/theta has parameters ['logk', 'jit'], expected ['logk', 'dvdt']",
    ),
    "no parameter names": (
        lambda p: replace_dataset(p, "theta", THETA, names=None),
        r"/theta has parameters [], expected ['logk', 'dvdt']",
    ),
    "theta of another shape": (
        lambda p: replace_dataset(p, "theta", np.zeros((ROWS, 3))),
        r"/theta: expected shape (N, 2), got (6, 3)",
    ),
    "theta is nan": (
        lambda p: replace_dataset(p, "theta", np.full((ROWS, 2), np.nan)),
        r"/theta: 12 of 12 values are NaN or infinite",
    ),
    "theta of another unit": (
        lambda p: replace_dataset(p, "theta", THETA, units=["", "kg"]),
        r"/theta, dvdt: unit 'kg' cannot be converted",
    ),
    "theta without units": (
        lambda p: replace_dataset(p, "theta", THETA, units=None),
        r"/theta: expected the attribute 'units' with 2 units, got []",
    ),
    "rows that differ": (
        lambda p: replace_dataset(p, "x/time", np.zeros((ROWS + 1, 4))),
        r"datasets disagree on the number of rows: {'time': 7, 'error': 6",
    ),
    "theta of other rows": (
        lambda p: replace_dataset(p, "theta", np.zeros((4, 2))),
        r"datasets disagree on the number of rows: ",
    ),
    "other identifiers": (lambda p: replace_dataset(p, "id", np.array([b"a", b"b"])), r"/id has 2 rows, /x has 6"),
    "identifiers of two dimensions": (
        lambda p: replace_dataset(p, "id", np.zeros((ROWS, 2))),
        r"/id: expected one identifier a row",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line(name: str, path: Path) -> None:
    damage, message = WRONG[name]
    damage(path)
    assert refused(path).startswith(message)


@pytest.mark.parametrize("numbers", [np.arange(ROWS), np.arange(ROWS) / 2])
def test_identifiers_may_be_numbers(numbers: np.ndarray, path: Path) -> None:
    replace_dataset(path, "id", numbers)
    assert read(path).ids == tuple(str(n) for n in numbers)


def test_a_missing_dataset_is_named_with_what_is_there(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["x/velocity"]
    assert refused(path) == "/x/velocity is missing (it has: counts, error, time)"
    with h5py.File(path, "r+") as file:
        file["x"].create_group("velocity")
    assert refused(path).startswith("/x/velocity is missing")


def test_no_rows_at_all_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.h5"
    store.write_data(file, observables=OBSERVABLES, x={k: v[:0] for k, v in X.items()})
    assert refused(file, lambda p: store.read_data(p, observables=OBSERVABLES)) == "has no rows"


def test_a_foreign_hdf5_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "foreign.h5"
    with h5py.File(file, "w") as opened:
        opened["strain"] = np.zeros(5)
    assert refused(file) == "not an Elboscope data file (no group /x)"
    assert not store.is_data_file(file)
    with h5py.File(file, "r+") as opened:
        opened["x"] = np.zeros(5)
    assert refused(file) == "not an Elboscope data file (no group /x)"


def test_what_is_no_hdf5_file_is_refused(path: Path, tmp_path: Path) -> None:
    assert store.is_data_file(path)
    text = tmp_path / "velocities.csv"
    text.write_text("time,velocity\n1,2\n")
    assert refused(text) == "not an HDF5 file, or a truncated one"
    truncated = tmp_path / "truncated.h5"
    truncated.write_bytes(path.read_bytes()[:3000])
    assert "truncated" in refused(truncated)
    assert refused(tmp_path / "none.h5") == "no such file"
    assert refused(tmp_path) == "is a directory"
    assert not any(store.is_data_file(p) for p in (text, tmp_path / "none.h5", tmp_path))


@pytest.mark.parametrize("name", ["x/velocity", "x/counts", "theta"])
def test_a_flipped_byte_is_found(name: str, path: Path) -> None:
    with h5py.File(path) as file:
        offset = file[name].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 7] ^= 1
    path.write_bytes(content)
    assert refused(path).startswith("damaged: a checksum or a read failed (")


def virtual(folder: Path) -> Path:
    """Two shards and a file that only points at them."""
    for n in (0, 1):
        store.write_data(
            folder / f"shard-{n}.h5", observables=(Observable("a", (2,)),), x={"a": 1 + normal(3, 2, seed=n)}
        )
    layout = h5py.VirtualLayout((6, 2), "f8")
    for n in (0, 1):
        layout[3 * n : 3 * n + 3] = h5py.VirtualSource(f"shard-{n}.h5", "x/a", (3, 2))
    store.write_hdf5(
        folder / "all.h5", lambda file: file.create_virtual_dataset("x/a", layout).attrs.update(unit=""), {}
    )
    return folder / "all.h5"


def test_virtual_datasets_are_read_and_their_shards_checked(tmp_path: Path) -> None:
    """HDF5 itself reads zeros where a shard is missing."""
    file = virtual(tmp_path)

    def read_all(path: Path) -> store.DataSet:
        return store.read_data(path, observables=(Observable("a", (2,)),))

    torch.testing.assert_close(read_all(file).x["a"], 1 + torch.cat([normal(3, 2, seed=n) for n in (0, 1)]))
    shard = tmp_path / "shard-1.h5"
    content = shard.read_bytes()
    with h5py.File(shard) as opened:
        offset = opened["x/a"].id.get_chunk_info(0).byte_offset
    shard.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
    assert refused(file, read_all).startswith("damaged")
    shard.write_bytes(content[:1000])
    assert refused(file, read_all).startswith("damaged")
    shard.unlink()
    assert "shard-1.h5" in refused(file, read_all)


def test_failed_rows_may_be_nan_and_no_others(tmp_path: Path) -> None:
    file, observables = tmp_path / "failed.h5", (Observable("a", (2,)),)
    a = torch.arange(8, dtype=torch.float64).reshape(4, 2)
    a[1] = torch.nan
    codes = torch.tensor([0, 3, 0, 0], dtype=torch.uint8)

    def write(codes: Tensor | None) -> store.DataSet:
        store.write_data(file, observables=observables, x={"a": a}, failed=codes, failures={1: "time limit"})
        return store.read_data(file, observables=observables)

    data = write(codes)
    assert data.failed is not None
    assert data.failed.tolist() == [0, 3, 0, 0]
    assert data.without_failed().ids == ("0", "2", "3")
    assert torch.equal(data.without_failed().x["a"], a[[0, 2, 3]])
    part = store.read_data(file, observables=observables, rows=slice(1, 3))
    assert part.failed is not None
    assert part.failed.tolist() == [3, 0]
    assert data.rows(2, 4).without_failed().ids == ("2", "3")
    for wrong in (codes.flip(0), None):
        with pytest.raises(InputError, match="2 of 8 values are NaN or infinite"):
            write(wrong)


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_compression_is_lossless_and_checked(compression: str, tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin")
    file, observables = tmp_path / "small.h5", (Observable("a", (500,)),)
    a = torch.arange(20_000, dtype=torch.float64).reshape(40, 500)
    store.write_data(file, observables=observables, x={"a": a}, compression=compression)
    assert torch.equal(store.read_data(file, observables=observables).x["a"], a)
    assert file.stat().st_size < a.numel() * 8 / 2
    with h5py.File(file) as opened:
        chunk = opened["x/a"].id.get_chunk_info(0)
    raw = bytearray(file.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(InputError, match="damaged"):
        store.read_data(file, observables=observables)


def test_files_are_read_without_a_lock(path: Path) -> None:
    """Lustre often has no flock, and HDF5 then refuses to open a file."""
    with path.open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r")
        read(path)


# ------------------------------------------------------------ datasets of results


@pytest.mark.parametrize(
    ("values", "checked"), [(np.zeros((5, 3)), True), (np.arange(4), True), (3.5, False), (np.zeros((0, 3)), False)]
)
def test_datasets_carry_a_checksum_and_their_attributes(values: Any, checked: bool, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = store.create_dataset(file, "a", values, unit="m")
        assert dataset.fletcher32 is checked
        assert dataset.attrs["unit"] == "m"
        np.testing.assert_array_equal(dataset[()], values)


def test_text_is_utf8(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        assert list(store.create_dataset(file, "a", ["α", "b"]).asstr()[:]) == ["α", "b"]
        assert list(store.create_dataset(file, "b", np.array(["α", "b"])).asstr()[:]) == ["α", "b"]


# ------------------------------------------------------------ digests and keys


def change_attribute(path: Path, name: str, value: Any, where: str = "/") -> None:
    with h5py.File(path, "r+") as file:
        file[where].attrs[name] = value


def test_content_digest_ignores_provenance_alone(path: Path) -> None:
    digest = store.hdf5_content_digest(path)
    change_attribute(path, PROVENANCE, "tuesday")
    assert store.hdf5_content_digest(path) == digest
    change_attribute(path, PROVENANCE, "wednesday")
    assert store.hdf5_content_digest(path) == digest


CHANGES: dict[str, Callable[[Path], None]] = {
    "one value by one bit": lambda p: replace_dataset(p, "x/velocity", np.nextafter(X["velocity"].numpy(), np.inf)),
    "an identifier": lambda p: replace_dataset(p, "id", [*IDS[:-1], "other"]),
    "the type of the same bytes": lambda p: replace_dataset(p, "x/time", X["time"].numpy().view(np.int64)),
    "shape": lambda p: replace_dataset(p, "x/counts", X["counts"].numpy()[:, None]),
    "a unit": lambda p: change_attribute(p, "unit", "km / s", "x/velocity"),
    "an attribute more": lambda p: change_attribute(p, "note", "", "x"),
    "settings": lambda p: change_attribute(p, "settings", "{}"),
    "the key": lambda p: change_attribute(p, CONTENT_KEY, "abc"),
    "a number": lambda p: change_attribute(p, "schema_version", 2),
    "parameter names": lambda p: change_attribute(p, "names", ["a", "b"], "theta"),
    "a dataset more": lambda p: replace_dataset(p, "x/more", np.zeros(2)),
    "a group more": lambda p: h5py.File(p, "r+").create_group("empty").file.close(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_content_digest_sees_every_change(name: str, path: Path) -> None:
    digest = store.hdf5_content_digest(path)
    CHANGES[name](path)
    assert store.hdf5_content_digest(path) != digest


def test_content_digest_does_not_depend_on_layout_or_order(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(path) as file, h5py.File(other, "w") as copy:
        for name in ("theta", "id"):
            copy.create_dataset(name, data=file[name][()], dtype=file[name].dtype).attrs.update(file[name].attrs)
        for name in reversed(list(file["x"])):
            copy.create_dataset(f"x/{name}", data=file["x"][name][()]).attrs.update(file["x"][name].attrs)
        copy.attrs.update(file.attrs)
    assert store.hdf5_content_digest(other) == store.hdf5_content_digest(path)


KEY: dict[str, Any] = {
    "stage": "train",
    "stage_version": 1,
    "settings": {"a": 1, "b": {"c": [1, 2.5]}},
    "inputs": {"data": "d1"},
}


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "infer"},
        {"stage_version": 2},
        {"settings": {"a": 1, "b": {"c": [1, 2.5000001]}}},
        {"settings": {"a": 1, "b": {"c": [2.5, 1]}}},
        {"settings": {"a": True, "b": {"c": [1, 2.5]}}},
        {"settings": {"a": 1}},
        {"inputs": {"data": "d2"}},
        {"inputs": {"other": "d1"}},
        {"inputs": {}},
    ],
)
def test_content_key_changes_with_everything_that_matters(change: dict[str, Any]) -> None:
    assert store.content_key(**(KEY | change)) != store.content_key(**KEY)


def test_content_key_is_what_it_was_and_does_not_depend_on_order() -> None:
    """Another value makes every stage of every run start again."""
    shuffled = KEY | {"settings": {"b": {"c": [1, 2.5]}, "a": 1}}
    assert (
        store.content_key(**shuffled)
        == store.content_key(**KEY)
        == "41a07f4be43ef01e650cb814b95053a95fc3eba70035ad7a3ee15767457c5cb7"
    )


def test_keys_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    attributes = store.stamp(stage="train", key="k123", settings={"seed": 1})
    files = {suffix: tmp_path / f"a{suffix}" for suffix in (".h5", ".safetensors", ".html")}
    store.write_hdf5(files[".h5"], lambda file: None, attributes)
    store.write_safetensors(files[".safetensors"], {"a": torch.ones(2)}, attributes)
    store.write_text(files[".html"], f'<html><head><meta name="{CONTENT_KEY}" content="k123"></head></html>')
    for file in files.values():
        assert store.read_key(file) == store.input_digest(file) == "k123"


def test_foreign_files_have_no_key_and_are_known_by_their_bytes(path: Path, tmp_path: Path) -> None:
    for suffix in (".h5", ".safetensors", ".html", ".csv"):
        file = tmp_path / f"foreign{suffix}"
        file.write_bytes(b"\xff\x00 nothing of ours")
        assert store.read_key(file) is None
        assert store.input_digest(file) == store.file_sha256(file)
    assert store.read_key(tmp_path / "none.h5") is None
    assert store.read_key(path) is None  # ours, but no stage wrote it
    assert (
        store.file_sha256(tmp_path / "foreign.csv")
        == "a0ff5586fdc5f793d29b2d76c92f303832ec0c04c2c27141a04b4c90139ace7b"
    )
    assert "o such file" in refused(tmp_path / "none.csv", store.file_sha256)


def test_stamp_says_who_made_a_file_of_what() -> None:
    attributes = store.stamp(stage="infer", key="k", settings={"b": 1, "a": 2}, cost=Cost(((0.0, 2.5),), 4.0))
    assert (attributes["schema"], attributes["stage"], attributes["content_key"]) == ("elboscope", "infer", "k")
    assert attributes["settings"] == '{"a": 2, "b": 1}'
    made = json.loads(str(attributes[PROVENANCE]))
    assert (made["wall_time_s"], made["cpu_time_s"]) == (2.5, 4.0)
    assert {"created", "host", "threads", "command", "versions"} <= set(made)
    assert made["versions"]["torch"] == torch.__version__
    extra = json.loads(store.provenance(extra={"walkers": 4}))
    assert extra["walkers"] == 4
    assert "wall_time_s" not in extra


# ------------------------------------------------------------ safetensors


def test_safetensors_keep_bits_dtypes_and_metadata(tmp_path: Path) -> None:
    tensors = {
        "double": normal(3, 4),
        "single": normal(5).float(),
        "integers": torch.arange(6),
        "view": normal(4, 4).T[1:],
        "parameter": torch.nn.Parameter(normal(2)),
    }
    file = tmp_path / "a.safetensors"
    store.write_safetensors(file, tensors, {"schema": "elboscope", "features": 12})
    again, header = store.read_safetensors(file)
    assert header == {"schema": "elboscope", "features": "12"} == store.read_safetensors_header(file)
    assert again.keys() == tensors.keys()
    for name, values in tensors.items():
        assert torch.equal(again[name], values)
        assert again[name].dtype == values.dtype
        assert not again[name].requires_grad


def test_the_header_is_json_at_the_start_of_the_file(tmp_path: Path) -> None:
    """Nothing to unpickle: eight bytes of length, then JSON, then numbers."""
    file = tmp_path / "a.safetensors"
    store.write_safetensors(file, {"a": torch.zeros(2, dtype=torch.float64)}, {"stage": "train"})
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    sums = {name: header["__metadata__"].pop(name) for name in ("sha256_tensors", "sha256_header")}
    assert all(len(s) == 64 for s in sums.values())
    assert header == {
        "__metadata__": {"stage": "train"},
        "a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]},
    }
    assert content[8 + length :] == bytes(16)


def test_what_is_no_safetensors_file_is_one_line(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    store.write_safetensors(file, {"a": torch.zeros(1000)}, {})
    assert store.read_safetensors_header(file) == {}
    file.write_bytes(file.read_bytes()[:-5])
    for function in (store.read_safetensors_header, store.read_safetensors):
        assert refused(file, function).startswith("not a safetensors file, or a truncated one")
        assert refused(path, function).startswith("not a safetensors file, or a truncated one")
        assert refused(tmp_path / "none.safetensors", function) == "no such file"


MASKED = (
    Observable("time", (4,), "d", role="context"),
    Observable("present", (4,), role="context"),
    Observable("flux", (4,), "mJy", against="time", present="present"),
)


def test_absent_slots_have_one_value_whatever_the_file_has(tmp_path: Path) -> None:
    """What `ingest`, a simulator and a hand-made file leave there: a neighbour, zero, NaN."""
    present = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]])
    read_ones = []
    for i, filler in enumerate((46.0, 0.0, float("nan"))):
        x = {
            "time": torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2),
            "present": present,
            "flux": torch.tensor([[5.0, 6.0, 7.0, 8.0]] * 2),
        }
        x = {k: v if k == "present" else torch.where(present > 0, v, filler) for k, v in x.items()}
        store.write_data(tmp_path / f"{i}.h5", observables=MASKED, x=x)
        read_ones.append(store.read_data(tmp_path / f"{i}.h5", observables=MASKED).x)
    assert all(torch.equal(one[k], read_ones[0][k]) for one in read_ones for k in one)
    assert read_ones[0]["flux"].tolist() == [[5, 0, 7, 0], [0, 6, 7, 8]]
    assert read_ones[0]["time"].tolist() == [[1, 1, 3, 1], [2, 2, 3, 4]]


def test_missing_numbers_that_no_mask_covers_are_refused(tmp_path: Path) -> None:
    x = {"time": torch.ones(1, 4), "present": torch.ones(1, 4), "flux": torch.full((1, 4), torch.nan)}
    store.write_data(tmp_path / "a.h5", observables=MASKED, x=x)
    with pytest.raises(InputError, match=r"/x/flux: 4 of 4 values are NaN or infinite"):
        store.read_data(tmp_path / "a.h5", observables=MASKED)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool, np.float32, ">f8"])
def test_numbers_of_any_real_type_are_read(dtype: str, tmp_path: Path) -> None:
    observable = Observable("n", (2,))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x/n", data=np.array([[1, 0]], dtype=dtype)).attrs["unit"] = ""
    x = store.read_data(tmp_path / "a.h5", observables=[observable]).x["n"]
    assert x.dtype == torch.float64
    assert x.tolist() == [[1, 0]]


def test_complex_numbers_are_refused_and_not_halved(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x/n", data=np.array([[1 + 2j, 0]])).attrs["unit"] = ""
    with pytest.raises(InputError, match=r"/x/n is complex, expected real numbers: store real and imaginary part"):
        store.read_data(tmp_path / "a.h5", observables=[Observable("n", (2,))])
