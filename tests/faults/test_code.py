"""Code runs only where the command line names it: not because it lies in a run folder, a model file or this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import case_from_values
from pipeline.errors import InputError
from pipeline.own_process import own_command, own_sources
from pipeline.schema import SETTINGS
from pipeline.store import write_hdf5, write_safetensors
from pipeline.workflow.drive import job_script, record_workflow, write_case
from pipeline.workflow.jobs import Jobs, Stage
from pipeline.workflow.profile import load_profile, write_profile

HOSTILE = """
from pathlib import Path
Path(__file__).with_name("marker").touch()
from simulators.linear_gaussian import LinearGaussian

class Mine(LinearGaussian):
    pass
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with a Python file that leaves a mark where it is run."""
    (tmp_path / "mine.py").write_text(HOSTILE, encoding="utf-8")
    return tmp_path


def was_run(folder: Path) -> bool:
    return (folder / "marker").exists()


def said(*arguments: str | Path) -> str:
    """What a command refuses in one line; "" where it succeeds."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, InputError):
        return str(result.exception)
    assert result.exit_code == 0, (result.output, result.exception)
    return ""


def settings(folder: Path) -> dict[str, object]:
    return {"simulator": {"name": "Mine", "path": str(folder / "mine.py")}}


@pytest.fixture
def run(hostile: Path) -> Path:
    """A run folder as somebody else made it."""
    folder = hostile / "run"
    write_case(case_from_values(settings(hostile), "test"), folder)
    return folder


@pytest.fixture
def model(hostile: Path) -> Path:
    path = hostile / "posterior.safetensors"
    header = {"schema": "elboscope", "stage": "train", SETTINGS: json.dumps(settings(hostile)), "features": 5}
    write_safetensors(path, {"a": torch.zeros(1)}, header | {"parameters": "[]", "observables": "{}"})
    return path


def test_status_does_not_import_what_the_run_names(hostile: Path, run: Path) -> None:
    assert "give a config that names it (--config)" in said("status", run)
    assert not was_run(hostile)


def test_status_does_where_the_command_line_names_it(hostile: Path, run: Path) -> None:
    config = hostile / "case.yaml"
    config.write_text("simulator: {name: Mine, path: mine.py}\n", encoding="utf-8")
    assert said("status", run, "--config", config) == ""
    assert was_run(hostile)


@pytest.mark.parametrize("named", [False, True])
def test_status_runs_a_queue_command_only_where_the_command_line_names_it(tmp_path: Path, named: bool) -> None:
    folder, mark = tmp_path / "run", tmp_path / "marker"
    write_case(case_from_values({"simulator": {"name": "linear_gaussian"}}, "test"), folder)
    write_profile(load_profile("slurm").model_copy(update={"queue": f"touch {mark}"}), folder)
    record_workflow(folder)
    option = ("--profile", folder / "workflow" / "profile.yaml") if named else ()
    result = CliRunner().invoke(app, ["status", str(folder), *map(str, option)])
    assert result.exit_code == 0
    assert mark.exists() == named
    assert ("the queue is not asked" in result.output) != named


def test_status_asks_the_queue_of_a_packaged_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n", encoding="utf-8")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    write_case(case_from_values({"simulator": {"name": "linear_gaussian"}}, "test"), folder)
    write_profile(load_profile("slurm"), folder)
    record_workflow(folder)
    assert said("status", folder) == ""
    assert (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("ingest", "{model}", "table.csv", "--list"),
        ("ingest", "{model}", "table.csv", "--out", "out.h5"),
        ("infer", "{model}", "observed.h5", "--out", "out.h5"),
        ("combine", "{model}", "observed.h5", "--out", "out.h5"),
        ("show", "{model}"),
    ],
    ids=lambda a: " ".join(a[:1] + a[3:4]),
)
def test_no_command_imports_what_a_model_names(
    hostile: Path, model: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile)
    Path("table.csv").write_text("x\n1\n", encoding="utf-8")
    Path("observed.h5").write_bytes(b"")
    line = said(*(a.format(model=model) for a in arguments))
    assert arguments[0] == "show" or "give a config that names it" in line
    assert not was_run(hostile)


def test_ingest_takes_the_config_that_names_it(hostile: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile)
    Path("case.yaml").write_text("simulator: {name: Mine, path: mine.py}\n", encoding="utf-8")
    Path("table.csv").write_text("x\n1\n", encoding="utf-8")
    said("ingest", "case.yaml", "table.csv", "--list")
    assert was_run(hostile)


@pytest.mark.parametrize("command", ["population", "export"])
def test_no_command_imports_what_an_inference_file_names(hostile: Path, command: str) -> None:
    path, population = hostile / "inference.h5", hostile / "population.yaml"
    population.write_text("parameters: {t: {normal: [mu, 1]}}\nhyperpriors: {mu: {uniform: [0, 1]}}\n")

    def fill(file: object) -> None:
        file["posterior/t"] = [[[1.0]]]  # type: ignore[index]
        file["certificate/verdict"] = ["exact"]  # type: ignore[index]

    write_hdf5(path, fill, {SETTINGS: json.dumps(settings(hostile))})
    if command == "population":
        assert "give a config that names it" in said("population", path, population, "--out", hostile / "out.h5")
    else:
        said("export", path, "--format", "getdist", "--out", hostile / "chain")
    assert not was_run(hostile)


def test_verify_does_not_import_what_a_run_names(hostile: Path, run: Path) -> None:
    (run / "simulations.h5").write_bytes(b"no simulations")
    (run / "settings" / "simulate.yaml").write_text(json.dumps(settings(hostile)))
    assert "give a config that names it" in said("verify", run, "--repair")
    assert not was_run(hostile)


@pytest.mark.parametrize("module", ["pipeline.stages.simulation_worker", "pipeline.cli"])
def test_a_process_of_ours_imports_nothing_from_the_current_folder(tmp_path: Path, module: str) -> None:
    for name in ("yaml", "json", "typer", "pydantic"):
        (tmp_path / f"{name}.py").write_text("open('marker', 'w')\n", encoding="utf-8")
    subprocess.run(
        [*own_command(module)],
        cwd=tmp_path,
        input=b'{"case": {}, "folder": ".", "key": ""}\n',
        capture_output=True,
        env=os.environ | own_sources(),
        timeout=120,
        check=False,
    )
    assert not was_run(tmp_path)


def test_every_process_that_is_started_is_one_of_those(root: Path) -> None:
    """A new `sys.executable, "-m"` elsewhere in the package would import from the current folder."""
    for path in (*root.glob("pipeline/**/*.py"), *root.glob("simulators/**/*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name != "own_process.py":
            assert 'sys.executable, "-m"' not in text, path
            assert "shell=True" not in text, path


def test_a_job_imports_nothing_from_the_folder_that_it_runs_in(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("open('marker', 'w')\n", encoding="utf-8")
    stage = Stage(parts=1, cores=1, memory_mb=1, gpus=0, nodes=1, minutes=1)
    jobs = Jobs(run=str(tmp_path), case="case.yaml", folder=str(tmp_path), stages={"train": stage}, command=["true"])
    script = tmp_path / "job.sh"
    properties = json.dumps({"params": jobs.params("train") | {"argv": [sys.executable, "-S", "-c", ""]}})
    script.write_text(job_script(jobs, load_profile("local")).format(properties=properties, exec_job=""))
    subprocess.run(["bash", str(script)], cwd=tmp_path, capture_output=True, timeout=60, check=True)
    assert not was_run(tmp_path)


def test_an_array_of_python_objects_is_never_unpickled(tmp_path: Path) -> None:
    import numpy as np

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    np.save(tmp_path / "a.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    (tmp_path / "marker").unlink(missing_ok=True)
    assert "never unpickled" in said("ingest", "none", tmp_path / "a.npy", "--out", tmp_path / "out.h5")
    assert not was_run(tmp_path)
