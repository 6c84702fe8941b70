"""A profile: how one site's scheduler is asked to run, watch and cancel a job. A YAML file of a dozen lines."""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InputError
from simulators.reading.bounds import read_text
from simulators.reading.yaml_text import read_yaml, write_yaml

GROWING = ("minutes", "walltime")
FIXED = ("name", "stage", "log", "cores", "memory_mb", "nodes", "tasks", "gpus", "gpu_options")
PLACEHOLDERS = (*FIXED, *GROWING, "dependency")
KEPT = "workflow/profile.yaml"
SHARED = Path(str(files("pipeline.workflow"))) / "profiles"


class Profile(BaseModel):
    """One site."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    executor: Literal["cluster", "local"] = Field(default="cluster", description="local: processes of this machine")
    submit: str = Field(
        default="",
        description=f"shell command, followed by the job's script; prints the job's id. {{}}: {PLACEHOLDERS}",
    )
    status: str = Field(default="", description="command, followed by the id; prints running, success or failed")
    cancel: str = Field(default="", description="command, followed by ids")
    queue: str = Field(default="", description="command that lists the user's jobs: id, state and name, in columns")
    single: str = Field(default="", description="what {dependency} is: wait for earlier jobs of this name")
    after: str = Field(
        default="", description="what {dependency} is with --detach; {ids}: jobs that must succeed first"
    )
    separator: str = Field(default=":", description="between these ids")
    gpu_options: str = Field(default="", description="what {gpu_options} is where a stage asks for {gpus} a node")
    launch: str = Field(
        default="", description="put before a command that runs in several processes: {nodes}, {tasks} a node, {cores}"
    )
    requeue: str = Field(default="", description="command in a stopped job that puts it back into the queue")
    command: str = Field(default="", description="`elboscope` on a node, e.g. in a container; default: this Python")
    setup: str = Field(default="", description="shell lines at the start of every job, such as `module load python`")
    jobs: Annotated[int, Field(gt=0)] = Field(default=50, description="jobs in the queue at a time")
    retries: Annotated[int, Field(ge=0)] = Field(default=3, description="of a failed job, each with twice the time")
    most_minutes: Annotated[int, Field(ge=0)] = Field(default=0, description="no retry asks for more; 0: no limit")
    poll_seconds: Annotated[int, Field(gt=0)] = Field(default=10, description="between two looks at the queue")

    def submit_command(self, *, detach: bool) -> str:
        """The submit command in Snakemake's placeholders; with `detach`, waiting for the jobs it depends on.

        Raises:
            InputError: this profile cannot express dependencies.
        """
        known = {n: f"{{params.{n}:q}}" for n in FIXED} | {n: f"{{resources.{n}}}" for n in GROWING}
        known["gpu_options"] = "{params.gpu_options}"
        if not detach:
            return self.submit.format_map(known | {"dependency": self.single})
        if not self.after or "{dependency}" not in self.submit:
            raise InputError("--detach: this profile has no `after`, or no {dependency} in `submit`; run without it")
        waits = self.after.format(ids="$ids")
        ids = f"ids=$(echo {{dependencies}} | tr ' ' '{self.separator}')"
        choice = f'if [ -n "$ids" ]; then wait="{waits}"; else wait="{self.single}"; fi'
        return f"{ids}; {choice}; {self.submit.format_map(known | {'dependency': '$wait'})}"


def shared_profiles() -> Mapping[str, Path]:
    """Profiles that come with the package, by name."""
    return {path.stem: path for path in sorted(SHARED.glob("*.yaml"))}


def load_profile(name: str) -> Profile:
    """A profile by its name, or from a file.

    Raises:
        InputError: no such profile, or a line of it is wrong.
    """
    path = shared_profiles().get(name, Path(name))
    if not path.exists():
        known = ", ".join(shared_profiles())
        raise InputError(f"--profile {name}: no such file, and not one of {known}")
    values = read_yaml(read_text(path), str(path))
    try:
        profile = Profile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = f"; known here: {', '.join(Profile.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise InputError(f"{path}: {key}: {first['msg']}{known}") from None
    _check(profile, path)
    script, _, rest = profile.status.partition(" ")
    if script and (SHARED.parent / script).is_file():
        return profile.model_copy(update={"status": f"bash {shlex.quote(str(SHARED.parent / script))} {rest}".strip()})
    return profile


def write_profile(profile: Profile, folder: Path) -> None:
    """Keep the profile in the run folder, for `elboscope status`; `drive.record_workflow` follows."""
    from pipeline.store import write_text  # torch

    write_text(folder / KEPT, write_yaml(profile.model_dump()))


def saved_profile(folder: Path) -> Profile:
    """The profile that a run was last submitted with; that of this machine where it never was."""
    from pipeline.store import check_sum  # torch

    if not (folder / KEPT).is_file():
        return load_profile("local")
    check_sum(folder / KEPT)
    return load_profile(str(folder / KEPT))


def is_packaged(profile: Profile) -> bool:
    """Whether the package has a profile with the same commands."""
    return any(load_profile(name).queue == profile.queue for name in shared_profiles())


def _check(profile: Profile, path: Path) -> None:
    """Refuse a cluster profile that cannot work."""
    if profile.executor == "local":
        return
    for name in ("submit", "status", "cancel"):
        if not getattr(profile, name):
            raise InputError(f"{path}: {name}: required where executor is cluster")
    used = {"submit": PLACEHOLDERS, "after": ("ids",), "gpu_options": ("gpus",), "launch": ("nodes", "tasks", "cores")}
    for name, allowed in used.items():
        try:
            fields = {f for _, f, _, _ in string.Formatter().parse(getattr(profile, name)) if f is not None}
        except ValueError as error:
            raise InputError(f"{path}: {name}: {error}; write {{{{ and }}}} for braces of the shell") from None
        if unknown := sorted(fields - set(allowed)):
            expected = ", ".join(f"{{{a}}}" for a in allowed)
            raise InputError(
                f"{path}: {name}: unknown {{{unknown[0]}}}; expected {expected} ({{{{ and }}}} for the shell's own)"
            )
