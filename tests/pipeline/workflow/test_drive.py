"""Jobs through Snakemake without a scheduler; the script of a job; receipts; what is to be done and why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.store import hdf5_content_digest
from pipeline.workflow.drive import drive, job_script, jobs_of, write_case
from pipeline.workflow.jobs import Jobs, Stage
from pipeline.workflow.plan import needs, stage_of
from pipeline.workflow.profile import load_profile
from pipeline.workflow.receipt import is_finished, write_receipt
from tests.pipeline.stages.conftest import write_case as write_config

STAGE = Stage(parts=1, cores=3, memory_mb=100, gpus=0, nodes=1, minutes=1)


def test_parts_of_processes_make_what_one_makes(tmp_path: Path) -> None:
    pytest.importorskip("snakemake")
    case = load_case(write_config(tmp_path, {"simulate": {"count": 900, "held_out": 100, "shard": 250}}))
    folder = tmp_path / "parts"
    profile = load_profile("local")
    write_case(case, folder)
    assert drive(jobs_of(folder, {"simulate": replace(STAGE, parts=2)}, profile), profile, at_a_time=2)
    simulate(Run(case, tmp_path / "one"))
    assert hdf5_content_digest(folder / "simulations.h5") == hdf5_content_digest(tmp_path / "one/simulations.h5")
    assert not list((folder / "workflow").glob("session-*"))


def test_a_failed_job_is_a_failed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("snakemake")
    profile = load_profile("local")
    (tmp_path / "workflow").mkdir()
    jobs = replace(jobs_of(tmp_path, {"train": STAGE}, profile), command=["false"])
    assert not drive(jobs, profile)
    assert "train: failed" in capsys.readouterr().err


CHAIN = ("simulate", "train", "infer", "compare", "report")


@contextmanager
def seconds_at_most(limit: int) -> Iterator[None]:
    """A hanging Snakemake is a failure."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done after {limit} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_a_chain_is_handed_to_the_scheduler_at_once(tmp_path: Path) -> None:
    pytest.importorskip("snakemake")
    said = tmp_path / "said"
    (tmp_path / "site.yaml").write_text(
        f"submit: echo {{stage}} {{dependency}} >> {said}; echo 7 && true\nstatus: 'true'\ncancel: 'true'\n"
        "single: alone\nafter: after-{ids}\n"
    )
    profile = load_profile(str(tmp_path / "site.yaml"))
    (tmp_path / "workflow").mkdir()
    jobs = jobs_of(tmp_path, dict.fromkeys(CHAIN, STAGE), profile)
    with seconds_at_most(60):
        assert drive(jobs, profile, detach=True)
    lines = said.read_text().splitlines()
    assert lines[:4] == ["simulate alone", "train after-7", "infer after-7", "compare after-7"]
    assert lines[4].startswith("report after-7:7")


def test_jobs_of_a_scheduler_are_submitted_watched_and_retried(tmp_path: Path) -> None:
    """A scheduler that runs a job while it is submitted; the first attempt of `train` fails."""
    pytest.importorskip("snakemake")
    (tmp_path / "site.yaml").write_text(
        f"""submit: sh -c 'echo {{stage}} {{minutes}} >> {tmp_path}/said; bash "$0" > {{log}} 2>&1; echo $?'
status: sh -c '[ "$0" = 0 ] && echo success || echo failed'
cancel: 'true'
command: sh -c '[ $0 != train ] || [ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; exit 3; }}'
poll_seconds: 1
"""
    )
    profile = load_profile(str(tmp_path / "site.yaml"))
    (tmp_path / "workflow").mkdir()
    jobs = jobs_of(tmp_path, dict.fromkeys(CHAIN[:2], STAGE), profile)
    with seconds_at_most(60):
        assert drive(jobs, profile)
    assert (tmp_path / "said").read_text().splitlines() == ["simulate 1", "train 1", "train 2"]
    assert "ended with exit code 0" in (tmp_path / "logs/train.log").read_text()


def test_what_is_to_be_done_and_why(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"simulate": {"count": 900, "held_out": 100, "shard": 250}})
    run = Run(load_case(path), tmp_path / "run")
    assert [(n.stage, n.why) for n in needs(run, ("simulate", "train"))] == [
        ("simulate", "no output yet"),
        ("train", "reads what `simulate` will make"),
    ]
    assert not run.folder.exists()
    assert stage_of(run, "simulate").parts == 4  # no more than shards
    simulate(run)
    assert [n.stage for n in needs(run, ("simulate", "train"))] == ["train"]
    other = Run(load_case(path, ["simulate.count=901"]), run.folder)
    assert needs(other, ("simulate",))[0].why == "simulate.count was 900, is 901"
    asked = Run(load_case(path, ["resources.simulate.cores=7", "device=cpu"]), run.folder)
    assert needs(asked, ("simulate",)) == []  # execution alone


def test_a_receipt_holds_until_something_is_touched(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    case, folder = load_case(path), tmp_path / "run"
    (folder / "simulations").mkdir(parents=True)
    for name in ("posterior.safetensors", "simulations/shard-0.h5"):
        (folder / name).write_text("content")
    assert not is_finished(case, folder)
    write_receipt(case, folder)
    assert is_finished(case, folder)
    assert is_finished(load_case(path, ["resources.train.minutes=5"]), folder)
    assert not is_finished(load_case(path, ["train.steps=5"]), folder)
    for touched in (folder / "simulations/shard-0.h5", folder / "posterior.safetensors", tmp_path / "observed.h5"):
        write_receipt(case, folder)
        os.utime(touched, (1, 1))
        assert not is_finished(case, folder), touched
    write_receipt(case, folder)
    (folder / "simulations/shard-0.h5").unlink()
    assert not is_finished(case, folder)


def start_job(folder: Path, argv: list[str], requeue: str = "") -> subprocess.Popen[str]:
    """The script of a job, started as a scheduler does."""
    jobs = Jobs(run=str(folder), case="case.yaml", folder=str(folder), stages={"train": STAGE}, command=["elboscope"])
    properties = json.dumps({"params": jobs.params("train") | {"argv": argv}})
    profile = load_profile("local").model_copy(update={"requeue": requeue, "setup": "export FROM_SETUP=yes"})
    script = folder / "job.sh"
    script.write_text(job_script(jobs, profile).format(properties=properties, exec_job=""))
    return subprocess.Popen(["bash", str(script)], stdout=subprocess.PIPE, text=True)


WAITS = "import signal, sys, time; signal.signal(signal.{}, lambda *_: sys.exit({})); print('ready', flush=True); time.sleep(600)"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)])
def test_a_job_passes_signals_on_and_hands_the_exit_code_back(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start_job(tmp_path, [sys.executable, "-c", WAITS.format(number.name, code)])
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        pass
    process.send_signal(number)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == code
    assert f"ended with exit code {code}" in rest


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (1, False)])
def test_a_job_that_asks_for_it_is_put_back_into_the_queue(tmp_path: Path, code: int, requeued: bool) -> None:
    mark = tmp_path / "requeued"
    process = start_job(
        tmp_path, [sys.executable, "-c", f"raise SystemExit({code})"], requeue=f"{{ touch {mark}; false; }}"
    )
    process.communicate(timeout=300)
    assert process.returncode == code
    assert mark.exists() == requeued


def test_a_jobs_command_is_quoted_and_has_its_threads(tmp_path: Path) -> None:
    odd = 'it\'s "odd" $HOME `x` \\ é {brace}'
    said = f"import os, sys; print(sys.argv[1] == {odd!r}, os.environ['OMP_NUM_THREADS'], os.environ['FROM_SETUP'])"
    out, _ = start_job(tmp_path, [sys.executable, "-c", said, odd]).communicate(timeout=300)
    assert "True 3 yes" in out


@pytest.mark.parametrize("asked", [{"gpus": 2}, {"nodes": 2}])
def test_training_in_several_processes_is_started_by_the_launcher_of_the_profile(
    tmp_path: Path, asked: dict[str, int]
) -> None:
    stages = {"train": replace(STAGE, **asked)}
    profile = load_profile("slurm-gpu")
    argv = jobs_of(tmp_path, stages, profile).argv("train")
    assert argv[0] == "srun"
    assert f"--nodes={asked.get('nodes', 1)}" in argv
    assert f"--ntasks-per-node={asked.get('gpus', 1)}" in argv
    with pytest.raises(InputError, match="this profile has no `launch`"):
        jobs_of(tmp_path, stages, profile.model_copy(update={"launch": ""}))
