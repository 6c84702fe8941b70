"""`propose`: from where to draw theta for training, read off the observation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("propose")(propose_command)


def propose_command(
    config: Annotated[Path, typer.Argument(help="YAML file of the case", metavar="CONFIG")],
    observation: Annotated[
        Path | None, typer.Option("--observation", help="observed data in place of the config's")
    ] = None,
    widths: Annotated[float, typer.Option("--widths", help="half the range of each parameter, in its scale")] = 5.0,
) -> None:
    """Print a `simulate.proposal` around the simulator's first guess (`pilot`) of the observation, for the config.

    Example: elboscope propose configs/hd164922.yaml
    """
    from pipeline.config import load_case
    from pipeline.stages.propose import proposal_yaml
    from pipeline.stages.run import Run

    case = load_case(config, [])
    if observation is not None:
        case = case.model_copy(update={"observation": observation.resolve()})
    typer.echo(proposal_yaml(Run(case, Path("runs") / case.name), widths=widths), nl=False)
