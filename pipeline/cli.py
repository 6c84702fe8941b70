"""The command `elboscope`. Imports nothing heavy: a stage is imported when it is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.commands import data, proposals, results, simulations, stages, workflow
from pipeline.errors import InputError, simulator_fault

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
for area in (workflow, simulations, proposals, stages, results, data):
    area.register(app)


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
        line = simulator_fault(error)
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
