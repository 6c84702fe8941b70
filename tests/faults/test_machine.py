"""The machine's faults, met by the commands themselves: no space, no inodes, no writing, few files, few threads, odd clocks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline import run_lock
from pipeline.own_process import own_command, own_sources
from pipeline.stages.verify import check_run
from pipeline.store import hdf5_content_digest, read_safetensors
from tests.faults.flips import SMALL
from tests.pipeline.stages.conftest import write_case

pytestmark = pytest.mark.slow

STAGES = ("simulate", "train", "infer")


def elboscope(
    *arguments: str | Path, cwd: Path, before: Callable[[], Any] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*own_command("pipeline.cli"), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | own_sources() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        preexec_fn=before,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that has failed as it should."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert len(line) < 500
    return line


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("machine"), SMALL)


@pytest.fixture(scope="module")
def whole(case: Path) -> Path:
    """The run as it should be."""
    folder = case.parent / "whole"
    for stage in STAGES:
        done = elboscope(stage, case, "--run-dir", folder, cwd=case.parent)
        assert done.returncode == 0, done.stderr
    return folder


def content(run: Path) -> dict[str, object]:
    tensors, header = read_safetensors(run / "posterior.safetensors")
    return {
        **{name: hdf5_content_digest(run / name) for name in ("simulations.h5", "inference.h5")},
        "weights": {k: v.numpy().tobytes() for k, v in tensors.items()},
        "header": {k: v for k, v in header.items() if k != "provenance"},
    }


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(
    ("tight", "wide"), [("size=300k", "size=100m"), ("nr_inodes=14", "nr_inodes=10000")], ids=["space", "inodes"]
)
def test_a_disk_that_is_full_stops_in_one_line_and_goes_on(
    tmp_path: Path, case: Path, whole: Path, tight: str, wide: str
) -> None:
    """The disk has room for the simulations, and then for nothing that follows; then it grows."""
    with mounted(tmp_path / "disk", tight) as disk:
        stopped = 0
        for stage in STAGES:
            done = elboscope(stage, case, "--run-dir", disk / "run", cwd=tmp_path)
            if done.returncode:
                stopped += 1
                assert "No space left on device" in refused(done)
                subprocess.run(["mount", "-o", f"remount,{wide}", disk], check=True)
                done = elboscope(stage, case, "--run-dir", disk / "run", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        assert stopped == 1
        assert check_run(disk / "run") == []
        assert content(disk / "run") == content(whole)


def test_a_read_only_run_is_read_and_not_written(tmp_path: Path, case: Path, whole: Path) -> None:
    with mounted(tmp_path / "disk", "size=100m") as disk:
        shutil.copytree(whole, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = elboscope("infer", case, "--run-dir", disk / "run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "up to date" in done.stderr
        assert elboscope("verify", disk / "run", cwd=tmp_path).returncode == 0
        assert elboscope("export", disk / "run/inference.h5", "--out", "a.csv", cwd=tmp_path).returncode == 0
        again = elboscope("infer", case, "--run-dir", disk / "run", "--set", "infer.draws=100", cwd=tmp_path)
        assert "Read-only file system" in refused(again)


def test_64_open_files_are_enough(tmp_path: Path, case: Path, whole: Path) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    for stage in STAGES:
        done = elboscope(stage, case, "--run-dir", tmp_path / "run", cwd=tmp_path, before=few)
        assert done.returncode == 0, done.stderr
    assert content(tmp_path / "run") == content(whole)


def test_a_run_of_a_clock_a_year_off_goes_on(tmp_path: Path, case: Path, whole: Path) -> None:
    """All files are a year old, or of next year: nothing is decided by time but the age of locks."""
    for years in (-1, 1):
        run = tmp_path / f"run{years}"
        shutil.copytree(whole, run)
        then = time.time() + years * 365 * 86_400
        for path in run.rglob("*"):
            os.utime(path, (then, then))
        done = elboscope("train", case, "--run-dir", run, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "up to date" in done.stderr
        (run / "inference.h5").unlink()
        assert elboscope("infer", case, "--run-dir", run, cwd=tmp_path).returncode == 0
        assert check_run(run) == []
        assert content(run) == content(whole)


def test_a_moved_run_goes_on(tmp_path: Path, case: Path, whole: Path) -> None:
    moved = tmp_path / "an other" / "place"
    shutil.copytree(whole, moved)
    done = elboscope("infer", case, "--run-dir", moved, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stderr
    assert elboscope("verify", moved, cwd=tmp_path).returncode == 0


def test_stale_foreign_and_senseless_locks_hold_nobody(tmp_path: Path, case: Path, whole: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    locks = run / run_lock.FOLDER
    locks.mkdir()
    own = asdict(run_lock._this_process("infer", ("infer",), ()))
    old = time.time() - run_lock.STALE_S - 1
    for number, changes in enumerate(
        ({"host": "node7", "machine": "node7"}, {"pid": 2**40}, {"pid": -1}, {"pid": "x"}, {"started": "1"}, {"pid": 0})
    ):
        path = locks / f"x-{number}.json"
        path.write_text(json.dumps(own | changes), encoding="utf-8")
        os.utime(path, (old, old))
    (locks / "empty.json").touch()
    os.mkfifo(locks / "pipe.json")
    (run / "inference.h5").unlink()
    done = elboscope("infer", case, "--run-dir", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    """The first worker of each shard ends itself; the simulations are those that one process makes."""
    (tmp_path / "mine.py").write_text(
        "import os\nfrom pathlib import Path\nfrom simulators.linear_gaussian import LinearGaussian\n\n"
        "class Mine(LinearGaussian):\n"
        "    def simulate(self, theta, context=None, *, generator):\n"
        "        mark = Path(__file__).with_name('died')\n"
        "        if 'DIES' in os.environ and not mark.exists():\n"
        "            mark.touch()\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return super().simulate(theta, context, generator=generator)\n"
    )
    config = write_case(tmp_path, SMALL | {"simulator": {"name": "Mine", "path": "mine.py"}})
    assert elboscope("simulate", config, "--run-dir", "one", "--workers", "1", cwd=tmp_path).returncode == 0

    os.environ["DIES"] = "1"
    try:
        done = elboscope("simulate", config, "--run-dir", "two", "--workers", "2", cwd=tmp_path)
    finally:
        del os.environ["DIES"]
    assert done.returncode == 0, done.stderr
    assert f"died (killed by {signal.SIGKILL.name})" in done.stderr
    assert hdf5_content_digest(tmp_path / "one/simulations.h5") == hdf5_content_digest(tmp_path / "two/simulations.h5")
