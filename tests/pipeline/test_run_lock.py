"""Who is writing in a run folder: told to the second process, and forgotten when the first is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline import run_lock as module
from pipeline.errors import InputError
from pipeline.run_lock import FOLDER, Holder, run_lock


def announced(folder: Path) -> list[Path]:
    return list((folder / FOLDER).glob("*.json"))


def other(folder: Path, **changes: object) -> Path:
    """Another holder of `train`, as its file tells."""
    own = module._this_process("train", ("train",), ("simulate",))
    holder = replace(own, **{"pid": os.getppid(), "started": module._started(os.getppid()) or "", **changes})
    path = folder / FOLDER / f"{holder.host}-{holder.pid}-0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(holder)), encoding="utf-8")
    return path


def hold(folder: Path, stage: str = "train", reads: tuple[str, ...] = ()) -> None:
    with run_lock(folder, stage, writes=(stage,), reads=reads):
        assert len(announced(folder)) >= 1


def test_the_second_is_told_who_where_and_since_when(tmp_path: Path) -> None:
    path = other(tmp_path, host="node7", since="2026-01-02 03:04:05 UTC")
    with pytest.raises(
        InputError, match=rf"train is running there, in process {os.getppid()} on node7 since 2026-01-02 03:04:05"
    ):
        hold(tmp_path)
    assert announced(tmp_path) == [path]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    hold(tmp_path)
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ((("train",), ()), (("train",), ()), True),
        ((("train",), ()), (("infer",), ("train",)), True),
        ((("train",), ("simulate",)), (("simulate",), ()), True),
        ((("validate",), ("train",)), (("infer",), ("train",)), False),
        (((), ("simulate",)), ((), ("simulate",)), False),
        (((), ("simulate",)), (("simulate",), ()), True),
    ],
)
def test_writers_exclude_writers_and_readers_and_readers_nobody(first, second, clash: bool) -> None:
    one, two = (Holder("s", *sets, "h", "m", 1, "", "") for sets in (first, second))
    assert one.excludes(two) == two.excludes(one) == clash


def test_a_dead_process_of_this_host_is_taken_over(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    other(tmp_path, pid=ended.pid)
    hold(tmp_path)


def test_a_process_id_that_was_used_again_is_another_process(tmp_path: Path) -> None:
    other(tmp_path, started="1")
    hold(tmp_path)


def test_another_host_that_has_fallen_silent_is_taken_over(tmp_path: Path) -> None:
    path = other(tmp_path, host="node7", machine="node7")
    with pytest.raises(InputError, match="node7"):
        hold(tmp_path)
    old = path.stat().st_mtime - module.STALE_S - 1
    os.utime(path, (old, old))
    hold(tmp_path)
    assert not path.exists()


def test_another_host_that_misses_beats_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = other(tmp_path, host="node7", machine="node7")
    age = 4 * module.BEAT_S

    def older(seconds: float) -> None:
        nonlocal age
        age += 60
        os.utime(path, (path.stat().st_mtime - age, path.stat().st_mtime - age))

    monkeypatch.setattr(module.time, "sleep", older)
    os.utime(path, (path.stat().st_mtime - age, path.stat().st_mtime - age))
    hold(tmp_path)
    assert "train on node7 has not been heard of for 40 s" in capsys.readouterr().err


@pytest.mark.slow
def test_two_that_start_at_once_never_both_hold(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.run_lock import run_lock; folder = Path(sys.argv[1])\n"
        "while not (folder / 'go').exists(): time.sleep(0.001)\n"
        "try:\n"
        "    with run_lock(folder, 'train', writes=('train',)):\n"
        "        (folder / 'in').mkdir(); time.sleep(1.5); (folder / 'in').rmdir()\n"
        "except ValueError: sys.exit(2)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    (tmp_path / "go").touch()
    codes = sorted(p.wait(60) for p in processes)
    assert codes in ([0, 2], [0, 0])  # never 1, which is mkdir of what is there


def test_a_file_that_is_none_of_ours_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "what.json").write_text("{}", encoding="utf-8")
    hold(tmp_path)


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path: Path) -> None:
    (tmp_path / FOLDER).touch()  # a file in its place: nothing can be announced
    with run_lock(tmp_path, "report", writes=("report",)):
        pass


@pytest.mark.parametrize("pid", [0, -1, -(2**40), 2**31, 2**63, 2**200, 1.5, True, None, "1", [1], {"a": 1}])
@pytest.mark.parametrize("same_machine", [True, False])
def test_a_lock_with_an_odd_process_id_does_not_matter(tmp_path: Path, pid: object, same_machine: bool) -> None:
    """-1 is every process, 0 this group, and 2**63 no number for kill(2)."""
    path = other(tmp_path)
    values = json.loads(path.read_text()) | {"pid": pid} | ({} if same_machine else {"machine": "node7"})
    path.write_text(json.dumps(values), encoding="utf-8")
    hold(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"stage": 3}, {"writes": [[1]]}, {"host": None}, {"since": {}}, {"writes": "train"}, {"more": 1}]
)
def test_a_lock_with_other_types_does_not_matter(tmp_path: Path, changes: dict[str, object]) -> None:
    path = other(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")
    hold(tmp_path)


def test_a_pipe_or_a_huge_file_among_locks_is_not_read(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    os.mkfifo(tmp_path / FOLDER / "a.json")
    with (tmp_path / FOLDER / "b.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole
    hold(tmp_path)


def watched(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let time pass by sleeping alone, with the lock's time a year ahead."""
    slept: list[float] = []
    ahead = 365 * 86_400.0

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now = sum(slept)

        def shifted(own: Path, times: object = None) -> None:
            utime(own, (started + now,) * 2)

        monkeypatch.setattr(module.os, "utime", shifted)

    utime, started = os.utime, path.stat().st_mtime
    utime(path, (started + ahead,) * 2)
    monkeypatch.setattr(module.time, "sleep", sleep)
    return slept


def test_a_dead_hosts_lock_from_a_clock_a_year_ahead_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 194e4d8 it held for a year."""
    path = other(tmp_path, host="node7", machine="node7")
    slept = watched(path, monkeypatch)
    hold(tmp_path)
    assert module.STALE_S <= sum(slept) < module.STALE_S + 3 * module.BEAT_S
    assert "train on node7 is ahead of the clock here; taken over after 120 s" in capsys.readouterr().err
    assert not path.exists()


def test_a_living_hosts_lock_from_a_clock_a_year_ahead_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = other(tmp_path, host="node7", machine="node7")
    real = os.utime
    slept = watched(path, monkeypatch)
    outer = module.time.sleep

    def sleep(seconds: float) -> None:
        outer(seconds)
        real(path, (path.stat().st_mtime + seconds,) * 2)

    monkeypatch.setattr(module.time, "sleep", sleep)
    with pytest.raises(InputError, match="train is running there, in process .* on node7"):
        hold(tmp_path)
    assert sum(slept) < module.STALE_S
