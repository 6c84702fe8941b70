"""The command `elboscope`. Imports nothing heavy: a stage is imported when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipeline.errors import InputError

# Threads of libgomp spin for a few milliseconds when they wait for each other. On a machine that is shared, with
# networks as small as these, that made training up to 17 times slower; 2,000 turns cost nothing where it is quiet.
# libgomp reads it once, so it is set before torch is imported. A value that the user has set stands.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

app = typer.Typer(
    help="Amortized posteriors trained on the evidence lower bound, each with its measured gap to the evidence.\n\nExample: elboscope run configs/k2_24.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path, typer.Argument(help="YAML file of the case", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="override a setting, e.g. --set train.steps=500", metavar="KEY=VALUE")
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="run folder (default: runs/<name of the case>)")]
Observation = Annotated[Path | None, typer.Option("--observation", help="observed data in place of the config's")]


@app.command("run")
def run_command(
    config: Config, overrides: Overrides = None, run_dir: RunDir = None, observation: Observation = None
) -> None:
    """All stages in order. What is up to date is not done again. Without an observation: train and validate.

    Example: elboscope run configs/k2_24.yaml
    """
    from pipeline.stages.run import OUTPUTS

    run = _run(config, overrides, run_dir, observation)
    for stage in run.stages:
        _stage(stage)(run)
    typer.echo(f"report: {run.folder / OUTPUTS['report']}")


def _stage(name: str) -> Callable[[Any], Path]:
    import importlib

    return getattr(importlib.import_module(f"pipeline.stages.{name}"), name)


def _stage_command(name: str, summary: str) -> None:
    def command(
        config: Config, overrides: Overrides = None, run_dir: RunDir = None, observation: Observation = None
    ) -> None:
        _stage(name)(_run(config, overrides, run_dir, observation))

    command.__doc__ = f"{summary}\n\nExample: elboscope {name} configs/k2_24.yaml"
    app.command(name)(command)


_stage_command("simulate", "Draw parameters and data into HDF5; a killed run continues.")
_stage_command("train", "Train the normalizing flow on the ELBO; a killed run continues.")
_stage_command("validate", "Calibration on held-out simulations: SBC ranks and TARP coverage.")
_stage_command("compare", "emcee and nautilus on the same likelihood and prior.")
_stage_command("report", "One self-contained HTML page.")


@app.command("infer")
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
        from pipeline.stages.infer import infer

        if observations is not None or out is not None:
            raise InputError(
                "infer CONFIG takes --observation FILE and --run-dir DIR; OBSERVATIONS and --out go with a POSTERIOR"
            )
        infer(_run(source, settings, run_dir, observation))
        return
    observations = observations or observation
    if observations is None or out is None:
        raise InputError(f"infer {source}: expected OBSERVATIONS and --out FILE after a posterior")
    _infer_observations(source, observations, out, config, settings)


def _infer_observations(source: Path, observations: Path, out: Path, config: Path | None, overrides: list[str]) -> None:
    import json

    from pipeline.config import case_from_values, load_case, override_values
    from pipeline.schema import SETTINGS
    from pipeline.stages.infer import infer_observations
    from pipeline.stages.run import Run
    from pipeline.store import read_safetensors_header

    case = load_case(config, overrides) if config else None
    resolved = case
    if resolved is None:
        header = read_safetensors_header(source)
        if SETTINGS not in header:
            raise InputError(f"{source}: not a posterior trained by Elboscope")
        resolved = case_from_values(override_values(json.loads(header[SETTINGS]), overrides), str(source))
    device = Run(resolved, out.parent).device
    infer_observations(source, observations, out, settings=resolved.infer, case=case, seed=resolved.seed, device=device)


@app.command("check")
def check_command(config: Config, overrides: Overrides = None, observation: Observation = None) -> None:
    """Read a case, build its simulator, draw and weigh a few simulations: find mistakes before the cluster does.

    Example: elboscope check configs/k2_24.yaml
    """
    from pipeline.stages.check import check

    check(_run(config, overrides, None, observation))


@app.command("show")
def show_command(file: Annotated[Path, typer.Argument(help="a file of a run: .h5 or .safetensors")]) -> None:
    """What is in a file, without loading it: names, shapes, units, settings, provenance.

    Example: elboscope show runs/k2_24/inference.h5
    """
    from pipeline.stages.show import show

    show(file)


@app.command("simulators")
def simulators_command() -> None:
    """Registered simulators.

    Example: elboscope simulators
    """
    from simulators.registry import available, load_class

    for name, target in sorted(available().items()):
        summary = (load_class(name).__doc__ or "").strip().splitlines()
        typer.echo(f"{name:<18} {summary[0] if summary else ''}  [{target}]")


@app.command("schema")
def schema_command(
    out: Annotated[Path | None, typer.Option("--out", help="file to write; default: the terminal")] = None,
) -> None:
    """JSON schema of a case, for editors that complete and check YAML.

    Example: elboscope schema --out configs/case.schema.json
    """
    import json

    from pipeline.config import json_schema

    text = json.dumps(json_schema(), indent=1) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    from pipeline.store import write_text

    write_text(out, text)


def _run(config: Path, overrides: list[str] | None, run_dir: Path | None, observation: Path | None) -> Any:
    from pipeline.config import load_case
    from pipeline.stages.run import Run

    case = load_case(config, list(overrides or []))
    if observation is not None:
        case = case.model_copy(update={"observation": observation.resolve()})
    return Run(case, run_dir if run_dir is not None else Path("runs") / case.name)


def _of_the_simulator(error: Exception) -> str | None:
    """One line for an error that a user's own simulator raised, or that the contract of simulators did; else None."""
    import traceback

    problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    frames = traceback.extract_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame, module in zip(reversed(frames), reversed(modules), strict=True):
        if module.startswith("elboscope_user_simulator_"):
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}: {problem}"
    return str(error) if modules[-1:] == ["simulators.protocol"] else None


def main() -> NoReturn:
    """Entry point: one line and exit code 2 for bad input, 128 + signal where a signal stopped the run."""
    from pipeline.interrupt import Interrupted, handle_signals

    try:
        with handle_signals():
            app(standalone_mode=True)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError) as error:
        line = _of_the_simulator(error)
        if line is None:
            raise
        typer.echo(f"error: {line}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise  # not about a file of the user
        typer.echo(f"error: {error.filename}: {error.strerror}", err=True)
        sys.exit(2)
    except Interrupted as error:
        typer.echo(f"stopped by {error}; run the same command to continue", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("stopped at once; run the same command to continue from the last saved state", err=True)
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
