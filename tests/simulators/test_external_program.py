"""A program called once a draw: its values, its time limit, its exit code and what it said."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import load_case
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.store import open_hdf5
from simulators.external_program import ExternalProgram
from simulators.failures import FailureCode, SimulationError

PYTHON = sys.executable


def script(code: str, *arguments: str, timeout_s: float = 20) -> ExternalProgram:
    return ExternalProgram((PYTHON, "-S", "-c", code, *arguments), timeout_s=timeout_s)


def failure(program: ExternalProgram) -> SimulationError:
    with pytest.raises(SimulationError) as caught, program.run({}, seed=1):
        pass
    return caught.value


def test_values_arrive_with_all_digits_and_output_is_read_from_its_folder() -> None:
    program = script(
        "import sys; print(*sys.argv[1:]); open('out.txt', 'w').write(sys.argv[1])", "{mass}", "{seed}", "{folder}"
    )
    with program.run({"mass": 1 / 3}, seed=2**62) as folder:
        assert float((folder / "out.txt").read_text()) == 1 / 3
        assert (folder / "stdout.txt").read_text().split() == [repr(1 / 3), str(2**62), str(folder)]
    assert not folder.exists()


def test_exit_code_and_the_end_of_stderr_are_the_reason() -> None:
    error = failure(script("import sys; sys.stderr.write('x' * 1000 + 'no such opacity'); sys.exit(7)"))
    assert error.failure.code == FailureCode.EXIT_CODE
    assert "exit code 7; stderr: xxx" in error.failure.reason
    assert error.failure.reason.endswith("no such opacity")
    assert len(error.failure.reason) < 600


def test_a_signal_is_named() -> None:
    assert "killed by SIGSEGV" in failure(script("import os; os.kill(os.getpid(), 11)")).failure.reason


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import subprocess, sys; p = subprocess.Popen(['sleep', '600']); open({str(pid_file)!r}, 'w').write(str(p.pid)); p.wait()"
    started = time.monotonic()
    error = failure(script(code, timeout_s=4))  # a busy machine takes a second to start Python
    assert error.failure.code == FailureCode.TIME_LIMIT
    assert time.monotonic() - started < 300
    child = int(pid_file.read_text())
    for _ in range(1_000):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    os.kill(child, 9)
    pytest.fail("the grandchild lives on")


def test_a_program_that_is_not_there_and_output_that_cannot_be_read() -> None:
    assert "cannot be started" in failure(ExternalProgram(("/nowhere/model",), timeout_s=1)).failure.reason
    with pytest.raises(SimulationError) as caught, script("").run({}, seed=1) as folder:
        np.loadtxt(folder / "missing.txt")
    assert caught.value.failure.code == FailureCode.OUTPUT


def test_a_template_with_an_unknown_name_is_a_mistake_and_no_failure() -> None:
    with (
        pytest.raises(ValueError, match="{mas} is not one of mass, seed, folder"),
        script("", "{mas}").run({"mass": 1}, seed=1),
    ):
        pass


SIMULATOR = f"""
import numpy as np
from torch.distributions import Uniform
import torch
from simulators.external_program import ExternalProgram
from simulators.per_draw import simulate_each
from simulators.protocol import Observable, Parameter

CODE = "import sys; m = float(sys.argv[1]); sys.exit('too heavy') if m > 0.8 else print(m, 2 * m)"


class Model:
    name = "model"
    parameters = (Parameter("mass", Uniform(torch.tensor(0.0), torch.tensor(1.0))),)
    observables = (Observable("flux", (2,)),)
    batch = 4

    def simulate_with_reasons(self, theta, context=None, *, generator):
        program = ExternalProgram(({PYTHON!r}, "-S", "-c", CODE, "{{mass}}"), timeout_s=20)

        def one(values, seed):
            with program.run({{"mass": values[0]}}, seed=seed) as folder:
                return {{"flux": np.loadtxt(folder / "stdout.txt")}}

        return simulate_each(one, theta, self.observables, generator=generator)

    def simulate(self, theta, context=None, *, generator):
        return self.simulate_with_reasons(theta, context, generator=generator)[0]
"""


def test_a_simulator_around_a_program_keeps_reasons_in_its_shard(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(SIMULATOR, encoding="utf-8")
    (tmp_path / "case.yaml").write_text(
        "simulator: {name: Model, path: model.py}\nsimulate: {count: 20, held_out: 4, shard: 12, most_failed: 0.6}\n"
    )
    run = Run(load_case(tmp_path / "case.yaml"), tmp_path / "run")
    with open_hdf5(simulate(run)) as file:
        theta, codes, flux = (torch.from_numpy(file[name][...]) for name in ("theta", "failed", "x/flux"))
    heavy = theta[:, 0] > 0.8
    assert 0 < int(heavy.sum()) < 12
    assert torch.equal(codes, torch.where(heavy, int(FailureCode.EXIT_CODE), 0).to(torch.uint8))
    assert torch.equal(flux[~heavy], theta[~heavy] * torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    words = []
    for shard in sorted((run.folder / "simulations").glob("*.h5")):
        with open_hdf5(shard) as file:
            if "failures" in file:
                words += [r.decode() if isinstance(r, bytes) else r for r in file["failures/reason"][...]]
    assert len(words) == int(heavy.sum())
    assert all("exit code 1; stderr: too heavy" in w for w in words)
