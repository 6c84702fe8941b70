from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.stages.infer import infer
from pipeline.stages.run import Run
from pipeline.stages.show import show
from pipeline.store import read_attribute, read_key


def test_who_made_what(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The keys of q and of the data, and the file beside it that is q; the stage, versions and settings."""
    path = infer(trained)
    show(path)
    shown = capsys.readouterr().out
    inputs = json.loads(read_attribute(path, "inputs") or "{}")
    assert set(inputs) == {"posterior", "observation"}
    assert f"posterior: {inputs['posterior'][:12]}... = posterior.safetensors" in shown
    assert f"observation: {inputs['observation'][:12]}..." in shown
    assert inputs["posterior"] not in shown  # cut to what an eye compares
    assert f"content key: {(read_key(path) or '')[:12]}..." in shown
    assert "made by infer, 20" in shown
    assert "torch 2" in shown
    assert "batch 256" in shown  # settings, down to a phase of the training
    assert "theta_1  (1, 2000, 2) float64" in shown


def test_a_model_names_the_simulations_it_was_trained_on(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    show(trained.output("train"))
    shown = capsys.readouterr().out
    assert "... = simulations.h5" in shown
    assert "made by train" in shown


def test_an_input_that_has_changed_since_is_not_named(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "inference.h5"
    moved.write_bytes(infer(trained).read_bytes())
    show(moved)
    assert "= posterior.safetensors" not in capsys.readouterr().out


def test_foreign_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import h5py

    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file.attrs["settings"] = "not JSON"
        file.attrs["provenance"] = "[1, 2]"
        file["a"] = [1.0, 2.0]
        file["a"].attrs["unit"] = "m"
    show(tmp_path / "foreign.h5")
    shown = capsys.readouterr().out
    assert "settings: not JSON" in shown
    assert "a  (2,) float64  [m]" in shown
    with pytest.raises(InputError, match="no such file"):
        show(tmp_path / "none.h5")


def test_groups_within_each_other_are_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link to / and 2^24 ways through groups that share their members: both ended never."""
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["me"] = file["/"]
        file["soft"] = h5py.SoftLink("/")
        file.create_group("g0")
        for i in range(1, 25):
            group = file.create_group(f"g{i}")
            group["a"] = group["b"] = file[f"g{i - 1}"]
    show(tmp_path / "a.h5")
    shown = capsys.readouterr().out
    assert "soft  link to /" in shown
    assert shown.count("shown already") == 49 - 24 + 24
    assert len(shown.splitlines()) < 200
