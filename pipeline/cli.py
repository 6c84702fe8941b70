"""The command `elboscope`. Imports nothing heavy: a stage is imported when it is called."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.commands import data, proposals, results, simulations, stages, workflow
from pipeline.errors import InputError, one_line, simulator_fault

# Threads of libgomp spin for a few milliseconds when they wait for each other. On a machine that is shared, with
# networks as small as these, that made training up to 17 times slower; 2,000 turns cost nothing where it is quiet.
# libgomp reads it once, so it is set before torch is imported. A value that the user has set stands.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

TRACEBACK = "ELBOSCOPE_TRACEBACK"
"""Environment variable; where it is set, the traceback comes before the line."""

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
    """Entry point: one line and exit code 2 for bad input, 128 + signal where a signal stopped the run.

    What no boundary has turned into one line is a fault of this program, and keeps its traceback.
    """
    from pipeline.interrupt import Interrupted, handle_signals

    try:
        with handle_signals():
            app(standalone_mode=True)
    except Interrupted as error:
        typer.echo(f"stopped by {error}; run the same command to continue", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("stopped at once; run the same command to continue from the last saved state", err=True)
        sys.exit(130)
    except Exception as error:
        line = said_in_one_line(error)
        if line is None:
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        typer.echo(f"error: {one_line(line)}", err=True)
        sys.exit(2)
    sys.exit(0)


def said_in_one_line(error: Exception) -> str | None:
    """What a user can change, in words: bad input, their own simulator, or the machine; None: a fault of this program."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"memory ran out ({error})" if str(error) else "memory ran out"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "this process may start no more threads: raise the limit on processes (`ulimit -u`)"
    if isinstance(error, OSError) and error.errno is not None:  # the operating system's own words: a full disk, a limit
        return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)
    return simulator_fault(error)


if __name__ == "__main__":
    main()
