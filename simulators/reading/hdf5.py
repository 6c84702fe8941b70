"""HDF5 for reading: within bounds, from this file alone, and whatever h5py raises is one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
from h5py import h5s  # pyright: ignore[reportAttributeAccessIssue]

from simulators.errors import InputError
from simulators.reading.boundary import raise_about
from simulators.reading.bounds import NUMBER_BYTES, need_regular, need_room
from simulators.reading.heaps import check_heaps

DEEPEST = 8
"""Virtual datasets over virtual datasets that are followed."""
NOT_HDF5 = "not an HDF5 file, or a truncated one"


class Hdf5File(h5py.File):
    """A file open for reading; what its content makes go wrong in a `with` block is an InputError (`boundary`)."""

    def __exit__(self, *raised: Any) -> None:
        """Close it; what the block raised comes before what closing does."""
        path, error = Path(getattr(self, "read_from", self.filename)), raised[1]
        try:
            super().__exit__(*raised)
        except Exception as closing:  # damage that HDF5 meets only now
            if error is None:
                raise_about(path, closing)
                raise
        if error is not None:
            raise_about(path, error)


def open_hdf5(path: Path, *, chunk_cache_bytes: int | None = None, layout_only: bool = False) -> Hdf5File:
    """Open an HDF5 file for reading, without a file lock: no file of ours changes under its final name.

    Args:
        path: of the file.
        chunk_cache_bytes: of each dataset; None: HDF5's own choice.
        layout_only: attributes, names and shapes are looked at, and no numbers: what they ask for is not checked.

    Raises:
        InputError: missing, not HDF5, truncated, it unpacks to more than its size allows, or it takes its numbers from
            files that do not belong to it.
    """
    need_regular(path)
    load_filters()
    check_heaps(path)
    if not layout_only:
        _check(path)
    return _opened(path, chunk_cache_bytes)


def _opened(path: Path, chunk_cache_bytes: int | None) -> Hdf5File:
    """By its real path: beside that lie the files behind its virtual datasets."""
    real = path.resolve()
    try:
        try:
            file = Hdf5File(real, "r", locking=False, rdcc_nbytes=chunk_cache_bytes)
        except OSError:  # opened with a lock in this process already, by ArviZ say: HDF5 wants the same again
            file = Hdf5File(real, "r", rdcc_nbytes=chunk_cache_bytes)
    except Exception:  # a damaged superblock makes h5py raise OSError, RuntimeError, KeyError or ValueError
        raise InputError(f"{path}: {NOT_HDF5}") from None
    object.__setattr__(file, "read_from", str(path))
    return file


def load_filters() -> bool:
    """Let HDF5 read Zstd and Blosc2, if hdf5plugin is installed."""
    if find_spec("hdf5plugin") is None:
        return False
    import hdf5plugin  # noqa: F401  # registers its filters

    return True


# ---------------------------------------------------------------- what a file may ask for


@dataclass(frozen=True)
class Inventory:
    """What a file asks for.

    Attributes:
        declared: name, shape and bytes in memory of each dataset; and of each chunk, which is unpacked as a whole.
        shapes: of its datasets, by name.
        sources: what virtual datasets take from other files: file, dataset there, how far it has to reach (`_reach`), dataset here.
    """

    declared: tuple[tuple[str, tuple[int, ...], int], ...]
    chunks: tuple[tuple[str, tuple[int, ...], int], ...]
    shapes: Mapping[str, tuple[int, ...]]
    sources: tuple[tuple[str, str, tuple[int, ...], str], ...]


def _check(path: Path, *, depth: int = 0) -> Inventory:
    """Bounds of all datasets, of their chunks and of their sum; other files only as sources within the file's folder.

    HDF5 fills in zeros, without a word, where a source, or the dataset in it, is missing or too short.

    Raises:
        InputError: names the dataset.
    """
    if depth > DEEPEST:
        raise InputError(f"{path}: virtual datasets over more than {DEEPEST} layers of files")
    real = path.resolve()
    status = real.stat()
    asks = _inventory(real, status.st_mtime_ns, status.st_size, status.st_ino)
    sources = _sources(path, {file: here for file, _, _, here in reversed(asks.sources)})
    size = status.st_size + sum(source.stat().st_size for source in sources)
    for name, shape, count in asks.chunks:
        need_room(path, count, size, what=f"a chunk of {name} {shape}")
    for name, shape, count in asks.declared:
        need_room(path, count, size, what=f"{name} {shape}")
    need_room(path, sum(count for _, _, count in asks.declared), size, what="the sum of its datasets")
    shapes: dict[Path, Mapping[str, tuple[int, ...]]] = {}
    for source in sources:
        try:
            shapes[source] = _check(source, depth=depth + 1).shapes
        except InputError as error:
            raise InputError(f"{path}: damaged: it takes numbers from {error}") from None
    for file, there, reach, here in asks.sources:
        shape = shapes[(real.parent / file).resolve()].get(there, ())
        have = shape if len(shape) == len(reach) else (math.prod(shape) if shape else 0,)
        if len(have) != len(reach) or any(needed > length for needed, length in zip(reach, have, strict=True)):
            raise InputError(
                f"{path}: {here} takes numbers {reach} from {there} of {file}, which has {shape or 'none'}"
            )
    return asks


@lru_cache(maxsize=4096)
def _inventory(path: Path, modified_ns: int, size: int, inode: int) -> Inventory:
    """Read a file that has not changed since the last time only once.

    Raises:
        InputError: it takes numbers or links from elsewhere.
    """
    datasets: dict[str, h5py.Dataset] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            datasets[name] = item

    elsewhere: dict[str, str] = {}

    def follow(name: str, link: Any) -> None:
        if isinstance(link, h5py.ExternalLink):
            elsewhere[name] = str(link.filename)

    with _opened(path, None) as file:
        file.visititems_links(follow)
        for name, other in elsewhere.items():
            raise InputError(f"{path}: {name} is a link to another file, {other}: copy its data into this one")
        file.visititems(keep)
        sources: list[tuple[str, str, tuple[int, ...], str]] = []
        for name, dataset in datasets.items():
            if dataset.external:
                raise InputError(f"{path}: {name} has its numbers in another file, {dataset.external[0][0]}: copy them")
            for source in dataset.virtual_sources() if dataset.is_virtual else ():
                other = datasets.get(source.dset_name.strip("/"))
                if source.file_name == "." and (other is None or other.is_virtual):
                    raise InputError(f"{path}: {name} is a virtual dataset over another of this file: copy its numbers")
                if source.file_name != ".":
                    sources.append((source.file_name, source.dset_name.strip("/"), _reach(source), name))
        filled = {name: d for name, d in datasets.items() if d.size}
        return Inventory(
            tuple((n, d.shape, int(d.size or 0) * max(NUMBER_BYTES, d.dtype.itemsize)) for n, d in filled.items()),
            tuple((n, d.chunks, math.prod(d.chunks) * d.dtype.itemsize) for n, d in filled.items() if d.chunks),
            {n: d.shape for n, d in datasets.items() if d.shape is not None},
            tuple(sources),
        )


def _reach(source: Any) -> tuple[int, ...]:
    """How far a source has to reach in each dimension; of a whole one, how many numbers it has to have."""
    if source.src_space.get_select_type() == h5s.SEL_ALL:
        return (int(source.vspace.get_select_npoints()),)
    return tuple(int(last) + 1 for last in source.src_space.get_select_bounds()[1])


def _sources(path: Path, sources: Mapping[str, str]) -> list[Path]:
    """The files behind virtual datasets.

    Raises:
        InputError: a source is missing, no regular file, or outside the folder of the file.
    """
    folder = path.resolve().parent
    found = {text: (folder / text).resolve() for text in sorted(sources)}
    for text, source in found.items():
        if not source.is_relative_to(folder):
            raise InputError(
                f"{path}: {sources[text]} takes numbers from {text}, outside the folder of this file: copy them into it"
            )
    missing = [text for text, source in found.items() if not source.is_file()]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of its {len(found)} shards are missing, the first {Path(missing[0]).name}; "
            "run `elboscope simulate` again, or put the files that a virtual dataset names where it names them"
        )
    return list(found.values())
