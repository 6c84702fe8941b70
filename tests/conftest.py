"""What all tests share: quiet threads, the real data of the reference folder, small trained runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import joblib
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run small networks: threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_processes_of_joblib() -> Iterator[None]:
    """The folds of a C2ST in threads: each process would import sklearn anew, for some 3 s of a core."""
    with joblib.parallel_config(backend="threading"):
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference data beside the repository; skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("reference data (../shared) are not here")
    return folder
