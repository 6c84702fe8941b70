"""The schedule: phases in order, each resumable, each starting from the best of the one before."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import pickle
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader

from pipeline.cost import Meter
from pipeline.errors import InputError
from pipeline.estimators.network import PosteriorNetwork
from pipeline.interrupt import Interrupted, handle_sigterm_again, stop_if_asked
from pipeline.progress import console, progress_bar
from pipeline.settings import CaseSettings, PhaseSettings
from pipeline.store import (
    check_zip,
    complete_or_absent,
    read_safetensors,
    reading,
    write_safetensors,
    write_text,
)
from pipeline.training.account import Account
from pipeline.training.data import Source, TrainingSet
from pipeline.training.guard import guard_of
from pipeline.training.outcome import PhaseOutcome, Trained
from pipeline.training.phase import Phase
from pipeline.training.processes import ALONE, Processes
from pipeline.training.together import lightning_options
from simulators.protocol import Simulator, has_likelihood

AGREE_EVERY = 10
"""Steps between questions whether any of several processes was asked to stop."""
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
    "held_out_kl_gap_of_least",
    "held_out_refused",
    "held_out_ess_fraction",
    "held_out_ess_fraction_median",
]


class _Steps:
    """A loader that yields nothing but turns: batches are made from the step number on the device."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class _Checkpoints(Callback):
    """After each step: averages and checks, checkpoints that a killed run resumes from, a stop where asked for.

    Processes that train together stop together: they ask each other every AGREE_EVERY steps.
    """

    def __init__(
        self,
        path: Path,
        *,
        table: Path,
        before: list[dict[str, float]],
        every: int,
        advance: Any,
        account: Account,
        processes: Processes = ALONE,
    ) -> None:
        self.account = account
        self.path, self.table, self.before, self.every, self.advance = path, table, before, every, advance
        self.processes = processes
        self.last_time, self.last_step = time.monotonic(), 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        handle_sigterm_again()
        assert isinstance(pl_module, Phase)
        trainer.should_stop = trainer.should_stop or pl_module.is_hopeless  # resumed from its last step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Phase)
        pl_module.after_step()
        step = trainer.global_step
        due = step % self.every == 0
        trainer.should_stop = trainer.should_stop or pl_module.is_hopeless
        if self.processes.first and pl_module.history and pl_module.history[-1]["step"] == step:
            write_text(self.table, format_history([*self.before, *pl_module.history]))
        asked = 0
        if self.processes.world == 1 or due or step % AGREE_EVERY == 0:
            asked = self.processes.largest(_signal_received())
        if due or asked:
            if self.processes.first:
                with complete_or_absent(self.path) as temporary:
                    trainer.save_checkpoint(temporary)
            else:
                trainer.save_checkpoint(self.path)  # waits for the first process, and writes nothing
            self.account.add()
        if asked:
            self.processes.wait()  # until the checkpoint has its name
            raise Interrupted(asked)
        if step % 25 == 0:
            now = time.monotonic()
            rate = (step - self.last_step) / max(now - self.last_time, 1e-9)
            self.last_time, self.last_step = now, step
            self.advance(25, note=_note(pl_module.recent, rate))


def _signal_received() -> int:
    """The number of the signal that asked this process to stop; 0 where none has."""
    try:
        stop_if_asked()
    except Interrupted as stop:
        return int(signal.Signals[str(stop)])
    return 0


def _note(recent: dict[str, Tensor], rate: float) -> str:
    names = (("elbo", "ELBO"), ("reconstruction", "rec"), ("regularization", "reg"), ("loss", "loss"))
    figures = [f"{label} {float(recent[key]):.3f}" for key, label in names if key in recent]
    return "  ".join([*figures, f"{rate:.0f} steps/s"])


def train_schedule(
    network: PosteriorNetwork,
    *,
    case: CaseSettings,
    phases: Sequence[PhaseSettings],
    simulator: Simulator,
    prior: Distribution,
    training: Source,
    held_out: TrainingSet,
    folder: Path,
    key: str,
    proposal: Distribution | None = None,
    processes: Processes = ALONE,
    meter: Meter | None = None,
) -> Trained:
    """Train `network` in place through all phases; after each the guard decides whether it counts.

    `training.csv` beside the folder follows every check. Finished phases are kept as
    `folder/phase-<i>.safetensors`, the current one as `folder/phase-<i>.ckpt`;
    both belong to the content key `key`, and are ignored under another.

    Args:
        proposal: what theta of the simulations was drawn from, on the training device; None is the prior.
        processes: that train this network together; the first of them writes.
        meter: what this session costs; from here on where none is given.

    Raises:
        InputError: a phase that needs a likelihood without one, or a loss that is not finite.
    """
    tractable = has_likelihood(simulator)
    for needy in (p for p in phases if p.needs_likelihood and not tractable):
        raise InputError(
            f"train.phases: objective {needy.label} needs log_likelihood, which simulator {simulator.name!r} has not"
        )
    for phase in phases:
        processes.need_even(phase.batch)
    if processes.first:
        folder.mkdir(parents=True, exist_ok=True)
        _discard_other_runs(folder, key)
    processes.wait()
    account = Account(folder, meter or Meter(), processes)
    table = folder.parent / "training.csv"
    history: list[dict[str, float]] = []
    outcomes: list[PhaseOutcome] = []
    counts = {"refused": 0, "skipped": 0}
    before: dict[str, float] = {}
    best_forward_log_q = -math.inf
    for index, settings in enumerate(phases):
        finished = folder / f"phase-{index}.safetensors"
        if processes.from_first(finished.is_file()):
            tensors, header = read_safetensors(finished)
            with reading(finished):
                network.load_state_dict(tensors)
                rows, outcome = _parse_history(header["history"]), PhaseOutcome(**json.loads(header["outcome"]))
                added = {name: int(header[name]) for name in counts}
        else:
            guard = guard_of(
                settings,
                case.train.guard,
                has_likelihood=tractable,
                start=before or None,
                best_forward_log_q=best_forward_log_q,
            )
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
                guard=guard,
                proposal=proposal,
                processes=processes,
            )
            try:
                _fit(module, folder / f"phase-{index}.ckpt", table, history, case, account)
            finally:
                module.batches.close()
            network.load_state_dict(module.best.state_dict())
            rows, outcome = module.history, _outcome(module, before)
            added = {name: int(getattr(module, name)) for name in counts}
            metadata = {"history": format_history(rows), "outcome": json.dumps(asdict(outcome)), **added}
            if processes.first:
                write_safetensors(finished, network.state_dict(), metadata)
                (folder / f"phase-{index}.ckpt").unlink(missing_ok=True)
            account.add()
            console.print(f"train: phase {index}, {outcome}")
        history += rows
        outcomes.append(outcome)
        counts = {name: counts[name] + added[name] for name in counts}
        if outcome.kept:
            before = dict(outcome.after)
            best_forward_log_q = max(best_forward_log_q, before["held_out_forward_log_q"])
    return Trained(history, outcomes, **counts, cost=account.add())


def _outcome(module: Phase, before: Mapping[str, float]) -> PhaseOutcome:
    """Figures of the best check that passed the guard, or of the best that did not."""
    criterion = module.guard.criterion
    allowed = [row for row in module.history if module.guard.passes(row)]
    best = max(allowed or module.history, key=lambda row: row[criterion])
    figures = {k: v for k, v in best.items() if k.startswith("held_out_")}
    steps = int(module.history[-1]["step"])
    return PhaseOutcome(
        label=module.phase.label,
        kept=module.kept,
        criterion=criterion,
        steps=steps,
        learning_rate=module.phase.learning_rate,
        before=dict(before),
        after=figures,
        reason="" if module.kept else module.guard.objection(best),
    )


def _fit(
    module: Phase,
    checkpoint: Path,
    table: Path,
    before: list[dict[str, float]],
    case: CaseSettings,
    account: Account,
) -> None:
    phase, processes, device = module.phase, module.processes, module.held_out.theta.device
    done = 0
    if processes.first and checkpoint.is_file():
        done = _steps_done(checkpoint)
    done = processes.from_first(done)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), progress_bar(phase.label, phase.steps, completed=done, safe=False) as advance:
        warnings.simplefilter("ignore")  # Lightning advises on loaders and loggers that we do not use
        trainer = L.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            max_steps=phase.steps,
            max_epochs=-1,
            gradient_clip_val=case.train.gradient_clip,
            logger=TensorBoardLogger(checkpoint.parent / "tensorboard", name="", version=f"phase-{module.index}"),
            callbacks=[
                _Checkpoints(
                    checkpoint,
                    table=table,
                    before=before,
                    every=case.train.checkpoint_every,
                    advance=advance,
                    account=account,
                    processes=processes,
                )
            ],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
            **lightning_options(processes, device),
        )
        loader = DataLoader(_Steps(phase.steps), batch_size=None, shuffle=False)  # pyright: ignore[reportArgumentType]
        try:
            trainer.fit(module, loader, ckpt_path=checkpoint if done else None, weights_only=True)
        except SIGTERMException:  # a signal that came before `on_train_start`
            stop_if_asked()
            raise
    if not all(math.isfinite(v) for r in module.history for k, v in r.items() if k == "loss"):
        raise InputError(
            f"train: the loss of phase {module.index} ({phase.label}) became NaN or infinite; try a lower learning_rate"
        )
    if not any(math.isfinite(row[module.guard.criterion]) for row in module.history):
        raise InputError(
            f"train: {module.guard.criterion} of phase {module.index} ({phase.label}) was never a finite number"
        )


def _steps_done(checkpoint: Path) -> int:
    """Steps after which a checkpoint was written.

    Raises:
        InputError: it is damaged.
    """
    check_zip(checkpoint)  # torch reads past a wrong CRC-32
    try:
        with reading(checkpoint):
            return int(torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"])
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{checkpoint}: damaged ({str(error).splitlines()[0]}); remove it, and the phase begins anew"
        ) from None


def _discard_other_runs(folder: Path, key: str) -> None:
    """Remove what other settings left, so that it is never resumed from."""
    marker = folder / "content_key"
    if marker.is_file() and marker.read_text(encoding="utf-8") == key:
        return
    for leftover in (*folder.glob("phase-*.ckpt"), *folder.glob("phase-*.safetensors"), *folder.glob("cost.json")):
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
