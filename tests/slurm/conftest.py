"""A Slurm to test on: one that is there, or the one that the script named by ELBOSCOPE_SLURM_UP starts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.workflow.profile import shared_profiles


def slurm_answers() -> bool:
    if shutil.which("sinfo") is None:
        return False
    return subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=60, check=False).returncode == 0


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    if slurm_answers():
        yield
        return
    script = os.environ.get("ELBOSCOPE_SLURM_UP", "")
    if not script or not Path(script).is_file():
        pytest.skip("no Slurm here, and ELBOSCOPE_SLURM_UP does not name a script that starts one")
    size = {"ONEHOST_NODES": "3", "ONEHOST_CPUS": "4", "ONEHOST_MEM": "8000"}
    subprocess.run(["bash", script, "up"], env=os.environ | size, check=True, timeout=300)
    yield
    subprocess.run(["bash", script, "down"], check=True, timeout=60)


@pytest.fixture(scope="session")
def profile(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile `slurm`, looking at the queue every second."""
    text = shared_profiles()["slurm"].read_text()
    path = tmp_path_factory.mktemp("profile") / "slurm.yaml"
    path.write_text(text.replace("poll_seconds: 3", "poll_seconds: 1"))
    return path
