"""Arguments that many commands share, and the run that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.settings import CaseSettings
    from pipeline.stages.run import Run

Config = Annotated[Path, typer.Argument(help="YAML file of the case", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="override a setting, e.g. --set train.steps=500", metavar="KEY=VALUE")
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="run folder (default: runs/<name of the case>)")]
Observation = Annotated[Path | None, typer.Option("--observation", help="observed data in place of the config's")]


def case_of(
    config: Path, overrides: list[str] | None, run_dir: Path | None, observation: Path | None
) -> tuple[CaseSettings, Path]:
    """The settings of a case and its run folder."""
    from pipeline.config import load_case
    from pipeline.datasets.cache import fetch_hint, fetched_or_path

    case = load_case(config, list(overrides or []))
    if observation is not None:
        given = fetched_or_path(str(observation))
        if not given.exists():
            raise InputError(f"--observation {given}: no such file{fetch_hint(given)}")
        case = case.model_copy(update={"observation": given.resolve()})
    return case, run_dir if run_dir is not None else Path("runs") / case.name


def case_of_model(path: Path, overrides: list[str]) -> CaseSettings:
    """The settings that a trained posterior carries, with what the command line says on top.

    Raises:
        InputError: not a model file of ours.
    """
    from pipeline.errors import InputError
    from pipeline.schema import SETTINGS
    from pipeline.store import read_safetensors_header, stored_case

    header = read_safetensors_header(path)
    if SETTINGS not in header:
        raise InputError(f"{path}: not a posterior trained by Elboscope")
    return stored_case(header[SETTINGS], path, overrides)


def run_of(config: Path, overrides: list[str] | None, run_dir: Path | None, observation: Path | None = None) -> Run:
    """The case of a config in its run folder."""
    case, folder = case_of(config, overrides, run_dir, observation)
    from pipeline.stages.run import Run

    return Run(case, folder)
