"""The schedule: phases in order, each resumable, each starting from the best of the one before."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader

from pipeline.config import CaseSettings
from pipeline.errors import InputError
from pipeline.estimators.network import PosteriorNetwork
from pipeline.interrupt import asked_to_stop, stop_if_asked
from pipeline.progress import progress_bar
from pipeline.store import complete_or_absent, read_safetensors, write_safetensors, write_text
from pipeline.training.data import TrainingSet
from pipeline.training.phase import CRITERION, Phase
from simulators.protocol import Simulator, has_likelihood

HISTORY_COLUMNS: list[str] = [
    "phase",
    "step",
    "loss",
    "elbo",
    "reconstruction",
    "regularization",
    "held_out_forward_log_q",
    "held_out_elbo",
    "held_out_reconstruction",
    "held_out_regularization",
    "held_out_kl_gap",
    "held_out_refused",
    "held_out_ess_fraction",
    "held_out_ess_fraction_median",
]


@dataclass(frozen=True)
class Trained:
    """Outcome of a schedule: history rows, and unusable draws met while training."""

    history: list[dict[str, float]]
    refused: int


class _Steps:
    """A loader that yields nothing but turns: batches are made from the step number on the device."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class _Checkpoints(Callback):
    """After each step: averages and checks, checkpoints that a killed run resumes from, a stop where asked for."""

    def __init__(self, path: Path, *, table: Path, before: list[dict[str, float]], every: int, advance: Any) -> None:
        self.path, self.table, self.before, self.every, self.advance = path, table, before, every, advance
        self.last_time, self.last_step = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Phase)
        pl_module.after_step()
        step = trainer.global_step
        due = step % self.every == 0
        if pl_module.history and pl_module.history[-1]["step"] == step:
            write_text(self.table, format_history([*self.before, *pl_module.history]))
        if due or asked_to_stop():
            with complete_or_absent(self.path) as temporary:
                trainer.save_checkpoint(temporary)
            stop_if_asked()
        if step % 25 == 0:
            now = time.monotonic()
            rate = (step - self.last_step) / max(now - self.last_time, 1e-9)
            self.last_time, self.last_step = now, step
            self.advance(25, note=_note(pl_module.recent, rate))


def _note(recent: dict[str, Tensor], rate: float) -> str:
    names = (("elbo", "ELBO"), ("reconstruction", "rec"), ("regularization", "reg"), ("loss", "loss"))
    figures = [f"{label} {float(recent[key]):.3f}" for key, label in names if key in recent]
    return "  ".join([*figures, f"{rate:.0f} steps/s"])


def train_schedule(
    network: PosteriorNetwork,
    *,
    case: CaseSettings,
    simulator: Simulator,
    prior: Distribution,
    training: TrainingSet,
    held_out: TrainingSet,
    folder: Path,
    key: str,
) -> Trained:
    """Train `network` in place through all phases of `case.train`.

    `training.csv` beside the folder follows every check. Finished phases are kept as
    `folder/phase-<i>.safetensors`, the current one as `folder/phase-<i>.ckpt`;
    both belong to the content key `key`, and are ignored under another.

    Raises:
        InputError: an ELBO phase without a likelihood, or a loss that is not finite.
    """
    phases = case.train.scheduled()
    if any(p.objective == "elbo" for p in phases) and not has_likelihood(simulator):
        raise InputError(
            f"train.phases: objective elbo needs log_likelihood, which simulator {simulator.name!r} has not"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _discard_other_runs(folder, key)
    history: list[dict[str, float]] = []
    refused = 0
    for index, settings in enumerate(phases):
        finished = folder / f"phase-{index}.safetensors"
        module = Phase(
            network,
            phase=settings,
            index=index,
            settings=case.train,
            seed=case.seed,
            simulator=simulator,
            prior=prior,
            training=training,
            held_out=held_out,
        )
        if finished.is_file():
            tensors, header = read_safetensors(finished)
            network.load_state_dict(tensors)
            history += _parse_history(header["history"])
            refused += int(header["refused"])
            continue
        _fit(module, folder / f"phase-{index}.ckpt", folder.parent / "training.csv", history, case)
        network.load_state_dict(module.best.state_dict())
        history += module.history
        refused += int(module.refused)
        metadata = {"history": format_history(module.history), "refused": int(module.refused)}
        write_safetensors(finished, network.state_dict(), metadata)
        (folder / f"phase-{index}.ckpt").unlink(missing_ok=True)
    return Trained(history, refused)


def _fit(module: Phase, checkpoint: Path, table: Path, before: list[dict[str, float]], case: CaseSettings) -> None:
    phase = module.phase
    done = 0
    if checkpoint.is_file():
        done = int(torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"])
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), progress_bar(phase.objective, phase.steps, completed=done, safe=False) as advance:
        warnings.simplefilter("ignore")  # Lightning advises on loaders and loggers that we do not use
        trainer = L.Trainer(
            accelerator="gpu" if module.training_rows.theta.is_cuda else "cpu",
            devices=1,
            max_steps=phase.steps,
            max_epochs=-1,
            gradient_clip_val=case.train.gradient_clip,
            logger=TensorBoardLogger(checkpoint.parent / "tensorboard", name="", version=f"phase-{module.index}"),
            callbacks=[
                _Checkpoints(checkpoint, table=table, before=before, every=case.train.checkpoint_every, advance=advance)
            ],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
        )
        loader = DataLoader(_Steps(phase.steps), batch_size=None, shuffle=False)  # pyright: ignore[reportArgumentType]
        trainer.fit(module, loader, ckpt_path=checkpoint if done else None, weights_only=True)
    if not all(math.isfinite(v) for r in module.history for k, v in r.items() if k == "loss"):
        raise InputError(
            f"train: the loss of phase {module.index} ({phase.objective}) became NaN or infinite; try a lower learning_rate"
        )
    if not math.isfinite(module.best_value):  # `best` would then be the network from which the phase started
        raise InputError(
            f"train: {CRITERION[phase.objective]} of phase {module.index} ({phase.objective}) was never a finite number"
        )


def _discard_other_runs(folder: Path, key: str) -> None:
    """Remove what other settings left, so that it is never resumed from."""
    marker = folder / "content_key"
    if marker.is_file() and marker.read_text(encoding="utf-8") == key:
        return
    for leftover in (*folder.glob("phase-*.ckpt"), *folder.glob("phase-*.safetensors")):
        leftover.unlink()
    write_text(marker, key)


def format_history(history: list[dict[str, float]]) -> str:
    """CSV text; an empty cell where a figure does not exist."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: repr(v) for k, v in row.items()} for row in history)
    return buffer.getvalue()


def _parse_history(text: str) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(io.StringIO(text))]
