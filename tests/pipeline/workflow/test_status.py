"""Where a run stands, from its outputs, a queue and logs."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import load_case
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.workflow.jobs import Jobs, Stage
from pipeline.workflow.status import read_queue, standings
from tests.pipeline.stages.conftest import write_case

STAGE = Stage(parts=1, cores=1, memory_mb=1, gpus=0, nodes=1, minutes=1)
SAYS = "elboscope: job x ({}) on n1, 2026-01-01T00:00:00Z: {}\n"


def test_done_running_waiting_failed_stopped_and_to_do(tmp_path: Path) -> None:
    case = write_case(tmp_path, {"simulate": {"count": 90, "held_out": 10, "shard": 50}})
    run = Run(load_case(case), tmp_path / "run")
    stages = dict.fromkeys(run.stages, STAGE) | {"compare": Stage(3, 1, 1, 0, 1, 1)}
    jobs = Jobs(run=str(run.folder), case="", folder="", stages=stages, command=[])
    simulate(run)
    (run.folder / "logs").mkdir()
    logs = {
        "train": SAYS.format(5, "starts"),
        "infer": SAYS.format(6, "starts") + "error: no memory\n" + SAYS.format(6, "ended with exit code 2"),
        "compare-0-of-3": SAYS.format(7, "starts") + SAYS.format(7, "ended with exit code 0"),
        "compare-1-of-3": SAYS.format(8, "starts") + SAYS.format(8, "ended with exit code 75"),
        "compare-2-of-3": SAYS.format(9, "starts") + "slurmstepd: error: *** CANCELLED ***\n",
        "report": SAYS.format(4, "starts") + SAYS.format(4, "ended with exit code 0"),
    }
    for name, text in logs.items():
        (run.folder / "logs" / f"{name}.log").write_text(text)
    queue = {jobs.name("train"): ("5", "RUNNING"), jobs.name("validate"): ("10", "PENDING")}
    found = {s.name: (s.state, s.note) for s in standings(run, jobs, queue)}
    assert {name: state for name, (state, _) in found.items()} == {
        "simulate": "done",
        "train": "running",
        "infer": "failed",
        "validate": "waiting",
        "compare-0-of-3": "done",
        "compare-1-of-3": "stopped",
        "compare-2-of-3": "failed",
        "compare": "to do",
        "report": "to do",
    }
    assert "on n1 since" in found["train"][1]
    assert "exit code 2: error: no memory" in found["infer"][1]
    assert "ended from outside: slurmstepd: error: *** CANCELLED ***" in found["compare-2-of-3"][1]


def test_a_queue_that_does_not_answer_is_empty() -> None:
    assert read_queue("echo 12 RUNNING a.train") == {"a.train": ("12", "RUNNING")}
    assert read_queue("false") == {}
    assert read_queue("no-such-command") == {}
    assert read_queue("") == {}
