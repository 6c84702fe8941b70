r"""Hostile inputs to every reader, counted: nothing run, nothing opened elsewhere, no traceback, no hang, no memory eaten.

    python -m tests.faults.fuzz --inputs 1000000 --minutes 60      # the long form; stops at whichever comes first
    python -m tests.faults.fuzz --again 4711 --seed 1              # one input again, with its traceback; kept as ./4711.*

Input number i is a function of (seed, i). Readers run in a fork of this process, which is watched from outside: after
10 s of CPU time on one input, or 60 s in all, it is killed, and that counts as a hang; a signal as a crash.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cli import said_in_one_line
from pipeline.progress import console
from tests.faults.guard import Guard, Watch
from tests.faults.mutate import CANARY, change_hdf5, changed_safetensors, mutated
from tests.faults.targets import CORPUS, TARGETS

CPU_S, WALL_S = 10.0, 60.0
MEMORY = 1_000_000_000
"""Bytes of the whole process, some 400 MB of which are torch and the rest of the program."""
FRESH = 700_000_000
"""Bytes from which on a worker is replaced, so that what one input takes is seen."""
FAULTS = ("code run or started", "file outside opened", "traceback", "hang", "crash", "memory", "line too long")


@dataclass
class Outcome:
    """What came of so many inputs.

    Attributes:
        inputs: of each target.
        refused: inputs that were one line; the others were read.
        faults: what must not be, by kind.
        examples: first input number of each different fault, in words.
    """

    inputs: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)
    most_memory: int = 0
    longest_s: float = 0.0

    def add(self, number: int, kind: str, what: str) -> None:
        """Count a fault."""
        self.faults[kind] += 1
        self.examples.setdefault(f"{kind}: {what}", number)


def make_input(number: int, seed: int, folder: Path, targets: Sequence[str]) -> tuple[str, Path]:
    """Target and file of one input."""
    chance = random.Random(f"{seed}-{number}")
    name = chance.choices(targets, [TARGETS[t].weight for t in targets])[0]
    seeds = sorted(CORPUS.glob(TARGETS[name].seeds))
    source = chance.choice(seeds)
    raw = source.read_bytes()
    path = folder / f"input{''.join(source.suffixes[-1:])}"
    path.unlink(missing_ok=True)
    if path.suffix == ".h5" and chance.random() < 0.5:
        path.write_bytes(raw)
        with suppress(OSError, ValueError, TypeError, KeyError, RuntimeError):  # a change that h5py will not make
            change_hdf5(path, chance)
    elif path.suffix == ".safetensors" and chance.random() < 0.6:
        path.write_bytes(changed_safetensors(raw, chance))
    else:
        path.write_bytes(mutated(raw, [s.read_bytes() for s in seeds], chance))
    return name, path


def read_one(name: str, path: Path, guard: Guard) -> tuple[str, str, str]:
    """Fault (or "refused", or ""), in words, and the traceback."""
    kind = what = trace = ""
    guard.folder, guard.seen = str(path.parent), []
    try:
        TARGETS[name].read(path)
    except Exception as error:
        guard.folder = None
        if said_in_one_line(error) is None:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/faults/" not in f.filename]
            place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
            kind, what, trace = "traceback", f"{name}: {type(error).__name__} at {place}", traceback.format_exc()
        else:
            kind = "refused"
    finally:
        guard.folder = None
    if guard.seen:
        outside = all(s.startswith("opened") for s in guard.seen)
        return ("file outside opened" if outside else "code run or started"), f"{name}: {guard.seen[0]}", trace
    return kind, what, trace


def work(start: int, stop: int, seed: int, folder: Path, targets: Sequence[str], shared: mmap.mmap, out: int) -> None:
    """In the fork: read inputs, and say of each what came of it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    console.quiet = True
    warnings.simplefilter("ignore")
    limit = MEMORY * 4 + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    guard, watch = Guard(), Watch(folder.parent / Path(CANARY).name, Path("/etc/issue"))
    marker = folder.parent / "marker"
    for number in range(start, stop):
        name, path = make_input(number, seed, folder, targets)
        watch.opened()
        began = time.process_time()
        shared[:16] = struct.pack("<qd", number, began)
        kind, what, _ = read_one(name, path, guard)
        taken = time.process_time() - began
        if opened := watch.opened():
            kind, what = "file outside opened", f"{name}: {opened[0].name}"
        if marker.exists():
            marker.unlink()
            kind, what = "code run or started", f"{name}: a command of the input"
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if memory > MEMORY and kind in ("", "refused"):
            kind, what = "memory", f"{name}: {memory / 1e9:.1f} GB"
        os.write(out, json.dumps([number, name, kind, what, taken, memory]).encode() + b"\n")
        if memory > FRESH:
            return


def fuzz(*, inputs: int, seed: int = 0, minutes: float = 60.0, targets: Sequence[str] = tuple(TARGETS)) -> Outcome:
    """Give so many inputs to the readers, or as many as there is time for."""
    outcome, deadline, number = Outcome(), time.monotonic() + 60 * minutes, 0
    shared = mmap.mmap(-1, 16)
    with _folder() as folder:
        while number < inputs and time.monotonic() < deadline:
            receive, send = os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 1
                with suppress(BaseException):
                    os.close(receive)
                    work(number, inputs, seed, folder, targets, shared, send)
                    code = 0
                os._exit(code)
            os.close(send)
            number = _watch(pid, receive, number, shared, outcome, deadline)
            os.close(receive)
    return outcome


def _watch(pid: int, receive: int, number: int, shared: mmap.mmap, outcome: Outcome, deadline: float) -> int:
    """Collect what a worker says, and kill it where one input takes too long; gives the next number."""
    os.set_blocking(receive, False)
    shared[:16] = struct.pack("<qd", number, 0.0)
    rest, last = b"", time.monotonic()
    while True:
        with suppress(BlockingIOError):
            chunk = os.read(receive, 1 << 16)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                number = _count(json.loads(line), outcome) + 1
            last = time.monotonic()
            continue
        at, began = struct.unpack("<qd", shared[:16])
        hangs = at == number and (_cpu_s(pid) - began > CPU_S or time.monotonic() - last > WALL_S)
        if hangs or time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            if hangs:
                outcome.add(number, "hang", f"input {number}")
                number += 1
            os.waitpid(pid, 0)
            return number
        time.sleep(0.02)
    _, status = os.waitpid(pid, 0)
    if status:
        outcome.add(number, "crash", f"input {number}: wait status {status}")
        number += 1
    return number


def _count(said: Any, outcome: Outcome) -> int:
    number, name, kind, what, taken, memory = said
    outcome.inputs[name] += 1
    outcome.longest_s, outcome.most_memory = max(outcome.longest_s, taken), max(outcome.most_memory, memory)
    if kind == "refused":
        outcome.refused += 1
    elif kind:
        outcome.add(number, kind, what)
    return number


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for inputs, in memory where there is one, beside files that nobody may open."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        folder = Path(name) / "inputs"
        folder.mkdir()
        (Path(name) / "canary.txt").write_text("a secret\n" * 10)
        (folder / "evil.py").write_text("import os\nos.system('touch ../marker')\n")
        before = Path.cwd()
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def again(number: int, seed: int) -> None:
    """One input once more, here, with its traceback."""
    with _folder() as folder:
        name, path = make_input(number, seed, folder, tuple(TARGETS))
        kept = Path(tempfile.gettempdir()) / f"{number}{path.suffix}"
        kept.write_bytes(path.read_bytes())
        kind, what, trace = read_one(name, path, Guard())
    sys.stdout.write(f"{name}: {kind or 'read'} {what}\n{trace}\n{kept}\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--again", type=int)
    given = parser.parse_args()
    if given.again is not None:
        again(given.again, given.seed)
        return
    began = time.monotonic()
    outcome = fuzz(inputs=given.inputs, seed=given.seed, minutes=given.minutes, targets=given.targets)
    taken, total = time.monotonic() - began, sum(outcome.inputs.values())
    write = sys.stdout.write
    write(f"{total} inputs in {taken:.0f} s, {total / taken:.0f} a second; {outcome.refused} refused in one line\n")
    write("".join(f"{name:<14} {count}\n" for name, count in sorted(outcome.inputs.items())))
    write(f"longest {outcome.longest_s:.1f} s of CPU time; at most {outcome.most_memory / 1e9:.2f} GB\n")
    write("".join(f"{kind}: {outcome.faults[kind]}\n" for kind in FAULTS))
    write("".join(f"  {number}: {what}\n" for what, number in outcome.examples.items()))
    if outcome.faults:
        raise SystemExit("readers are not safe")


if __name__ == "__main__":
    main()
