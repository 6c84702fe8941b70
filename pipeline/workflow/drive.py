"""Running the jobs of a run through Snakemake, which submits, watches and retries them."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.own_process import own_command
from pipeline.progress import Advance, console, progress_bar
from pipeline.settings import CaseSettings
from pipeline.store import check_sum, record_sums, write_text
from pipeline.workflow.jobs import Jobs, Stage
from pipeline.workflow.logs import last_word
from pipeline.workflow.profile import KEPT, Profile
from simulators.reading.yaml_text import write_yaml

HERE = Path(__file__).parent
CASE = "workflow/case.yaml"


def write_case(case: CaseSettings, folder: Path) -> None:
    """Keep the resolved case in the run folder: a queued job does not see later edits of the YAML."""
    values = case.dump() | case.dump("resources")
    write_text(folder / CASE, write_yaml(values))
    record_workflow(folder)


def record_workflow(folder: Path) -> None:
    """Note the checksums of the case and of the profile that lie in the run folder."""
    record_sums(folder, "workflow", [p for name in (CASE, KEPT) if (p := folder / name).is_file()])


def saved_case(folder: Path) -> CaseSettings:
    """The case of a run folder.

    Raises:
        InputError: `elboscope run` has never been called for it.
    """
    if not (folder / CASE).is_file():
        raise InputError(f"{folder}: expected the folder of an `elboscope run`, with {CASE} in it")
    check_sum(folder / CASE)
    return load_case(folder / CASE)


def jobs_of(folder: Path, stages: Mapping[str, Stage], profile: Profile) -> Jobs:
    """The jobs of a run.

    Raises:
        InputError: several processes or GPUs, and a profile that cannot ask for them.
    """
    run = folder.resolve()
    jobs = Jobs(
        run=str(run),
        case=str(run / CASE),
        folder=os.getcwd(),
        stages=stages,
        command=shlex.split(profile.command) or own_command("pipeline.cli"),
        launch=profile.launch,
        gpu_options=profile.gpu_options,
        most_minutes=profile.most_minutes,
    )
    if profile.executor == "local":
        return jobs
    if any(jobs.processes(s) > 1 for s in stages) and not profile.launch:
        raise InputError(
            "resources.train asks for several GPUs or nodes: this profile has no `launch`; use slurm-gpu, or add srun or the like to yours"
        )
    if any(asked.gpus for asked in stages.values()) and not profile.gpu_options:
        raise InputError(
            "resources ask for GPUs: this profile has no `gpu_options`; use slurm-gpu, or add them to yours"
        )
    return jobs


def drive(jobs: Jobs, profile: Profile, *, at_a_time: int | None = None, detach: bool = False) -> bool:
    """Submit the jobs and watch them until all are done; with `detach`, submit all at once and return.

    Ctrl-C cancels the jobs. If this process is killed they run on, and the next call continues: a job of the same name
    waits for the one that is still there, and finds its work done.

    Returns:
        whether all succeeded.

    Raises:
        InputError: Snakemake is not installed, or this scheduler's jobs cannot wait for each other.
    """
    if find_spec("snakemake") is None or find_spec("snakemake_executor_plugin_cluster_generic") is None:
        raise InputError("--profile needs Snakemake: pip install 'elboscope[cluster]'")
    if detach and profile.executor == "local":
        raise InputError("--detach needs a scheduler, and this profile has executor: local")
    Path(jobs.run, "logs").mkdir(parents=True, exist_ok=True)
    with _session(jobs, keep=detach) as session, _ctrl_c_is_for_snakemake():
        return _execute(jobs, profile, session, at_a_time=at_a_time or profile.jobs, detach=detach)


def _execute(jobs: Jobs, profile: Profile, session: Path, *, at_a_time: int, detach: bool) -> bool:
    """Run the workflow in Snakemake's own folder; whether all jobs succeeded."""
    from snakemake import api
    from snakemake.exceptions import WorkflowError
    from snakemake.scheduling.greedy import SchedulerSettings
    from snakemake.settings import types as settings
    from snakemake.settings.enums import Quietness, RerunTrigger

    cluster = profile.executor == "cluster"
    script = session / "jobscript.sh"
    script.write_text(job_script(jobs, profile), encoding="utf-8")
    output = settings.OutputSettings(quiet=frozenset({Quietness.ALL}))
    try:
        with api.SnakemakeApi(output) as snakemake, _watched(jobs):
            workflow = snakemake.workflow(
                resource_settings=settings.ResourceSettings(
                    nodes=at_a_time if cluster else None, cores=None if cluster else at_a_time
                ),
                config_settings=settings.ConfigSettings(config=asdict(jobs)),
                storage_settings=settings.StorageSettings(notemp=True),
                snakefile=HERE / "Snakefile",
                workdir=session,
            )
            # the marks themselves, not a rule `all`: with immediate_submit Snakemake waits for ever for a job that it runs itself
            targets = frozenset(jobs.stages)
            dag = workflow.dag(settings.DAGSettings(targets=targets, rerun_triggers=frozenset({RerunTrigger.MTIME})))
            dag.execute_workflow(
                executor="cluster-generic" if cluster else "local",
                executor_settings=_executor_settings(profile, detach=detach) if cluster else None,
                execution_settings=settings.ExecutionSettings(
                    keep_going=True, lock=False, retries=0 if detach else profile.retries
                ),
                remote_execution_settings=settings.RemoteExecutionSettings(
                    jobname="{name}.{jobid}.sh",
                    jobscript=script,
                    seconds_between_status_checks=profile.poll_seconds,
                    immediate_submit=detach,
                ),
                scheduling_settings=settings.SchedulingSettings(scheduler="greedy"),
                scheduler_settings=SchedulerSettings(),
            )
    except WorkflowError as error:
        if str(error):
            console.print(f"cluster: {error}")
        return False
    return True


def job_script(jobs: Jobs, profile: Profile) -> str:
    """The script of a job, in which Snakemake fills in the properties of each."""
    text = (HERE / "jobscript.sh").read_text(encoding="utf-8")
    values = {
        "SETUP": profile.setup,
        "CWD": shlex.quote(jobs.folder),
        "RUN": shlex.quote(jobs.run),
        "PYTHON": shlex.quote(sys.executable),
        "REQUEUE": profile.requeue or "false",
        "NAME": jobs.label,
        "END": "end of properties",
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text.replace("{", "{{").replace("}", "}}").replace("@PROPERTIES@", "{properties}")


def _executor_settings(profile: Profile, *, detach: bool) -> Any:
    from snakemake_executor_plugin_cluster_generic import ExecutorSettings

    return ExecutorSettings(
        submit_cmd=profile.submit_command(detach=detach), status_cmd=profile.status, cancel_cmd=profile.cancel
    )


def _count(jobs: Jobs) -> int:
    """Jobs that are to be done."""
    return sum(asked.parts + 1 if jobs.is_divided(name) else 1 for name, asked in jobs.stages.items())


@contextmanager
def _session(jobs: Jobs, *, keep: bool) -> Iterator[Path]:
    """A folder for Snakemake's own files, fresh each time: no lock and no half-done mark of an earlier call is in it.

    Folders of calls that were killed on this machine are removed.
    """
    parent = Path(jobs.run, "workflow")
    host = socket.gethostname()
    for old in parent.glob(f"session-{host}-*"):
        process = old.name.removeprefix(f"session-{host}-").partition("-")[0]
        if process.isdigit() and not Path("/proc", process).exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"session-{host}-{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ctrl_c_is_for_snakemake() -> Iterator[None]:
    """Snakemake cancels its jobs on KeyboardInterrupt; our own handler would only take note."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, previous)
            signal.signal(signal.SIGTERM, terminate)


class _Events(logging.Handler):
    """Snakemake's events: a step of the bar for each finished job, a line for each failed one."""

    def __init__(self, jobs: Jobs, advance: Advance) -> None:
        super().__init__(logging.INFO)
        self.jobs, self.advance = jobs, advance
        self.steps: dict[int, tuple[str, int | None]] = {}
        self.done: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        event, text = str(getattr(record, "event", "")), record.getMessage()
        if event == "job_info":
            number: int = record.jobid  # pyright: ignore[reportAttributeAccessIssue]
            part = record.wildcards.get("part")  # pyright: ignore[reportAttributeAccessIssue]
            stage = record.rule_name.removesuffix("_part")  # pyright: ignore[reportAttributeAccessIssue]
            self.steps[number] = (stage, None if part is None else int(part))
        elif event == "job_finished" and (number := record.job_id) in self.steps:  # pyright: ignore[reportAttributeAccessIssue]
            if number not in self.done:
                self.done.add(number)
                self.advance(1, note=self.jobs.step(*self.steps[number]))
        elif event == "job_error" and (number := record.jobid) in self.steps:  # pyright: ignore[reportAttributeAccessIssue]
            step = self.steps[number]
            console.print(f"{self.jobs.step(*step)}: failed: {last_word(Path(self.jobs.log(*step)))}")
        elif text.startswith("Trying to restart job"):
            number = int(text.rstrip(".").rpartition(" ")[2])
            if number in self.steps:
                console.print(f"{self.jobs.step(*self.steps[number])}: submitted again, with twice the time")


@contextmanager
def _watched(jobs: Jobs) -> Iterator[None]:
    """Show Snakemake's events while it runs."""
    logger = logging.getLogger("snakemake.logging")
    with progress_bar("jobs", _count(jobs), safe=False) as advance:
        handler = _Events(jobs, advance)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
