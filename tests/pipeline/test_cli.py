"""The command as a user runs it: killed, resumed, and given bad input; in a process of its own where that is what matters."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import h5py
import pytest
import torch

from pipeline.cli import main
from pipeline.store import hdf5_content_digest, read_safetensors, write_data
from simulators.linear_gaussian import LinearGaussian
from tests.pipeline.stages.conftest import CASE, write_case

# enough shards and steps that a kill finds the stage at work
SLOW_ENOUGH = {
    "simulate": {"count": 200_000, "held_out": 1_000, "shard": 2_000},
    "train": CASE["train"]
    | {
        "phases": [
            {"objective": "forward_kl", "steps": 150, "learning_rate": 3e-3, "batch": 256},
            {"objective": "elbo", "steps": 150, "learning_rate": 2e-3, "batch": 256},
        ],
        "checkpoint_every": 20,
    },
}
ELBOSCOPE = [sys.executable, "-m", "pipeline.cli"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def elboscope(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in this process: a process of its own would import torch each time, for 3 s."""
    command = ["elboscope", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            main()
    assert isinstance(end.value.code, int)
    return subprocess.CompletedProcess(command, end.value.code, out.getvalue(), err.getvalue())


def program(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [*ELBOSCOPE, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def kill_when(reached: Callable[[], bool], *arguments: str | Path, cwd: Path, number: int) -> int:
    """Start a command, send a signal once something is reached, return its exit code."""
    process = subprocess.Popen(
        [*ELBOSCOPE, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 600  # a machine may be busy with other things
    while not reached():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(timeout=600)


def run_content(folder: Path) -> dict[str, object]:
    """Everything in a run folder that is content: datasets, attributes, weights, training log."""
    tensors, header = read_safetensors(folder / "posterior.safetensors")
    shards = sorted((folder / "simulations").glob("shard-*.h5"))
    return {
        "simulations": hdf5_content_digest(folder / "simulations.h5"),
        "shards": [hdf5_content_digest(s) for s in shards],
        "weights": {k: v.numpy().tobytes() for k, v in tensors.items()},
        "header": {k: v for k, v in header.items() if k != "provenance"},
        "training log": (folder / "training.csv").read_text(),
    }


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    case = write_case(tmp_path, SLOW_ENOUGH)
    for stage in ("simulate", "train"):
        done = elboscope(stage, case, "--run-dir", "whole", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    killed = tmp_path / "killed"
    shards = killed / "simulations"
    code = kill_when(
        lambda: len(list(shards.glob("shard-*.h5"))) > 20,
        "simulate",
        case,
        "--run-dir",
        "killed",
        cwd=tmp_path,
        number=signal.SIGKILL,
    )
    assert code == -signal.SIGKILL
    assert not (killed / "simulations.h5").exists()
    kept = len(list(shards.glob("shard-*.h5")))
    assert 20 < kept < 101
    assert elboscope("simulate", case, "--run-dir", "killed", cwd=tmp_path).returncode == 0
    checkpoints = killed / "checkpoints"
    for phase in (0, 1):  # once in each phase
        checkpoint = checkpoints / f"phase-{phase}.ckpt"
        code = kill_when(checkpoint.exists, "train", case, "--run-dir", "killed", cwd=tmp_path, number=signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert checkpoint.exists()
        assert not (killed / "posterior.safetensors").exists()
    assert elboscope("train", case, "--run-dir", "killed", cwd=tmp_path).returncode == 0
    whole, resumed = run_content(tmp_path / "whole"), run_content(killed)
    for name, value in whole.items():
        assert resumed[name] == value, name


def signalled(reached: Callable[[], bool], *arguments: str | Path, cwd: Path, number: int) -> int:
    """As `kill_when`, in this process."""
    ended = threading.Event()

    def wait() -> None:
        while not (reached() or ended.wait(0.002)):
            pass
        if not ended.is_set():
            os.kill(os.getpid(), number)

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        return elboscope(*arguments, cwd=cwd).returncode
    finally:
        ended.set()
        waiting.join()


@pytest.mark.parametrize(
    ("send", "number", "code"),
    [(kill_when, signal.SIGTERM, 143), (signalled, signal.SIGINT, 130), (signalled, signal.SIGUSR1, 75)],
)
def test_a_signal_leaves_a_resumable_state(tmp_path: Path, send: Callable[..., int], number: int, code: int) -> None:
    case = write_case(tmp_path)
    assert elboscope("simulate", case, "--run-dir", "run", cwd=tmp_path).returncode == 0
    checkpoint = tmp_path / "run/checkpoints/phase-0.ckpt"
    long = ("train", case, "--run-dir", "run", "--set", "train.steps=10000")
    assert send(checkpoint.exists, *long, cwd=tmp_path, number=number) == code
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    assert 50 <= state["global_step"] < 4000  # written where it stopped


def test_no_command_leaves_half_written_files(tmp_path: Path) -> None:
    case = write_case(tmp_path, SLOW_ENOUGH)
    shards = tmp_path / "run/simulations"
    kill_when(
        lambda: len(list(shards.glob("shard-*.h5"))) > 5,
        "simulate",
        case,
        "--run-dir",
        "run",
        cwd=tmp_path,
        number=signal.SIGKILL,
    )
    for path in shards.glob("shard-*.h5"):
        with h5py.File(path) as file:
            assert file["theta"].shape == (2_000, 3)


BAD_CONFIGS = {
    "unknown key": ("trian: {steps: 3}\n", "did you mean 'train'"),
    "unknown key deep down": ("train: {flow: {hiden: 3}}\n", "did you mean 'train.flow.hidden'"),
    "wrong type": ("seed: many\n", "seed"),
    "not YAML": ("train: [1,\n", "not valid YAML"),
    "unknown option": ("simulator: {name: linear_gaussian, options: {dimensions: 2}}\n", "did you mean 'dimension'"),
    "unknown simulator": ("simulator: {name: linear_gausian}\n", "did you mean 'linear_gaussian'"),
    "bad proposal": ("simulate: {proposal: {theta_9: {normal: [0, 1]}}}\n", "no parameter 'theta_9'"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_config_is_one_line_and_exit_code_2(tmp_path: Path, name: str) -> None:
    text, expected = BAD_CONFIGS[name]
    base = "" if "simulator:" in text else "simulator: {name: linear_gaussian}\n"
    (tmp_path / "bad.yaml").write_text(base + text)
    command = program if name == "unknown key" else elboscope
    done = command("simulate", "bad.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("runs/*/simulations.h5"))


def test_bad_observations_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    simulator = LinearGaussian()
    good = {"x": torch.zeros(2, 5, dtype=torch.float64)}
    files: dict[str, str] = {"missing.h5": "no such file", "text.h5": "not an Elboscope data file"}
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x/other"] = [1.0]
    files["foreign.h5"] = "/x/x is missing"
    write_data(tmp_path / "nan.h5", observables=simulator.observables, x={"x": good["x"] * torch.nan})
    files["nan.h5"] = "10 of 10 values are NaN"
    write_data(tmp_path / "shape.h5", observables=simulator.observables, x={"x": torch.zeros(2, 4)})
    files["shape.h5"] = "expected shape (N, 5), got (2, 4)"
    write_data(tmp_path / "unit.h5", observables=simulator.observables, x=good)
    with h5py.File(tmp_path / "unit.h5", "a") as file:
        file["x/x"].attrs["unit"] = "km / s"
    files["unit.h5"] = "cannot be converted"
    (tmp_path / "cut.h5").write_bytes((tmp_path / "unit.h5").read_bytes()[:1500])
    files["cut.h5"] = "truncated"
    for name, expected in files.items():
        done = elboscope("check", case, "--observation", name, cwd=tmp_path)
        assert done.returncode == 2, (name, done.stderr)
        assert expected in done.stderr.splitlines()[-1], (name, done.stderr)
        assert "Traceback" not in done.stderr


def test_stages_ask_for_what_they_need(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    done = elboscope("train", case, "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "run `elboscope simulate` first" in done.stderr
    assert elboscope("run", cwd=tmp_path).returncode == 2
    assert elboscope("infer", "posterior.safetensors", cwd=tmp_path).returncode == 2


USER_SIMULATOR = """
from simulators.linear_gaussian import LinearGaussian

class Mine(LinearGaussian):
    def PART
"""


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            "simulate(self, theta, context=None, *, generator): raise RuntimeError('no such thing')",
            "in simulate: RuntimeError",
        ),
        ("log_likelihood(self, theta, x): return 1 / 0", "in log_likelihood: ZeroDivisionError"),
        ("pilot(self, x): return x['x'][:, :1], x['x'][:, :1]", "pilot must give two tensors"),
        ("__init__(self): raise KeyError('table')", "KeyError: 'table'"),
    ],
)
def test_an_error_in_a_users_simulator_is_one_line_and_exit_code_2(tmp_path: Path, part: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(USER_SIMULATOR.replace("PART", part))
    case = write_case(tmp_path, {"simulator": {"path": "mine.py", "name": "Mine"}})
    done = elboscope("check", case, cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in done.stderr


def test_stages_refuse_what_other_settings_made(tmp_path: Path) -> None:
    case = write_case(tmp_path, {"simulate": {"count": 2_000, "held_out": 500}})
    quick = ("--run-dir", "run", "--set", "train.steps=20")
    for stage in ("simulate", "train"):
        assert elboscope(stage, case, *quick, cwd=tmp_path).returncode == 0
    for stage, change, said in (
        (
            "train",
            "simulate.count=3000",
            "made with simulate.count = 2000, the case says 3000: run `elboscope simulate`",
        ),
        (
            "infer",
            "train.average=0.5",
            "made with train.average = 0.999, the case says 0.5: run `elboscope train` again",
        ),
        ("validate", "train.average=0.5", "run `elboscope train` again"),
    ):
        done = elboscope(stage, case, *quick, "--set", change, cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr


def test_without_an_observation_a_network_is_trained_for_those_to_come(tmp_path: Path) -> None:
    case = write_case(tmp_path, {"observation": None, "simulate": {"count": 3_000, "held_out": 500}})
    options = ("--run-dir", "run", "--set", "train.steps=150", "--set", "train.data=online")
    done = elboscope("run", case, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"posterior.safetensors", "validation.h5", "report.html"} <= made
    assert not {"inference.h5", "comparison.h5"} & made
    assert "No observation yet" in (tmp_path / "run/report.html").read_text()
    later = elboscope("infer", "run/posterior.safetensors", "observed.h5", "--out", "later.h5", cwd=tmp_path)
    assert later.returncode == 0, later.stderr
    with h5py.File(tmp_path / "later.h5") as file:
        certificate = file["certificate"]
        assert {v.decode() for v in certificate["verdict"][:]} <= {"exact", "refined"}
    assert elboscope("infer", case, *options, cwd=tmp_path).returncode == 2


def test_help_is_quick_and_has_an_example(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "pipeline.cli", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported  # 0.1 s; any of these would take longer than all the rest
    assert not {"torch", "numpy", "h5py", "astropy", "matplotlib", "scipy", "pydantic"} & imported
    assert "elboscope run configs/k2_24.yaml" in done.stdout
    for command in (
        "run",
        "simulate",
        "train",
        "infer",
        "likelihood",
        "validate",
        "compare",
        "report",
        "check",
        "combine",
        "population",
        "show",
        "export",
        "evidence",
        "plot",
        "propose",
        "simulators",
        "schema",
        "fetch",
        "ingest",
        "status",
        "profiles",
    ):
        assert "Example" in elboscope(command, "--help", cwd=tmp_path).stdout, command


def test_show_simulators_schema(tmp_path: Path, root: Path) -> None:
    shown = elboscope("show", root / "data/k2_24.h5", cwd=tmp_path)
    assert shown.returncode == 0
    assert "velocity" in shown.stderr + shown.stdout
    assert "m / s" in shown.stderr + shown.stdout
    listed = elboscope("simulators", cwd=tmp_path).stdout
    assert "linear_gaussian" in listed
    assert "radial_velocity" in listed
    schema = json.loads(elboscope("schema", cwd=tmp_path).stdout)
    assert "validate" in schema["properties"]
    assert "train" in schema["properties"]


def test_combine_and_population_refuse_what_does_not_fit(tmp_path: Path) -> None:
    """One line and exit code 2, and no output."""
    (tmp_path / "population.yaml").write_text(
        "parameters: {t: {normal: [mu, 1]}}\nhyperpriors: {m: {uniform: [0, 1]}}\n"
    )
    (tmp_path / "good.yaml").write_text("parameters: {t: {normal: [mu, 1]}}\nhyperpriors: {mu: {uniform: [0, 1]}}\n")
    for arguments, expected in (
        (("combine", "none.safetensors", "rows.h5"), "none.safetensors: no such file"),
        (("population", "none.h5", "population.yaml"), "hyperparameter 'mu' has no hyperprior; did you mean 'm'?"),
        (("population", "none.h5", "good.yaml"), "none.h5: no such file"),
    ):
        done = elboscope(*arguments, "--out", "out.h5", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert expected in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "out.h5").exists()
