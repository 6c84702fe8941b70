"""What is registered is what it says: checksums against copies, addresses pinned to a commit."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from pipeline.datasets.registry import DATASETS, RemoteFile, dataset
from pipeline.errors import InputError

FILES = [file for known in DATASETS.values() for file in known.files]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_checksums_are_those_of_the_files(file: RemoteFile, reference: Path) -> None:
    (copy,) = (reference / "observations").rglob(file.name)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == file.sha256


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_addresses_are_pinned_and_end_in_the_name(file: RemoteFile) -> None:
    first = file.addresses[0]
    assert re.match(r"https://raw\.githubusercontent\.com/[\w-]+/\w+/[0-9a-f]{40}/", first)
    assert all(a.startswith("https://") and a.endswith(f"/{file.name}") for a in file.addresses)


def test_an_unknown_name_is_one_line_with_the_nearest() -> None:
    with pytest.raises(InputError, match="no dataset 'pantheom'; did you mean 'pantheon'?"):
        dataset("pantheom")
    with pytest.raises(InputError, match="known: k2_24, "):
        dataset("x")
