"""Runs on a real Slurm: the same content as here, whatever is done to the jobs on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.store import hdf5_content_digest, read_safetensors
from pipeline.workflow.jobs import Jobs
from tests.pipeline.stages.conftest import CASE, write_case

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
ELBOSCOPE = [sys.executable, "-m", "pipeline.cli"]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}
SHARDS = 32
DRIVERS: list[subprocess.Popen[bytes]] = []
RUNS: dict[str, Path] = {}
SMALL = {
    "simulate": {"count": 5_760, "held_out": 640, "shard": 200},
    "train": CASE["train"] | {"steps": 100},
    "infer": {"refine": {"when": "never"}},
    "validate": {"simulations": 60, "draws": 50, "proposals": 500},
    "compare": {"emcee": {"walkers": 24, "steps": 200, "burn_in": 50}, "nautilus": {"enabled": False}, "draws": 200},
    "resources": {
        "simulate": {"parts": 4, "memory_gb": 0.5},
        **{stage: {"cores": 1, "memory_gb": 2} for stage in ("train", "infer", "compare", "report")},
        "validate": {"cores": 1, "memory_gb": 2, "parts": 2},
    },
}
SLOW_SIMULATOR = """
import os
import time
from simulators.linear_gaussian import LinearGaussian

class Slow(LinearGaussian):
    def simulate(self, theta, context=None, *, generator):
        time.sleep(float(os.environ.get("SECONDS_A_SHARD", "0")))
        return super().simulate(theta, context, generator=generator)
"""


def elboscope(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ELBOSCOPE, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def slow_case(folder: Path) -> Path:
    (folder / "slow.py").write_text(SLOW_SIMULATOR)
    return write_case(folder, SMALL | {"simulator": {"path": "slow.py", "name": "Slow"}})


def drive_simulate(
    case: Path, profile: Path, *, seconds: float, minutes: int = 10, detach: bool = False
) -> subprocess.Popen[bytes]:
    """`simulate` alone, in two parts, in a process of its own; a shard takes `seconds`; the run folder is `run`."""
    arguments = [case, case.parent / "run", profile, 2, minutes, *(["detach"] if detach else [])]
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.slurm.drive_simulate", *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT | {"SECONDS_A_SHARD": str(seconds)},
    )
    DRIVERS.append(started)
    return started


def wait_until(reached: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.2)


def shards(run: Path) -> dict[str, int]:
    """Time at which each shard was written, in ns."""
    return {p.name: p.stat().st_mtime_ns for p in (run / "simulations").glob("shard-*.h5")}


def queue() -> dict[str, tuple[str, str, str]]:
    """Id, state and node of the jobs in the queue, by name."""
    done = subprocess.run(["squeue", "-h", "-o", "%j %A %T %N"], capture_output=True, text=True, check=True)
    return {name: (*rest, "")[:3] for name, *rest in map(str.split, done.stdout.splitlines())}


def job_of(run: Path, step: str) -> tuple[str, str, str]:
    """Id, state and node of one job of a run."""
    return queue().get(Jobs(run=str(run), case="", folder="", stages={}, command=[]).label + f".{step}", ("", "", ""))


def processes_of(run: Path) -> list[int]:
    """Commands of jobs of this run that are at work on this host."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if b"pipeline.cli" in words and str(run).encode() in words:
            found.append(int(entry.name))
    return found


def starts(run: Path) -> int:
    """How often jobs of this run have begun."""
    return sum(log.read_text().count(": starts\n") for log in (run / "logs").glob("*.log"))


def content(run: Path) -> dict[str, object]:
    tensors, header = read_safetensors(run / "posterior.safetensors")
    files = ("simulations.h5", "inference.h5", "validation.h5", "comparison.h5")
    return {
        **{name: hdf5_content_digest(run / name) for name in files},
        "weights": {k: v.numpy().tobytes() for k, v in tensors.items()},
        "header": {k: v for k, v in header.items() if k != "provenance"},
    }


@pytest.fixture(autouse=True)
def _no_driver_is_left() -> Iterator[None]:
    yield
    while DRIVERS:
        driver = DRIVERS.pop()
        driver.kill()
        driver.wait()


@pytest.fixture(scope="module", autouse=True)
def long_ones(tmp_path_factory: pytest.TempPathFactory, profile: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Two runs over a time limit of one minute, which mostly wait: started first, looked at last."""
    text = profile.read_text()
    profiles = {
        "warned": (text.replace("USR1@120", "USR1@50"), 1.5),  # 24 s of work a part, told after 10 s
        "deaf": (
            "\n".join(line for line in text.splitlines() if "--signal=B" not in line),
            10.0,
        ),  # 160 s of work: Slurm may look 60 s late
    }
    drivers = {}
    for name, (lines, seconds) in profiles.items():
        case = slow_case(tmp_path_factory.mktemp(name))
        (case.parent / "site.yaml").write_text(lines)
        drivers[name] = drive_simulate(case, case.parent / "site.yaml", seconds=seconds, minutes=1)
        DRIVERS.remove(drivers[name])
        RUNS[name] = case.parent / "run"
    yield drivers
    for driver in drivers.values():
        driver.kill()
        driver.wait()


@pytest.fixture
def at_the_limit(long_ones: dict[str, subprocess.Popen[bytes]]) -> dict[str, Path]:
    """Run folders of the long ones, once they are done."""
    for name, driver in long_ones.items():
        assert driver.wait(timeout=420) == 0, name
    return RUNS


@pytest.fixture(scope="module")
def simulated_here(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Content of the simulations of the slow case, made without a cluster."""
    case = slow_case(tmp_path_factory.mktemp("here"))
    assert elboscope("simulate", case, "--run-dir", "run", cwd=case.parent).returncode == 0
    return hdf5_content_digest(case.parent / "run/simulations/shard-00031.h5")


def test_a_run_on_slurm_equals_one_here(tmp_path: Path, profile: Path) -> None:
    case = write_case(tmp_path, SMALL)
    planned = elboscope("run", case, "--run-dir", "there", "--profile", profile, "--dry-run", cwd=tmp_path)
    assert "simulate    would run, in 4 parts: no output yet" in planned.stdout
    assert not (tmp_path / "there/logs").exists()

    process = subprocess.Popen(
        [*ELBOSCOPE, "run", str(case), "--run-dir", "there", "--profile", str(profile)], cwd=tmp_path, env=ENVIRONMENT
    )
    there = tmp_path / "there"
    wait_until(lambda: any(name.startswith("there-") for name in queue()), "a job of ours in squeue")
    wait_until(lambda: "train" in " ".join(queue()) or process.poll() is not None, "train in squeue", 200)
    standing = elboscope("status", there, cwd=tmp_path)
    assert "simulate" in standing.stdout, standing.stderr
    assert elboscope("run", case, "--run-dir", "here", cwd=tmp_path).returncode == 0
    assert process.wait(timeout=280) == 0
    for name, value in content(tmp_path / "here").items():
        assert content(there)[name] == value, name
    assert len(shards(there)) == SHARDS
    assert (
        starts(there) == 4 + 1 + 2 + 1 + 4
    )  # parts of simulate and of validate, what joins them, and four other stages

    started = time.monotonic()
    again = elboscope("run", case, "--run-dir", "there", "--profile", profile, cwd=tmp_path)
    assert time.monotonic() - started < 3
    assert "nothing has changed" in again.stdout
    assert "done" in elboscope("status", there, cwd=tmp_path).stdout
    changed = elboscope(
        "run", case, "--run-dir", "there", "--dry-run", "--set", "compare.draws=100", cwd=tmp_path
    ).stdout
    assert "validate    up to date" in changed
    assert "compare     would run: compare.draws was 200, is 100" in changed


def cancel(run: Path) -> None:
    subprocess.run(["scancel", job_of(run, "simulate-0-of-2")[0]], check=True)


def kill_a_job(run: Path) -> None:
    os.kill(processes_of(run)[0], signal.SIGKILL)


def take_a_node_down(run: Path) -> None:
    node = job_of(run, "simulate-0-of-2")[2]
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    time.sleep(2)
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)  # it may be back already


def tell_that_time_is_short(run: Path) -> None:
    subprocess.run(["scancel", "--batch", "--signal=USR1", job_of(run, "simulate-0-of-2")[0]], check=True)


@pytest.mark.parametrize("harm", [cancel, kill_a_job, take_a_node_down, tell_that_time_is_short])
def test_a_job_that_is_lost_is_made_good(
    tmp_path: Path, profile: Path, simulated_here: str, harm: Callable[[Path], None]
) -> None:
    case = slow_case(tmp_path)
    run = tmp_path / "run"
    driver = drive_simulate(case, profile, seconds=0.4)
    wait_until(lambda: len(shards(run)) >= 6 and len(processes_of(run)) == 2, "two jobs at work")
    before = shards(run)
    harm(run)
    assert driver.wait(timeout=120) == 0
    after = shards(run)
    assert {name: after[name] for name in before} == before  # nothing that was done is done again
    assert len(after) == SHARDS
    assert starts(run) > 3
    assert hdf5_content_digest(run / "simulations/shard-00031.h5") == simulated_here
    assert (run / "simulations.h5").is_file()


def test_the_submitting_process_is_killed_and_started_again(tmp_path: Path, profile: Path) -> None:
    case = slow_case(tmp_path)
    run = tmp_path / "run"
    first = drive_simulate(case, profile, seconds=0.4)
    wait_until(lambda: len(shards(run)) >= 4, "four shards")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len(processes_of(run)) == 2  # they run on
    second = drive_simulate(case, profile, seconds=0.4)
    wait_until(lambda: len([n for n in queue() if n.startswith("run-")]) > 0, "jobs")
    most = 0
    while second.poll() is None:
        most = max(most, len(processes_of(run)))
        time.sleep(0.2)
    assert second.returncode == 0
    assert most == 2  # never two jobs on the same part
    assert len(shards(run)) == SHARDS
    assert starts(run) == 5  # two parts, the same two again with nothing left to do, and the merge
    assert not list((run / "workflow").glob("session-*"))


def test_a_chain_that_is_left_to_the_scheduler(tmp_path: Path, profile: Path) -> None:
    case = slow_case(tmp_path)
    run = tmp_path / "run"
    driver = drive_simulate(case, profile, seconds=0.1, detach=True)
    assert driver.wait(timeout=60) == 0
    assert job_of(run, "simulate")[1] == "PENDING"  # waits for the parts
    wait_until((run / "simulations.h5").is_file, "the merge")
    assert starts(run) == 3


def test_a_job_over_its_time_limit_goes_on_in_the_next(at_the_limit: dict[str, Path]) -> None:
    """The warning came 50 s before the end, the job saved its state and was put back into the queue."""
    run = at_the_limit["warned"]
    assert len(shards(run)) == SHARDS
    log = (run / "logs/simulate-0-of-2.log").read_text()
    assert "ended with exit code 75" in log
    assert log.count(": starts\n") >= 2


def test_a_job_that_hears_no_warning_is_retried_with_more_time(at_the_limit: dict[str, Path]) -> None:
    """Slurm killed the job at its limit, and the retry asked for twice the time."""
    run = at_the_limit["deaf"]
    log = (run / "logs/simulate-0-of-2.log").read_text()
    assert "DUE TO TIME LIMIT" in log
    assert len(shards(run)) == SHARDS
