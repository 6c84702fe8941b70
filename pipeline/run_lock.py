"""Who is writing in a run folder: announced in a small file, so that a second process is told and stops.

No lock of the file system is used: flock is missing on many Lustre mounts, and without effect between hosts on some NFS
ones. A process announces itself by a file that appears complete, and only then looks at the others': of two that
start at once, at least one sees the other. It touches its file every few seconds. One whose process is gone from
this host, or that another host has not touched for `STALE_S`, counts for nothing and is removed; where the clocks
disagree, so that its time lies ahead, it is watched for as long. Should two processes write all the same, nothing breaks: files are complete or absent, and the same settings give the same content.
"""

from __future__ import annotations

import json
import os
import platform
import random
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.progress import console
from pipeline.store.complete import complete_or_absent

FOLDER = ".locks"
BEAT_S = 10.0
STALE_S = 120.0
"""Twice the longest time (60 s) for which NFS clients keep file attributes by default (nfs(5), acregmax)."""
ATTEMPTS = 4
LONGEST = 1 << 16
"""Bytes of such a file."""
MOST_PID = (1 << 31) - 1
"""What kill(2) takes; 0 and negative numbers are groups of processes."""


@dataclass(frozen=True)
class Holder:
    """A process that writes, or needs that nobody else does.

    Attributes:
        stage: what it is doing.
        writes: outputs that it alone may touch.
        reads: outputs that nobody may write meanwhile.
        host, machine: name; and its boot and process namespace, within which a pid means something.
        pid, started: process, and its start in clock ticks since boot: pids are used again.
        since: wall-clock time, UTC.
    """

    stage: str
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    host: str
    machine: str
    pid: int
    started: str
    since: str

    def excludes(self, other: Holder) -> bool:
        """Whether the two may not run at once."""
        mine, theirs = set(self.writes), set(other.writes)
        return bool(mine & (theirs | set(other.reads)) or theirs & set(self.reads))


@contextmanager
def run_lock(folder: Path, stage: str, *, writes: tuple[str, ...], reads: tuple[str, ...] = ()) -> Iterator[None]:
    """Hold outputs of a run folder, if it can be written.

    Args:
        folder: of the run.
        stage: what is being done.
        writes: outputs that are written, such as ("train",).
        reads: outputs that must stay as they are. Any number of processes may read the same.

    Raises:
        InputError: another process holds one of them: which, where, since when.
    """
    locks = folder / FOLDER
    own = _this_process(stage, writes, reads)
    path = locks / f"{own.host}-{own.pid}-{secrets.token_hex(4)}.json"
    if not _acquire(path, own):
        yield
        return
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        with suppress(OSError):
            path.unlink()
        with suppress(OSError):
            locks.rmdir()  # if it was the last


def _acquire(path: Path, own: Holder) -> bool:
    """Announce, then look; False where nothing can be announced. Two that see each other step back for random times.

    Where a small file cannot be written (an archive, a full disk), the stage says so itself if it has anything to write.
    """
    other = None
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _announce(path, own)
        except InputError:
            return False
        other = _other(path, own)
        if other is None:
            return True
        path.unlink(missing_ok=True)
        if attempt < ATTEMPTS:
            time.sleep(random.uniform(0.05, 0.3) * attempt)
    assert other is not None
    raise InputError(
        f"{path.parent.parent}: {other.stage} is running there, in process {other.pid} on {other.host} since {other.since}: "
        "wait for it, stop it, or use another --run-dir"
    )


def _announce(path: Path, own: Holder) -> None:
    with complete_or_absent(path) as temporary:
        temporary.write_text(json.dumps(asdict(own)), encoding="utf-8")


def _other(path: Path, own: Holder) -> Holder | None:
    """A living process that must not run beside this one; the dead are cleared away.

    One of another host that has missed some beats may be dead: it is waited for until that is known.
    """
    for file in sorted(path.parent.glob("*.json")):
        watched_s, first_silent_s = 0.0, None
        while file != path and (holder := _read(file)) is not None and own.excludes(holder):
            if holder.machine == own.machine:
                if _alive(holder):
                    return holder
                _remove(file)
                break
            silent_s = _silent_s(file, path)
            ahead = silent_s < -3 * BEAT_S
            if silent_s > STALE_S or watched_s > STALE_S:
                _remove(file)
                break
            if first_silent_s is None:
                first_silent_s = silent_s
            beats = silent_s < first_silent_s + watched_s - BEAT_S  # its time has moved while it was watched
            if beats or (not ahead and silent_s < 3 * BEAT_S):
                return holder
            if not watched_s:
                since = "is ahead of the clock here" if ahead else f"has not been heard of for {silent_s:.0f} s"
                console.print(f"{holder.stage} on {holder.host} {since}; taken over after {STALE_S:.0f} s")
            time.sleep(BEAT_S / 2)
            watched_s += BEAT_S / 2
    return None


def _remove(file: Path) -> None:
    with suppress(OSError):  # in a folder that cannot be written it counts for nothing all the same
        file.unlink(missing_ok=True)


def _read(file: Path) -> Holder | None:
    try:
        if not file.is_file() or file.stat().st_size > LONGEST:  # a pipe would be waited for
            return None
        values = json.loads(file.read_text(encoding="utf-8"))
        holder = Holder(**values | {"writes": tuple(values["writes"]), "reads": tuple(values["reads"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # gone meanwhile, or not one of ours
        return None
    texts = (holder.stage, holder.host, holder.machine, holder.started, holder.since, *holder.writes, *holder.reads)
    is_process = type(holder.pid) is int and 0 < holder.pid <= MOST_PID
    return holder if is_process and all(isinstance(t, str) for t in texts) else None


def _silent_s(file: Path, own: Path) -> float:
    """Seconds since the other's last beat, by the clock of the file server alone."""
    try:
        os.utime(own)
        return _fresh_time(own) - _fresh_time(file)
    except FileNotFoundError:
        return 0.0


def _fresh_time(file: Path) -> float:
    """Time of the last change; NFS asks the server anew when a file is opened, and not before."""
    with file.open("rb") as opened:
        return os.fstat(opened.fileno()).st_mtime


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        with suppress(OSError):
            os.utime(path)


def _this_process(stage: str, writes: tuple[str, ...], reads: tuple[str, ...]) -> Holder:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return Holder(stage, writes, reads, platform.node(), _machine(), os.getpid(), _started(os.getpid()) or "", since)


def _machine() -> str:
    """Host, its boot, and the namespace of its process ids: containers on one host have their own."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _alive(holder: Holder) -> bool:
    """Whether the process of this host still runs, and is the same one."""
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not holder.started or _started(holder.pid) in (None, holder.started)


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None where /proc does not say, or it is a zombie's."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return "zombie" if fields[0] == "Z" else fields[19]
