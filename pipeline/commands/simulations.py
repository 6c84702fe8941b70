"""Commands on simulations: make them, and check what lies in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import Config, Observation, Overrides, RunDir, run_of
from pipeline.errors import InputError


def register(app: typer.Typer) -> None:
    """Add `simulate` and `verify`."""
    app.command("simulate")(simulate_command)
    app.command("verify")(verify_command)


def simulate_command(
    config: Config,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    observation: Observation = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="only the shards i with i % N = I, not linked; I from 0 to N-1", metavar="I/N"),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="only link the shards; says which are missing")] = False,
    add: Annotated[
        int, typer.Option("--add", min=0, help="extend a finished set by so many, in new shards", metavar="N")
    ] = 0,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="processes (default: chosen by the work left)", metavar="W")
    ] = None,
) -> None:
    """Draw parameters and data into HDF5; a killed run continues, and only what is missing is made.

    Examples: elboscope simulate configs/k2_24.yaml --workers 8

    elboscope simulate configs/k2_24.yaml --shard 3/16    # anywhere; when all 16 are done: --merge

    elboscope simulate configs/k2_24.yaml --add 100000
    """
    from pipeline.stages.parts import share_of
    from pipeline.stages.run import hold
    from pipeline.stages.simulate import simulate

    if sum((shard is not None, merge, add > 0)) > 1:
        raise InputError(
            "simulate: --shard, --merge and --add exclude each other; on a cluster raise simulate.count in place of --add"
        )
    run = run_of(config, overrides, run_dir, observation)
    if shard is not None:  # beside others like it: their shards are not its own
        with hold(run, "simulate", shared=True):
            simulate(run, part=share_of(shard), workers=workers)
        return
    with hold(run, "simulate"):
        simulate(run, merge=merge, add=add, workers=workers)


def verify_command(
    folder: Annotated[Path, typer.Argument(help="run folder", metavar="RUN")],
    repair: Annotated[
        bool, typer.Option("--repair", help="simulate bad shards again, link them, set other bad files aside")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="case of the run; --repair needs it where the simulator is your own file"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Read every byte of a run: checksums, row counts, links, content keys. Exit code 2 if anything is bad.

    Examples: elboscope verify runs/k2_24

    elboscope verify runs/k2_24 --repair
    """
    from pipeline.config import load_case
    from pipeline.stages.verify import verify

    verify(folder, repair=repair, case=load_case(config, list(overrides or [])) if config else None)
