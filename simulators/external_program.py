r"""A program called once a draw: a command template, a time limit, its exit code and the end of its stderr.

A simulator around one:

    class Model:
        name, parameters, observables = "model", (...), (Observable("flux", (100,)),)
        batch = 64  # draws between two points at which a run may stop

        def simulate_with_reasons(self, theta, context=None, *, generator):
            program = ExternalProgram(("./model", "{mass}", "{seed}", "{folder}/flux.txt"), timeout_s=60)

            def one(values, seed):
                with program.run({"mass": values[0]}, seed=seed) as folder:
                    return {"flux": np.loadtxt(folder / "flux.txt")}

            return simulate_each(one, theta, self.observables, generator=generator)

        def simulate(self, theta, context=None, *, generator):
            return self.simulate_with_reasons(theta, context, generator=generator)[0]
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from simulators.failures import FailureCode, SimulationError

KEPT_STDERR = 400
"""Characters of the end of stderr that a reason keeps."""
STDERR = "stderr.txt"
STDOUT = "stdout.txt"


@dataclass(frozen=True)
class ExternalProgram:
    """How to call it.

    Attributes:
        command: the program and its arguments, no shell; `{name}` stands for a value (all 17 digits), `{seed}` for
            the seed of the draw, `{folder}` for its own empty folder, which is also where it runs.
        timeout_s: seconds after which it is killed with everything that it has started.
        environment: variables beside those of this process.
    """

    command: tuple[str, ...]
    timeout_s: float
    environment: Mapping[str, str] | None = None

    @contextmanager
    def run(self, values: Mapping[str, float], *, seed: int) -> Iterator[Path]:
        """Run it, and yield the folder with what it wrote, `stdout.txt` and `stderr.txt` included; gone afterwards.

        Raises:
            SimulationError: it could not be started, took too long, or ended with an exit code other than 0; and
                where what it wrote cannot be read in the block.
            ValueError: the template names a value that is not given.
        """
        with tempfile.TemporaryDirectory(prefix="elboscope-") as name:
            folder = Path(name)
            _run(self._arguments(values, seed, folder), self, folder)
            try:
                yield folder
            except (OSError, ValueError, LookupError) as error:
                raise SimulationError(
                    FailureCode.OUTPUT, f"{self.command[0]}: {type(error).__name__}: {error}"
                ) from error

    def _arguments(self, values: Mapping[str, float], seed: int, folder: Path) -> list[str]:
        fields = {k: repr(float(v)) for k, v in values.items()} | {"seed": str(seed), "folder": str(folder)}
        try:
            return [part.format_map(fields) for part in self.command]
        except KeyError as error:
            raise ValueError(
                f"command template {' '.join(self.command)!r}: {{{error.args[0]}}} is not one of {', '.join(fields)}"
            ) from None


def _run(arguments: list[str], program: ExternalProgram, folder: Path) -> None:
    """Output goes to files: a pipe that a forgotten grandchild holds open would outlast the time limit."""
    with (folder / STDOUT).open("wb") as out, (folder / STDERR).open("wb") as errors:
        try:
            process = subprocess.Popen(
                arguments,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=os.environ | dict(program.environment or {}),
                process_group=0,
            )
        except OSError as error:
            raise SimulationError(
                FailureCode.EXIT_CODE, f"{arguments[0]}: cannot be started: {error.strerror}"
            ) from None
        try:
            code = process.wait(program.timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also where this process is asked to stop
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code is None:
        raise SimulationError(
            FailureCode.TIME_LIMIT, f"{arguments[0]}: killed after {program.timeout_s:g} s{_said(folder)}"
        )
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        raise SimulationError(FailureCode.EXIT_CODE, f"{arguments[0]}: {how}{_said(folder)}")


def _said(folder: Path) -> str:
    text = (folder / STDERR).read_bytes().decode("utf-8", "replace").strip()[-KEPT_STDERR:]
    return f"; stderr: {text}" if text else ""
