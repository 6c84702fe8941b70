"""Commands on what was inferred: show, export, compare, plot, and populations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Inference = Annotated[Path, typer.Argument(help="file written by `elboscope infer`", metavar="INFERENCE")]
Chosen = Annotated[
    list[str] | None, typer.Option("--observation", help="identifier; may be given several times", metavar="ID")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("show")(show_command)
    app.command("export")(export_command)
    app.command("evidence")(evidence_command)
    app.command("plot")(plot_command)
    app.command("population")(population_command)


def show_command(file: Annotated[Path, typer.Argument(help="a file of a run: .h5 or .safetensors")]) -> None:
    """What is in a file, without loading it: names, shapes, units, settings, provenance.

    Example: elboscope show runs/k2_24/inference.h5
    """
    from pipeline.stages.show import show

    show(file)


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


def evidence_command(
    files: Annotated[list[Path], typer.Argument(help="two or more files of `elboscope infer`", metavar="A B [C ...]")],
    names: Annotated[
        list[str] | None, typer.Option("--name", help="name of a model, one a file, in their order", metavar="NAME")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="whole table, .ecsv, .fits or .csv")] = None,
) -> None:
    """Log evidences of the same observations under several models, and log Bayes factors against the first.

    All files must be of the same data in the same units, which is checked. An evidence depends on the prior: a
    parameter whose prior is ten times wider than the posterior needs costs its model up to 2.3 nats. With a
    learned likelihood both must have the same summary (likelihood.summary.file). Errors are added in quadrature.

    Example: elboscope evidence runs/one_planet/inference.h5 runs/two_planets/inference.h5
    """
    from pipeline.stages.evidence import evidence

    evidence(files, names=names, output=out)


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
