"""HDF5 from this file alone, within bounds, its damage in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from simulators.errors import InputError
from simulators.reading.hdf5 import open_hdf5


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        open_hdf5(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
    return str(error.value)


def virtual(path: Path, source: str) -> Path:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(source, "y", (3,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("y", layout)
    return path


def external_storage(folder: Path) -> None:
    (folder / "secret").write_bytes(b"0123456789")
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("y", shape=(10,), dtype="u1", external=[(str(folder / "secret"), 0, 10)])


def external_link(folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as file:
        file["y"] = [1.0]
    with h5py.File(folder / "a.h5", "w") as file:
        file["y"] = h5py.ExternalLink("other.h5", "/y")


def outside(folder: Path) -> None:
    with h5py.File(folder.parent / "other.h5", "w") as file:
        file["y"] = np.ones(3)
    virtual(folder / "a.h5", "../other.h5")


def outside_through_a_link(folder: Path) -> None:
    with h5py.File(folder.parent / "other.h5", "w") as file:
        file["y"] = np.ones(3)
    (folder / "inner.h5").symlink_to(folder.parent / "other.h5")
    virtual(folder / "a.h5", "inner.h5")


def source_with_external_storage(folder: Path) -> None:
    external_storage(folder)
    (folder / "a.h5").rename(folder / "b.h5")
    virtual(folder / "a.h5", "b.h5")


def rows_that_are_not_there(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("y", shape=(10**12, 32), dtype="f8", chunks=(1000, 32))


def chunk_that_is_too_large(folder: Path) -> None:
    """240 MB have to be unpacked for one number."""
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("y", shape=(30_000_001,), dtype="u1", chunks=(30_000_000,), compression="gzip")
        file.create_dataset("z", shape=(1,), maxshape=(None,), dtype="f8", chunks=(30_000_000,), compression="gzip")


def many_that_are_too_large(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        for i in range(20):
            file.create_dataset(f"y{i}", shape=(500_000,), dtype="f8", chunks=(1000,))


def source_that_is_too_short(folder: Path) -> None:
    with h5py.File(folder / "b.h5", "w") as file:
        file["y"] = np.ones(2)
    virtual(folder / "a.h5", "b.h5")


def source_without_the_dataset(folder: Path) -> None:
    with h5py.File(folder / "b.h5", "w") as file:
        file["z"] = np.ones(3)
    virtual(folder / "a.h5", "b.h5")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (external_storage, "y has its numbers in another file"),
        (external_link, "y is a link to another file, other.h5"),
        (outside, "y takes numbers from ../other.h5, outside the folder of this file"),
        (outside_through_a_link, "y takes numbers from inner.h5, outside the folder of this file"),
        (source_with_external_storage, "y has its numbers in another file"),
        (lambda folder: virtual(folder / "a.h5", "gone.h5"), "1 of its 1 shards are missing, the first gone.h5"),
        (source_that_is_too_short, "y takes numbers (3,) from y of b.h5, which has (2,)"),
        (source_without_the_dataset, "y takes numbers (3,) from y of b.h5, which has none"),
        (lambda folder: virtual(folder / "a.h5", "."), "virtual dataset over another of this file"),  # HDF5 crashes
        (lambda folder: virtual(folder / "a.h5", "a.h5"), "more than 8 layers of files"),
        (rows_that_are_not_there, "y (1000000000000, 32) would take 2.56e+05 GB in memory"),
        (chunk_that_is_too_large, "a chunk of z (30000000,) would take 240 MB"),
        (many_that_are_too_large, "the sum of its datasets would take 80 MB"),
    ],
)
def test_what_a_file_may_not_ask_for(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    make(folder)
    assert said in refused(folder / "a.h5")


def test_a_source_in_the_folder_is_read_and_missed_when_it_goes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["y"] = [1.0, 2.0, 3.0]
    path = virtual(tmp_path / "a.h5", "b.h5")
    with open_hdf5(path) as file:
        assert file["y"][:].tolist() == [1, 2, 3]  # pyright: ignore
    (tmp_path / "b.h5").unlink()  # what was found in a.h5 is remembered, what lies beside it is not
    assert "1 of its 1 shards are missing" in refused(path)


def test_damage_is_one_line_and_other_faults_are_not_hidden(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("y", data=np.arange(1000.0), chunks=(1000,), fletcher32=True)
        start = data.id.get_chunk_info(0).byte_offset
    damaged = bytearray(path.read_bytes())
    damaged[start + 80] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="a.h5: damaged: a checksum or a read failed"), open_hdf5(path) as file:
        _ = file["y"][:]  # pyright: ignore
    with pytest.raises(InputError, match="damaged"), open_hdf5(path) as file:
        _ = file["z"]  # h5py says KeyError
    with pytest.raises(NameError, match="mine"), open_hdf5(path):
        raise NameError("mine")  # a KeyError may be about the content
    for cut in (10, 100, len(damaged) // 2):
        (tmp_path / "cut.h5").write_bytes(damaged[:cut])
        assert "not an HDF5 file, or a truncated one" in refused(tmp_path / "cut.h5")
