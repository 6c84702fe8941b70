"""A schedule of phases: what it delivers, and that stopping it changes nothing."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import build_simulator, case_from_values
from pipeline.errors import InputError
from pipeline.estimators.network import PosteriorNetwork
from pipeline.estimators.posterior import new_network
from pipeline.interrupt import Interrupted, handle_signals
from pipeline.settings import CaseSettings
from pipeline.training.auto import schedule
from pipeline.training.data import FreshSimulations, TrainingSet, training_set
from pipeline.training.outcome import Trained
from pipeline.training.phase import Phase
from pipeline.training.schedule import _Checkpoints, _parse_history, format_history, train_schedule
from simulators.priors import prior_of, sample

PHASES = [
    {"objective": "forward_kl", "steps": 60, "batch": 64, "learning_rate": 5e-3},
    {"objective": "elbo", "steps": 40, "batch": 64, "learning_rate": 2e-3},
]


def case_of(**train: Any) -> CaseSettings:
    settings = {
        "phases": PHASES,
        "flow": {"transforms": 2, "hidden": 8, "blocks": 1, "bins": 4},
        "embedding": {"kind": "none"},
        "check_every": 20,
        "checkpoint_every": 15,
        "average": 0.9,
    }
    simulator = {"name": "linear_gaussian", "options": {"dimension": 2}}
    return case_from_values({"simulator": simulator, "train": settings | train}, "test")


class Training:
    """Simulations and a fresh network of a case."""

    def __init__(self, case: CaseSettings) -> None:
        self.case = case
        self.simulator: Any = build_simulator(case.simulator)
        self.prior = prior_of(self.simulator)
        parts = [self._simulations(n) for n in (0, 1)]
        self.held_out, self.training = parts[0].rows(slice(0, 100)), parts[1]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network: PosteriorNetwork = new_network(case, self.simulator, 5)
        self.network.standardize(self.training.theta, self.training.inputs)

    def _simulations(self, seed: int) -> TrainingSet:
        stream = torch.Generator().manual_seed(seed)
        theta = sample(self.prior, 1000, stream)
        x = self.simulator.simulate(theta, generator=stream)
        return training_set(self.simulator, theta, x, prior=self.prior, proposal=self.prior, device=torch.device("cpu"))

    def run(self, folder: Path, *, key: str = "key") -> Trained:
        fresh = FreshSimulations(self.simulator, self.prior, self.prior, torch.device("cpu"))
        return train_schedule(
            self.network,
            case=self.case,
            phases=schedule(self.case.train, has_likelihood=True, simulations=1000),
            simulator=self.simulator,
            prior=self.prior,
            training=fresh if self.case.train.data == "online" else self.training,
            held_out=self.held_out,
            folder=folder,
            key=key,
        )


def stopped_at(step: int, phase_index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM during one step of one phase, as a batch system does."""
    original = Phase.training_step

    def with_signal(self: Phase, batch: Any, batch_idx: int) -> Any:
        if self.index == phase_index and self.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Phase, "training_step", with_signal)


def interrupted(training: Training, folder: Path) -> None:
    with handle_signals(), pytest.raises(Interrupted, match="SIGTERM"):
        training.run(folder)


def equal(one: PosteriorNetwork, other: PosteriorNetwork) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Trained, Path]:
    """A schedule that ran through."""
    training, folder = Training(case_of()), tmp_path_factory.mktemp("whole")
    return training, training.run(folder), folder


def test_a_schedule_learns_and_says_what_each_phase_gained(whole: tuple[Training, Trained, Path]) -> None:
    training, trained, folder = whole
    assert [(row["phase"], row["step"]) for row in trained.history] == [(0, 20), (0, 40), (0, 60), (1, 20), (1, 40)]
    assert trained.history[-1]["held_out_elbo"] > trained.history[0]["held_out_elbo"] + 0.1
    assert all(math.isfinite(v) for row in trained.history for v in row.values())
    assert "elbo" not in trained.history[0]
    assert "elbo" in trained.history[-1]
    assert trained.refused == 0
    assert sorted(p.name for p in folder.glob("phase-*")) == ["phase-0.safetensors", "phase-1.safetensors"]
    best = max(row["held_out_elbo"] for row in trained.history if row["phase"] == 1)
    from pipeline.training.guard import held_out_figures

    figures = held_out_figures(
        training.network, training.simulator, training.prior, training.held_out, seed=training.case.seed
    )
    assert figures["held_out_elbo"] == pytest.approx(best, abs=1e-9)  # what is delivered is the best that was seen


def test_a_sigterm_between_two_steps_stops_the_run_and_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Lightning's own handler would end the process with exit code 0."""
    original = _Checkpoints.on_train_batch_end

    def with_signal(self: _Checkpoints, trainer: Any, *rest: Any) -> None:
        original(self, trainer, *rest)
        if trainer.global_step == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(_Checkpoints, "on_train_batch_end", with_signal)
    interrupted(Training(case_of()), tmp_path)
    assert torch.load(tmp_path / "phase-0.ckpt", weights_only=True)["global_step"] == 18


@pytest.mark.parametrize(("phase", "step"), [(0, 37), (0, 59), (1, 1), (1, 29)])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    whole: tuple[Training, Trained, Path], phase: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopped_at(step, phase, patch)
        interrupted(Training(case_of()), tmp_path)
    assert (tmp_path / f"phase-{phase}.ckpt").is_file()
    again = Training(case_of())
    trained = again.run(tmp_path)
    assert equal(again.network, whole[0].network)
    assert trained == whole[1]
    assert not list(tmp_path.glob("*.ckpt"))


def test_on_fresh_simulations_too_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = Training(case_of(data="online"))
    trained = uninterrupted.run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(29, 1, patch)
        interrupted(Training(case_of(data="online")), tmp_path / "stopped")
    again = Training(case_of(data="online"))
    assert again.run(tmp_path / "stopped") == trained
    assert equal(again.network, uninterrupted.network)
    stored = Training(case_of())
    stored.run(tmp_path / "stored")
    assert not equal(stored.network, again.network)


@pytest.mark.parametrize("objective", ["iwelbo", "wake", {"elbo": 0.5, "forward_kl": 0.5}])
def test_every_objective_resumes_bit_for_bit(objective: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = [{"objective": objective, "steps": 40, "batch": 32, "draws": 4, "prior_share": 0.25, "temper_from": 0.5}]
    uninterrupted = Training(case_of(phases=phases))
    trained = uninterrupted.run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(31, 0, patch)
        interrupted(Training(case_of(phases=phases)), tmp_path / "stopped")
    again = Training(case_of(phases=phases))
    assert again.run(tmp_path / "stopped") == trained
    assert equal(again.network, uninterrupted.network)


def test_a_gradient_that_is_no_number_changes_nothing_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Phase.training_step

    def sometimes_nan(self: Phase, batch: Any, batch_idx: int) -> Any:
        loss = original(self, batch, batch_idx)
        return loss * torch.nan if self.global_step in (7, 8) else loss

    monkeypatch.setattr(Phase, "training_step", sometimes_nan)
    training = Training(case_of())
    trained = training.run(tmp_path)
    assert trained.skipped == 4  # two in each phase
    assert all(bool(p.isfinite().all()) for p in training.network.parameters())
    assert trained.history[-1]["held_out_elbo"] > trained.history[0]["held_out_elbo"]


def test_finished_phases_are_not_trained_again(
    whole: tuple[Training, Trained, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_step(self: Phase, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(Phase, "training_step", no_step)
    again = Training(case_of())
    assert again.run(whole[2]) == whole[1]
    assert equal(again.network, whole[0].network)


def test_what_other_settings_left_is_not_resumed(
    whole: tuple[Training, Trained, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopped_at(20, 1, patch)
        interrupted(Training(case_of(gradient_clip=0.01)), tmp_path)
    again = Training(case_of())
    assert again.run(tmp_path, key="another") == whole[1]
    assert equal(again.network, whole[0].network)


def test_an_elbo_without_a_likelihood_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    training = Training(case_of())
    training.simulator = type("Implicit", (), {"name": "implicit"})()
    with pytest.raises(InputError, match="objective elbo needs log_likelihood, which simulator 'implicit' has not"):
        training.run(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()


def test_a_loss_that_is_no_number_is_an_error_and_no_result(tmp_path: Path) -> None:
    training = Training(case_of())
    training.training.theta[:] = torch.nan
    with pytest.raises(InputError, match=r"the loss of phase 0 \(forward_kl\) became NaN or infinite"):
        training.run(tmp_path)
    assert not list(tmp_path.glob("phase-*.safetensors"))


def test_history_survives_its_text(whole: tuple[Training, Trained, Path]) -> None:
    history = whole[1].history
    text = format_history(history)
    assert text.splitlines()[0].startswith("phase,step,loss,elbo,reconstruction,regularization,held_out_forward_log_q,")
    assert _parse_history(text) == history
