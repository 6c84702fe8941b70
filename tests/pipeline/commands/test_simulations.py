"""The commands in processes of their own: parts, a full disk, a read-only folder, two at once, and kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.kills import kill_all
from pipeline.commands.simulations import simulate_command
from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.run_lock import FOLDER as LOCKS
from pipeline.stages.parts import share_of
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from tests.pipeline.stages.conftest import write_case
from tests.pipeline.test_cli import ELBOSCOPE, ENVIRONMENT, elboscope, program

SMALL = {"simulate": {"count": 2_800, "held_out": 200, "shard": 1_000}}


def test_a_part_is_i_of_n() -> None:
    assert share_of("0/16") == (0, 16)
    assert share_of("15/16") == (15, 16)
    for wrong in ("16/16", "3", "-1/4", "a/b", "0/0", "1/"):
        with pytest.raises(InputError, match="expected I/N with I from 0 to N-1"):
            share_of(wrong)


def test_options_that_exclude_each_other_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exclude each other"):
        simulate_command(write_case(tmp_path), run_dir=tmp_path / "run", merge=True, add=5)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, for root."""
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    folder.mkdir()
    if subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode != 0:
        pytest.skip("this container may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_keeps_complete_shards(tmp_path: Path) -> None:
    case = write_case(tmp_path, SMALL)
    with mounted(tmp_path / "disk", "size=200k") as disk:
        done = program("simulate", case, "--run-dir", disk / "run", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        files = sorted(p.name for p in (disk / "run/simulations").iterdir())
        assert files in (["shard-00000.h5"], ["shard-00000.h5", "shard-00001.h5"])
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        done = elboscope("simulate", case, "--run-dir", disk / "run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert elboscope("verify", disk / "run", cwd=tmp_path).returncode == 0


def test_a_read_only_folder_is_one_line_and_what_is_done_is_said(tmp_path: Path) -> None:
    path = write_case(tmp_path, SMALL)
    with mounted(tmp_path / "disk", "size=10m") as disk:
        simulate(Run(load_case(path), disk / "run"))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = elboscope("simulate", path, "--run-dir", disk / "run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "up to date" in done.stderr
        done = elboscope("simulate", path, "--run-dir", disk / "run", "--set", "seed=9", cwd=tmp_path)
        assert done.returncode == 2
        assert "Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_second_of_two_is_told_and_stops_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    case = write_case(tmp_path, {"simulate": {"count": 20_000_000, "held_out": 1_000, "workers": 1}})
    command = [*ELBOSCOPE, "simulate", str(case), "--run-dir", "run"]
    first = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        while not list((tmp_path / "run" / LOCKS).glob("[!.]*.json")):
            assert first.poll() is None
            time.sleep(0.01)
        second = elboscope("simulate", case, "--run-dir", "run", cwd=tmp_path)
        assert second.returncode == 2
        assert f"simulate is running there, in process {first.pid} on " in second.stderr
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    few = ("--set", "simulate.count=2000", "--set", "simulate.shard=1000")
    third = elboscope("simulate", case, "--run-dir", "run", *few, cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    assert not (tmp_path / "run" / LOCKS).exists()
    assert not list((tmp_path / "run").rglob(".shard-*.tmp"))


@pytest.mark.slow
def test_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    tallies, differing = kill_all(tmp_path, kills=8, seed=3)
    assert sum(t.kills for t in tallies) >= 8
    assert sum(t.unreadable for t in tallies) == 0
    assert differing == []
