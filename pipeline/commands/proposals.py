"""`propose`: from where to draw theta for training, read off the observation."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.options import Config, Observation, Overrides, RunDir, run_of


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("propose")(propose_command)


def propose_command(
    config: Config,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    observation: Observation = None,
    widths: Annotated[float, typer.Option("--widths", help="half the range of each parameter, in its scale")] = 5.0,
) -> None:
    """Print a `simulate.proposal` around the simulator's first guess (`pilot`) of the observation, for the config.

    Example: elboscope propose configs/hd164922.yaml
    """
    from pipeline.stages.propose import proposal_yaml

    typer.echo(proposal_yaml(run_of(config, overrides, run_dir, observation), widths=widths), nl=False)
