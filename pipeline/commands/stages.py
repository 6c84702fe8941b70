"""Commands that run one stage of a case, and those that take any trained posterior."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import Config, Observation, Overrides, RunDir, case_of_model, run_of
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.stages.run import Run

PartOption = Annotated[
    str | None,
    typer.Option("--part", help="only the parts i with i % N == I; then the same without it", metavar="I/N"),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    _stage_command(app, "likelihood", "Learn p(x | theta) from the simulations, where the simulator has no likelihood.")
    app.command("train")(train_command)
    _divisible_command(app, "validate", "Calibration on held-out simulations: SBC ranks and TARP coverage.")
    _divisible_command(app, "compare", "emcee and nautilus on the same likelihood and prior.")
    _stage_command(app, "report", "One self-contained HTML page.")
    app.command("infer")(infer_command)
    app.command("check")(check_command)
    app.command("combine")(combine_command)


def perform(stage: str, run: Run, *, share: tuple[int, int] | None = None) -> Path:
    """Run a stage while no other process writes what it reads or writes; parts of it go beside each other.

    Of processes that train together one holds the run folder: the one that has started them, or the first of a launcher's.
    """
    import importlib
    from contextlib import nullcontext

    from pipeline.stages.run import hold

    function = getattr(importlib.import_module(f"pipeline.stages.{stage}"), stage)
    held = stage == "train" and _is_held_by_another()
    with nullcontext() if held else hold(run, stage, shared=share is not None):
        return function(run) if share is None else function(run, share=share)


def _is_held_by_another() -> bool:
    from pipeline.training.launch import LAUNCHED
    from pipeline.training.together import variables

    return LAUNCHED in os.environ or variables(os.environ).get("RANK", "0") != "0"


def _stage_command(app: typer.Typer, name: str, summary: str) -> None:
    def command(
        config: Config, overrides: Overrides = None, run_dir: RunDir = None, observation: Observation = None
    ) -> None:
        perform(name, run_of(config, overrides, run_dir, observation))

    command.__doc__ = f"{summary}\n\nExample: elboscope {name} configs/k2_24.yaml"
    app.command(name)(command)


def _divisible_command(app: typer.Typer, name: str, summary: str) -> None:
    """A stage whose work several jobs can share."""

    def command(
        config: Config,
        overrides: Overrides = None,
        run_dir: RunDir = None,
        observation: Observation = None,
        part: PartOption = None,
    ) -> None:
        perform(name, run_of(config, overrides, run_dir, observation), share=_share(part))

    command.__doc__ = f"{summary}\n\nExample: elboscope {name} configs/k2_24.yaml"
    app.command(name)(command)


def train_command(
    config: Config,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    observation: Observation = None,
    devices: Annotated[
        str | None, typer.Option("--devices", help="processes that train together on this machine, or auto: one a GPU")
    ] = None,
    number: Annotated[int, typer.Option("--round", hidden=True)] = 0,
) -> None:
    """Train the normalizing flow on the ELBO; a killed run continues. Under srun or torchrun all processes train together.

    Examples: elboscope train configs/k2_24.yaml

    srun --ntasks-per-node 4 elboscope train configs/k2_24.yaml
    """
    from dataclasses import replace

    settings = [*(overrides or []), *([] if devices is None else [f"train.devices={devices}"])]
    perform("train", replace(run_of(config, settings, run_dir, observation), round=number))


def _share(part: str | None) -> tuple[int, int] | None:
    from pipeline.stages.parts import share_of

    return None if part is None else share_of(part)


def infer_command(
    source: Annotated[
        Path, typer.Argument(help="CONFIG of a run, or a trained posterior.safetensors", metavar="CONFIG|POSTERIOR")
    ],
    observations: Annotated[
        Path | None, typer.Argument(help="observed data, with a POSTERIOR", metavar="[OBSERVATIONS]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="output file, with a POSTERIOR")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="case whose simulator and infer settings are used, with a POSTERIOR")
    ] = None,
    refine: Annotated[
        bool | None, typer.Option("--refine/--no-refine", help="fine-tune q on each observation, always or never")
    ] = None,
    draws: Annotated[int | None, typer.Option("--draws", help="draws delivered for each observation")] = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    observation: Observation = None,
    part: PartOption = None,
) -> None:
    """Posteriors with certificates, inside a run or for any observations.

    Examples: elboscope infer configs/k2_24.yaml

    elboscope infer runs/k2_24/posterior.safetensors stars.h5 --out inference.h5
    """
    settings = list(overrides or [])
    if refine is not None:
        settings.append(f"infer.refine.when={'always' if refine else 'never'}")
    if draws is not None:
        settings.append(f"infer.draws={draws}")
    if source.suffix != ".safetensors":
        if observations is not None or out is not None:
            raise InputError(
                "infer CONFIG takes --observation FILE and --run-dir DIR; OBSERVATIONS and --out go with a POSTERIOR"
            )
        perform("infer", run_of(source, settings, run_dir, observation), share=_share(part))
        return
    observations = observations or observation
    if part is not None:
        raise InputError("--part goes with a CONFIG")
    if observations is None or out is None:
        raise InputError(f"infer {source}: expected OBSERVATIONS and --out FILE after a posterior")
    _infer_observations(source, observations, out, config, settings)


def _infer_observations(source: Path, observations: Path, out: Path, config: Path | None, overrides: list[str]) -> None:
    from pipeline.stages.infer import infer_observations
    from pipeline.stages.run import Run

    case, resolved = _case_of_posterior(source, config, overrides)
    device = Run(resolved, out.parent).device
    infer_observations(source, observations, out, settings=resolved.infer, case=case, seed=resolved.seed, device=device)


def _case_of_posterior(source: Path, config: Path | None, overrides: list[str]) -> tuple[Any, Any]:
    """The case that `config` names, or None; and the settings to use: those, or the ones stored in the posterior."""
    from pipeline.config import load_case

    if config is not None:
        case = load_case(config, overrides)
        return case, case
    return None, case_of_model(source, overrides)


def check_command(config: Config, overrides: Overrides = None, observation: Observation = None) -> None:
    """Read a case, build its simulator, draw and weigh a few simulations: find mistakes before the cluster does.

    Example: elboscope check configs/k2_24.yaml
    """
    from pipeline.stages.check import check

    check(run_of(config, overrides, None, observation))


def combine_command(
    source: Annotated[Path, typer.Argument(help="a trained posterior.safetensors", metavar="POSTERIOR")],
    observations: Annotated[
        Path, typer.Argument(help="observed data of one object, a row an observation", metavar="OBSERVATIONS")
    ],
    out: Annotated[Path, typer.Option("--out", help="output file")],
    config: Annotated[
        Path | None, typer.Option("--config", help="case whose simulator and infer settings are used")
    ] = None,
    draws: Annotated[int | None, typer.Option("--draws", help="draws delivered")] = None,
    overrides: Overrides = None,
) -> None:
    """One posterior from repeated observations of one object, with a certificate.

    All rows of OBSERVATIONS share one theta. The evidence is that of all rows together.

    Example: elboscope combine runs/k2_24/posterior.safetensors seasons.h5 --out combined.h5
    """
    from pipeline.stages.combine import combine_observations
    from pipeline.stages.run import Run

    settings = [*(overrides or []), *([] if draws is None else [f"infer.draws={draws}"])]
    case, resolved = _case_of_posterior(source, config, settings)
    device = Run(resolved, out.parent).device
    combine_observations(
        source, observations, out, settings=resolved.infer, case=case, seed=resolved.seed, device=device
    )
