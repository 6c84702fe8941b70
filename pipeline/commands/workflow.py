"""Commands that do all stages of a case, here or on a cluster, and say where they stand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import Config, Observation, Overrides, RunDir, case_of
from pipeline.commands.stages import perform
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.stages.run import Run
    from pipeline.workflow.profile import Profile


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("run")(run_command)
    app.command("status")(status_command)
    app.command("profiles")(profiles_command)


def run_command(
    config: Config,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    observation: Observation = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", help="on a cluster: slurm, slurm-gpu, or the YAML file of your site (see `profiles`)"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say which stages would run, and why")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="with --profile: submit all jobs, each waiting for those before it; return")
    ] = False,
    at_a_time: Annotated[
        int | None, typer.Option("--jobs", help="with --profile: jobs in the queue at a time", min=1)
    ] = None,
) -> None:
    """All stages in order. What is up to date is not done again. Without an observation: train and validate.

    Examples: elboscope run configs/k2_24.yaml

    elboscope run configs/k2_24.yaml --profile slurm
    """
    if profile is None and (detach or at_a_time):
        raise InputError("--detach and --jobs need --profile NAME, such as --profile slurm")
    case, folder = case_of(config, overrides, run_dir, observation)
    from pipeline.workflow.profile import load_profile
    from pipeline.workflow.receipt import is_finished, write_receipt

    site = None if profile is None else load_profile(profile)
    if site is not None and case.rounds > 1:
        raise InputError(
            "rounds: what a round simulates depends on the one before it: run it on one machine, or set rounds: 1"
        )
    report = folder / "report.html"
    if is_finished(case, folder):
        typer.echo(f"nothing has changed since all stages were done; report: {report}")
        return
    from pipeline.stages.run import Run

    run = Run(case, folder)
    _need_observation(run)
    if dry_run:
        _say_what_is_to_do(run)
        return
    if site is not None:
        if not _on_a_cluster(run, site, at_a_time, detach):
            return
    else:
        _here(run)
    write_receipt(case, folder)
    typer.echo(f"report: {report}")


def _need_observation(run: Run) -> None:
    """Read the observed data that the last stages need, before the first one simulates for hours.

    Raises:
        InputError: missing, or not what the simulator takes.
    """
    from pipeline.stages.catalogue import open_catalogue

    if "infer" in run.stages:
        open_catalogue(run.simulator, run.observation_path())


def _here(run: Run) -> None:
    """All stages, one after the other, in this process."""
    from pipeline.workflow.drive import write_case

    write_case(run.case, run.folder)
    if run.case.rounds > 1:
        from pipeline.stages.rounds import learn_in_rounds

        perform("simulate", run)
        learn_in_rounds(run)
    for stage in run.stages:
        perform(stage, run)


def _say_what_is_to_do(run: Run) -> None:
    """A line a stage."""
    from pipeline.workflow.plan import needs, stage_of

    todo = {need.stage: need.why for need in needs(run, run.stages)}
    for stage in run.stages:
        parts = stage_of(run, stage).parts
        divided = f", in {parts} parts" if parts > 1 else ""
        typer.echo(f"{stage:<11} {f'would run{divided}: {todo[stage]}' if stage in todo else 'up to date'}")


def _on_a_cluster(run: Run, profile: Profile, at_a_time: int | None, detach: bool) -> bool:
    """Whether all stages are now done. Exit code 1 where a job failed."""
    from pipeline.workflow.drive import drive, jobs_of, record_workflow, write_case
    from pipeline.workflow.plan import needs, stage_of
    from pipeline.workflow.profile import write_profile

    todo = needs(run, run.stages)
    if not todo:
        return True
    write_case(run.case, run.folder)
    write_profile(profile, run.folder)
    record_workflow(run.folder)
    jobs = jobs_of(run.folder, {need.stage: stage_of(run, need.stage) for need in todo}, profile)
    done = drive(jobs, profile, at_a_time=at_a_time, detach=detach)
    if not done:
        typer.echo(
            f"not all jobs succeeded; `elboscope status {run.folder}` says which, the same command continues", err=True
        )
        raise typer.Exit(1)
    if detach:
        typer.echo(f"submitted; `elboscope status {run.folder}` says where it stands")
    return not detach


def status_command(
    folder: Annotated[Path, typer.Argument(help="folder of a run", metavar="RUN")],
    config: Annotated[
        Path | None, typer.Option("--config", help="the case, where its simulator is your own file: that file is run")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", help="the profile of your site: its command `queue` is run (default: a packaged one)"
        ),
    ] = None,
) -> None:
    """What is done, waits, runs and failed in a run, with the line of the log that says why.

    What lies in RUN is read and never run: neither a simulator of yours nor the queue command of a profile of yours,
    unless an option names it.

    Examples: elboscope status runs/k2_24

    elboscope status runs/mine --config mine.yaml --profile site.yaml
    """
    from pipeline.progress import console
    from pipeline.stages.run import Run
    from pipeline.store import refuse_own_code
    from pipeline.workflow.drive import CASE, jobs_of, saved_case
    from pipeline.workflow.plan import stage_of
    from pipeline.workflow.profile import KEPT, is_packaged, load_profile, saved_profile
    from pipeline.workflow.status import read_queue, standings

    case = saved_case(folder)
    if config is None:
        refuse_own_code(case, folder / CASE)
    else:
        case = case.model_copy(update={"simulator": case_of(config, None, None, None)[0].simulator})
    run = Run(case, folder)
    site = saved_profile(folder) if profile is None else load_profile(profile)
    jobs = jobs_of(folder, {stage: stage_of(run, stage) for stage in run.stages}, site)
    queue = site.queue
    if queue and profile is None and not is_packaged(site):
        console.print(f"the queue is not asked: its command is in {folder / KEPT}; --profile FILE names it")
        queue = ""
    rows = standings(run, jobs, read_queue(queue))
    width = max(len(row.name) for row in rows)
    for row in rows:
        typer.echo(f"{row.name:<{width}}  {row.state:<8} {row.note}".rstrip())


def profiles_command(
    name: Annotated[
        str | None, typer.Argument(help="a profile to print, to start your own from", metavar="[NAME]")
    ] = None,
) -> None:
    """Profiles of schedulers that come with the package.

    Example: elboscope profiles slurm > site.yaml
    """
    from pipeline.workflow.profile import shared_profiles

    known = shared_profiles()
    if name is None:
        for each, path in known.items():
            typer.echo(f"{each:<12} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
        return
    if name not in known:
        raise InputError(f"profiles {name}: expected one of {', '.join(known)}")
    typer.echo(known[name].read_text(encoding="utf-8"), nl=False)
