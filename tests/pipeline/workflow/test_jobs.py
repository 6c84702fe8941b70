"""Names, command lines and resources of jobs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.workflow.jobs import AFTER, Jobs, Stage

ONE = Stage(parts=1, cores=2, memory_mb=4_000, gpus=0, nodes=1, minutes=60)
JOBS = Jobs(
    run="/data/runs/k2 24",
    case="/data/runs/k2 24/workflow/case.yaml",
    folder="/data",
    stages={"simulate": replace(ONE, parts=3), "train": ONE, "report": ONE},
    command=["elboscope"],
    launch="srun --nodes={nodes} --ntasks-per-node={tasks}",
    gpu_options="--gpus-per-node={gpus}",
    most_minutes=100,
)


def test_a_job_has_the_same_name_each_time_and_another_in_another_folder() -> None:
    assert JOBS.name("simulate", 2) == JOBS.name("simulate", 2)
    assert JOBS.name("simulate", 2).startswith("k2_24-")
    assert JOBS.name("simulate", 2).endswith(".simulate-2-of-3")
    names = {JOBS.name("simulate", p) for p in range(3)} | {JOBS.name("simulate"), JOBS.name("train")}
    assert len(names) == 5
    assert replace(JOBS, run="/other/k2 24").name("train") != JOBS.name("train")


def test_parts_share_the_shards_and_a_last_job_links_them() -> None:
    run = ["/data/runs/k2 24/workflow/case.yaml", "--run-dir", "/data/runs/k2 24"]
    assert JOBS.argv("simulate", 1) == ["elboscope", "simulate", *run, "--shard", "1/3", "--workers", "2"]
    assert JOBS.argv("simulate") == ["elboscope", "simulate", *run, "--merge"]
    assert JOBS.argv("train") == ["elboscope", "train", *run]
    alone = replace(JOBS, stages={"simulate": ONE})
    assert alone.argv("simulate") == ["elboscope", "simulate", *run, "--workers", "2"]
    assert "'/data/runs/k2 24'" in JOBS.params("train")["command"]


def test_several_gpus_and_nodes_start_a_process_each() -> None:
    jobs = replace(JOBS, stages={"train": replace(ONE, gpus=4, nodes=2), "infer": replace(ONE, gpus=1)})
    assert jobs.processes("train") == 8
    argv = jobs.argv("train")
    assert argv[:4] == ["srun", "--nodes=2", "--ntasks-per-node=4", "elboscope"]
    assert jobs.params("train")["tasks"] == 4
    assert jobs.params("train")["gpu_options"] == "--gpus-per-node=4"
    assert jobs.argv("infer")[0] == "elboscope"
    assert jobs.params("infer")["tasks"] == 1
    assert JOBS.params("train")["gpu_options"] == ""


def test_time_doubles_at_each_attempt_up_to_the_limit() -> None:
    minutes, text = (JOBS.resources("train")[n] for n in ("minutes", "walltime"))
    assert [minutes(None, attempt) for attempt in (1, 2, 3)] == [60, 100, 100]
    assert text(None, 2) == "01:40:00"
    assert replace(JOBS, most_minutes=0).resources("train")["minutes"](None, 3) == 240


def test_a_stage_waits_for_what_it_reads_where_that_is_to_be_done() -> None:
    assert JOBS.marks_before("simulate") == ["simulate-0", "simulate-1", "simulate-2"]
    assert JOBS.marks_before("train") == ["simulate"]
    assert JOBS.marks_before("report") == ["train"]


@pytest.mark.parametrize("stage", AFTER)
def test_stages_that_are_read_come_first(stage: str) -> None:
    order = list(AFTER)
    assert all(order.index(earlier) < order.index(stage) for earlier in AFTER[stage])
