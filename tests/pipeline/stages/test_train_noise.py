"""Fresh noise on stored signals: what it gains where signals are few, and what it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import simulation_rows, stored_signals, train
from pipeline.store import read_safetensors_header
from pipeline.training.data import FreshNoise
from pipeline.training.schedule import _parse_history
from pipeline.training.storage import load
from simulators.noise_free import WithSignal
from tests.pipeline.stages.conftest import write_case

CASE: dict[str, Any] = {
    "simulate": {"count": 300, "held_out": 600, "signal": True},
    "train": {
        "flow": {"transforms": 2, "hidden": 32, "blocks": 1, "bins": 6},
        "embedding": {"kind": "none"},
        "phases": [{"objective": "forward_kl", "steps": 500, "batch": 100, "learning_rate": 5e-3}],
        "check_every": 100,
    },
}


def run_with(folder: Path, name: str, *, noise: str, **simulator_or_simulate: Any) -> Run:
    changes = CASE | {"train": CASE["train"] | {"noise": noise}} | simulator_or_simulate
    run = Run(load_case(write_case(folder, changes)), folder / name)
    simulate(run)
    return run


def test_fresh_noise_learns_more_from_as_many_signals(tmp_path: Path) -> None:
    """300 signals: with stored noise the flow learns their noise by heart, and the guard keeps an early check."""
    best = {}
    for noise in ("stored", "fresh"):
        run = run_with(tmp_path, noise, noise=noise)
        train(run)
        history = _parse_history(read_safetensors_header(run.output("train"))["history"])
        best[noise] = max(row["held_out_forward_log_q"] for row in history)
        last = history[-1]["held_out_forward_log_q"]
        assert last > best[noise] - 0.2 if noise == "fresh" else last < best[noise]
    # nats; the same 600 held-out simulations for both, their own noise
    assert best["fresh"] > best["stored"] + 0.3


def test_signals_lie_beside_x_and_batches_have_noise_of_their_own(tmp_path: Path) -> None:
    run = run_with(tmp_path, "run", noise="fresh")
    with h5py.File(run.output("simulate")) as file:
        assert set(file["x"]) == {"x", "signal_x"}  # pyright: ignore[reportArgumentType]
    assert isinstance(run.stored_simulator, WithSignal)
    rows, count = simulation_rows(run, stored_signals(run))
    training = load(rows, count, rows.total, device=run.device)
    source = FreshNoise(training, stored_signals(run))
    assert source.true_theta() is None
    batches = source.batches(100, seed=1, stage="a")
    rows = batches[2]
    assert torch.equal(rows.x["x"], source.batches(100, seed=1, stage="a")[2].x["x"])
    assert torch.equal(rows.theta, training.batches(100, seed=1, stage="a")[2].theta)
    assert not torch.equal(rows.x["x"], training.batches(100, seed=1, stage="a")[2].x["x"])
    assert torch.equal(rows.inputs.features, rows.x["x"])
    assert rows.numbers is None
    later = batches[5]  # the same 300 rows, an epoch later
    assert not set(later.x["x"][:, 0].tolist()) & set(rows.x["x"][:, 0].tolist())


def test_new_noise_is_reduced_to_what_a_likelihood_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(tmp_path, "run", noise="fresh")
    monkeypatch.setattr(run.simulator, "reduced", lambda x: {"sum": x["x"].sum(1)}, raising=False)
    rows, count = simulation_rows(run, stored_signals(run))
    training = load(rows, count, rows.total, device=run.device)
    assert set(training.x) == {"x", "signal_x"}
    batch = FreshNoise(training, stored_signals(run)).batches(100, seed=1, stage="a")[0]
    assert set(batch.x) == {"sum"}
    assert torch.allclose(batch.x["sum"], batch.inputs.features.sum(1))


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    run = run_with(tmp_path, "run", noise="fresh", simulate={"count": 200, "held_out": 50})
    with pytest.raises(InputError, match=r"train.noise: fresh needs the noise-free signals: set simulate.signal: true"):
        train(run)
    with pytest.raises(InputError, match=r"simulate.signal: simulator 'two_moons' has no `signal` and `observe`"):
        run_with(tmp_path, "moons", noise="stored", simulator={"name": "two_moons"}, observation=None)
