"""The command `elboscope`. Imports nothing heavy: a stage is imported when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipeline.commands import proposals
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

proposals.register(app)

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
    from pipeline.stages.infer import infer_observations
    from pipeline.stages.run import Run

    case, resolved = _case_of_posterior(source, config, overrides)
    device = Run(resolved, out.parent).device
    infer_observations(source, observations, out, settings=resolved.infer, case=case, seed=resolved.seed, device=device)


def _case_of_posterior(source: Path, config: Path | None, overrides: list[str]) -> tuple[Any, Any]:
    """The case that `config` names, or None; and the settings to use: those, or the ones stored in the posterior."""
    import json

    from pipeline.config import case_from_values, load_case, override_values
    from pipeline.schema import SETTINGS
    from pipeline.store import read_safetensors_header

    if config is not None:
        case = load_case(config, overrides)
        return case, case
    header = read_safetensors_header(source)
    if SETTINGS not in header:
        raise InputError(f"{source}: not a posterior trained by Elboscope")
    return None, case_from_values(override_values(json.loads(header[SETTINGS]), overrides), str(source))


@app.command("check")
def check_command(config: Config, overrides: Overrides = None, observation: Observation = None) -> None:
    """Read a case, build its simulator, draw and weigh a few simulations: find mistakes before the cluster does.

    Example: elboscope check configs/k2_24.yaml
    """
    from pipeline.stages.check import check

    check(_run(config, overrides, None, observation))


@app.command("combine")
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


@app.command("population")
def population_command(
    inference: Annotated[Path, typer.Argument(help="file written by `elboscope infer`", metavar="INFERENCE")],
    settings: Annotated[Path, typer.Argument(help="YAML of families and hyperpriors", metavar="POPULATION")],
    out: Annotated[Path, typer.Option("--out", help="output file")],
    config: Annotated[
        Path | None, typer.Option("--config", help="case that names the simulator, where it is your own file")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="refuse a catalogue in which an observation has failed")
    ] = False,
) -> None:
    """Hyperparameters of the population that the observations of a catalogue come from.

    The delivered draws are reweighted; no likelihood is evaluated. Refused, with the reason, where the weights are not
    to be trusted. No selection function: the catalogue must be a fair sample.

    Example: elboscope population inference.h5 population.yaml --out population.h5
    """
    from pipeline.config import load_case
    from pipeline.stages.population import population
    from pipeline.stages.population_settings import load_population

    case = load_case(config) if config else None
    population(inference, load_population(settings), out, case=case, strict=strict)


@app.command("show")
def show_command(file: Annotated[Path, typer.Argument(help="a file of a run: .h5 or .safetensors")]) -> None:
    """What is in a file, without loading it: names, shapes, units, settings, provenance.

    Example: elboscope show runs/k2_24/inference.h5
    """
    from pipeline.stages.show import show

    show(file)


Inference = Annotated[Path, typer.Argument(help="file written by `elboscope infer`", metavar="INFERENCE")]
Chosen = Annotated[
    list[str] | None, typer.Option("--observation", help="identifier; may be given several times", metavar="ID")
]


@app.command("export")
def export_command(
    file: Inference,
    out: Annotated[Path, typer.Option("--out", help="file to write, .ecsv, .fits or .csv; for getdist a root")],
    chosen: Chosen = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="ecsv, fits, csv, draws or getdist (default: by the suffix of --out)"),
    ] = None,
) -> None:
    """Posteriors as a table or as chains.

    ecsv, fits, csv: one row an observation, with verdict, mean, standard deviation and quantiles of each parameter in its
    unit, and every number of the certificate. draws: one row a delivered draw. getdist: chains for
    getdist.loadMCSamples; several observations have a root each, OUT_<id>.

    Examples: elboscope export runs/k2_24/inference.h5 --out k2_24.ecsv

    elboscope export inference.h5 --format draws --observation star-1 --out star-1.fits

    elboscope export inference.h5 --format getdist --observation star-1 --out chains/star-1
    """
    from pipeline.stages.export import export

    export(file, out, format=format, observations=chosen)


@app.command("evidence")
def evidence_command(
    files: Annotated[list[Path], typer.Argument(help="two or more files of `elboscope infer`", metavar="A B [C ...]")],
    names: Annotated[
        list[str] | None, typer.Option("--name", help="name of a model, one a file, in their order", metavar="NAME")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="whole table, .ecsv, .fits or .csv")] = None,
) -> None:
    """Log evidences of the same observations under several models, and log Bayes factors against the first.

    All files must be of the same data in the same units, which is checked. An evidence depends on the prior: a
    parameter whose prior is ten times wider than the posterior needs costs its model up to 2.3 nats. Files made
    with a learned likelihood are not comparable. Errors are those of the importance sampling, in quadrature.

    Example: elboscope evidence runs/one_planet/inference.h5 runs/two_planets/inference.h5
    """
    from pipeline.stages.evidence import evidence

    evidence(files, names=names, output=out)


@app.command("plot")
def plot_command(
    file: Inference,
    out: Annotated[Path, typer.Option("--out", help="figure to write: .png, .pdf or .svg")],
    chosen: Chosen = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", help="of the corner plot; may be given several times; default: all", metavar="NAME"
        ),
    ] = None,
) -> None:
    """Corner plots of chosen observations, or, where none is named, a figure of the whole catalogue.

    Up to three observations lie on top of each other; more have a file each, OUT_<id>.

    Examples: elboscope plot inference.h5 --observation star-1 --out corner.png

    elboscope plot inference.h5 --out catalogue.png
    """
    from pipeline.stages.plot import plot

    plot(file, out, observations=chosen, parameters=parameters)


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
